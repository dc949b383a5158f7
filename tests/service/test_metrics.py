"""The metrics of several nodes in one text."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from s2s_ray.service.http.metrics import PREFIXES, merge


def node(name: str, count: float, extra: str) -> str:
    """Return the text of a node as prometheus_client, and so Ray, writes it."""
    registry = CollectorRegistry()
    requests = Counter("ray_s2s_requests", 'Requests: "completed"\nones.', ["status", "node"], registry=registry)
    requests.labels('20"0', name).inc(count)
    seconds = Histogram("ray_serve_seconds", "Seconds.", ["node"], buckets=[0.1, 1.0], registry=registry)
    seconds.labels(name).observe(0.5)
    Gauge("ray_node_mem", "Memory.", registry=registry).set(1)
    Gauge(f"ray_s2s_{extra}", "On one node only.", registry=registry).set(3)
    return generate_latest(registry).decode()


def samples(*texts: str) -> set[tuple[str, str, str, str, float]]:
    """Return name and type of the family, and name, labels and value, of each sample that Prometheus would read."""
    return {
        (family.name, family.type, sample.name, str(sorted(sample.labels.items())), sample.value)
        for text in texts
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if family.name.startswith(PREFIXES)
    }


def test_each_family_appears_once_with_the_samples_of_all_nodes() -> None:
    texts = [node("a", 2, "x"), node("b", 5, "y")]
    merged = merge(texts)
    families = [family.name for family in text_string_to_metric_families(merged)]
    assert len(set(families)) == len(families), "Prometheus rejects a family that appears twice"
    assert {"ray_s2s_requests", "ray_serve_seconds", "ray_s2s_x", "ray_s2s_y"} <= set(families)
    assert "ray_node_mem" not in families
    assert samples(merged) == samples(*texts)
    assert merged.count("# TYPE ray_s2s_requests_total counter\n") == 1


def test_no_nodes_give_an_empty_text() -> None:
    assert merge([]) == ""

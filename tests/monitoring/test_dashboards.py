"""Dashboards and alert rules use metrics that exist."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from s2s_ray.runtime.metrics import RAY_PREFIX, STORAGE, TRAINING

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy" / "prometheus"
DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
# Metrics of Ray 2.60 that dashboards and rules use.
RAY_METRICS = {
    "ray_serve_autoscaling_target_replicas",
    "ray_serve_deployment_queued_queries",
    "ray_serve_health_check_failures_total",
    "ray_serve_num_http_error_requests_total",
    "ray_serve_replica_processing_queries",
}
KEYWORDS = {"and", "or", "unless", "bool", "offset", "ignoring", "group_left", "group_right"}


def metrics_in(expression: str) -> set[str]:
    """Return the names of the metrics in a PromQL expression."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
    bare = re.sub(r"\b(by|on|without|ignoring)\s*\([^)]*\)", "", bare)
    return {name for name in re.findall(r"[a-zA-Z_:][\w:]*\b(?!\s*\()", bare) if name not in KEYWORDS}


def exported() -> dict[str, set[str]]:
    """Return every exported metric by name, with the labels of our own."""
    training = {RAY_PREFIX + name: set(metric.labels) for name, metric in TRAINING.items()}
    return training | {name: set(metric.labels) for name, metric in STORAGE.items()} | service_metrics()


def service_metrics() -> dict[str, set[str]]:
    """Return the service's metrics, read from its code: Ray adds `_total` to counters, a histogram becomes three."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "s2s_ray" / "service").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            kind = getattr(node.func, "id", getattr(node.func, "attr", "")) if isinstance(node, ast.Call) else ""
            if kind in ("Counter", "Gauge", "Histogram") and isinstance(node, ast.Call) and node.args:
                name = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
                suffixes = {"Counter": ["_total"], "Gauge": [""], "Histogram": ["_bucket", "_sum", "_count"]}[kind]
                found |= {f"{RAY_PREFIX}{name}{suffix}": set() for suffix in suffixes}
    return found


def unknown(names: set[str]) -> set[str]:
    """Return the names that nothing exports."""
    return names - exported().keys() - RAY_METRICS


def panels(path: Path) -> list[dict[str, Any]]:
    tree = json.loads(path.read_text())
    return [panel for panel in tree["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """Yield every expression of the dashboards and rules, with its panel or rule."""
    for path in DASHBOARDS:
        for panel in panels(path):
            for target in panel["targets"]:
                yield f"{path.stem}: {panel['title']}", target["expr"]
        for variable in json.loads(path.read_text())["templating"]["list"]:
            if variable["type"] == "query":
                yield (
                    f"{path.stem}: ${variable['name']}",
                    re.sub(r"label_values\((\w+),.*", r"\1", variable["query"]["query"]),
                )
    for group in yaml.safe_load((RULES / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def test_names_are_found_in_expressions() -> None:
    assert metrics_in('sum by (le) (rate(a_bucket{x="b"}[5m])) / on (run) c > 0.5 and time() - d{e=~"f"} unless g') == {
        "a_bucket",
        "c",
        "d",
        "g",
    }


@pytest.mark.parametrize(("where", "expression"), list(queries()))
def test_every_query_names_an_exported_metric(where: str, expression: str) -> None:
    names = metrics_in(expression)
    assert names
    assert not unknown(names)


def test_queries_select_existing_labels() -> None:
    metrics = exported()
    for where, expression in queries():
        for name, inside in re.findall(r"(\w+)\{([^}]*)\}", expression):
            if metrics.get(name):
                assert set(re.findall(r"(\w+)\s*[=!]~?", inside)) <= metrics[name], where


def test_every_gauge_is_on_a_dashboard_or_in_a_rule() -> None:
    used = set().union(*(metrics_in(expression) for _, expression in queries()))
    ours = {RAY_PREFIX + name for name in TRAINING if name not in ("s2s_train_step",)}
    assert not ours - used


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_are_well_formed(path: Path) -> None:
    tree = json.loads(path.read_text())
    assert len({panel["id"] for panel in tree["panels"]}) == len(tree["panels"])
    titles = [panel["title"] for panel in panels(path)]
    taken: set[tuple[int, int]] = set()
    for panel in tree["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, f"{panel['title']} overlaps another panel"
        taken |= cells
    assert all(titles)
    variables = {variable["name"] for variable in tree["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(tree["panels"])))
    assert used == variables, "a variable that nothing uses, or that does not exist"


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    return found


def check(promtool: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([promtool, *words], cwd=folder, capture_output=True, text=True, timeout=60)


def test_every_query_can_be_parsed(promtool: str, tmp_path: Path) -> None:
    rules = [{"record": f"q{number}", "expr": expression} for number, (_, expression) in enumerate(queries())]
    text = yaml.safe_dump({"groups": [{"name": "q", "rules": rules}]}).replace("$run", "x").replace("$sweep", "x")
    (tmp_path / "queries.yaml").write_text(text.replace("$endpoint", "x"))
    done = check(promtool, tmp_path, "check", "rules", "queries.yaml")
    assert done.returncode == 0, done.stderr


def test_alerts_fire_when_they_should(promtool: str) -> None:
    done = check(promtool, RULES, "test", "rules", "alerts_test.yaml")
    assert done.returncode == 0, done.stderr
    done = check(promtool, RULES, "check", "config", "prometheus.yaml")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_silenced_alert_fails_its_test(promtool: str, tmp_path: Path) -> None:
    shutil.copy(RULES / "alerts_test.yaml", tmp_path)
    whole = yaml.safe_load((RULES / "alerts.yaml").read_text())
    count = sum(len(group["rules"]) for group in whole["groups"])
    for number in range(count):
        tree = yaml.safe_load((RULES / "alerts.yaml").read_text())
        rule = [rule for group in tree["groups"] for rule in group["rules"]][number]
        rule["expr"] = f"({rule['expr']}) unless on () vector(1)"
        (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(tree))
        assert check(promtool, tmp_path, "test", "rules", "alerts_test.yaml").returncode != 0, rule["alert"]


def test_each_alert_is_explained() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    explained = re.findall(r"^\| (S2S\w+) \|", page, re.MULTILINE)
    rules = [
        rule["alert"]
        for group in yaml.safe_load((RULES / "alerts.yaml").read_text())["groups"]
        for rule in group["rules"]
    ]
    assert explained == rules

"""`/metrics`: the metrics that every node of the cluster exports about this service.

Ray exports the metrics of all processes of a node at that node. A scraper that can reach the service alone gets them
all here; one that can reach the nodes may use Ray's own endpoints and sees the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

import httpx2
import ray
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

log = logging.getLogger("s2s_ray.service")

PREFIXES = ("ray_s2s_", "ray_serve_")
_TIMEOUT_S = 5.0


async def scrape() -> str:
    """Return the service's metrics of all nodes as Prometheus text, without nodes that do not respond."""
    nodes = await asyncio.to_thread(ray.nodes)
    exporters = [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in nodes if node["Alive"]]
    async with httpx2.AsyncClient(timeout=_TIMEOUT_S, trust_env=False) as http:
        texts = await asyncio.gather(*(_read(http, exporter) for exporter in exporters))
    return await asyncio.to_thread(merge, [text for text in texts if text is not None])


async def _read(http: httpx2.AsyncClient, exporter: str) -> str | None:
    try:
        response = await http.get(f"{exporter}/metrics")
        response.raise_for_status()
    except httpx2.HTTPError as error:
        log.warning("could not read the metrics of %s: %s", exporter, error)
        return None
    return response.text


def merge(texts: Iterable[str]) -> str:
    """Merge the texts of several nodes: each family of this service once, with the samples of all nodes."""
    families: dict[str, Metric] = {}
    for text in texts:
        try:
            read = [family for family in text_string_to_metric_families(text) if family.name.startswith(PREFIXES)]
        except ValueError as error:
            log.warning("left out the metrics of a node that are not Prometheus text: %s", error)
            continue
        for family in read:
            if family.name in families:
                families[family.name].samples.extend(family.samples)
            else:
                families[family.name] = family
    return generate_latest(_Families(families.values())).decode("utf-8")


class _Families(Collector):
    """Families of metrics that were read, for prometheus_client to write."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families

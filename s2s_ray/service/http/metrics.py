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

from s2s_ray.runtime.addresses import http_url

log = logging.getLogger("s2s_ray.service")

PREFIXES = ("ray_s2s_", "ray_serve_")
_TIMEOUT_S = 5.0


async def scrape() -> str:
    """Return the service's metrics of all nodes as Prometheus text, without nodes that do not respond."""
    nodes = await asyncio.to_thread(ray.nodes)
    exporters = [http_url(node["NodeManagerAddress"], node["MetricsExportPort"]) for node in nodes if node["Alive"]]
    async with httpx2.AsyncClient(timeout=_TIMEOUT_S, trust_env=False) as http:
        texts = await asyncio.gather(*(_read(http, exporter) for exporter in exporters))
    return merge(text for text in texts if text is not None)


async def _read(http: httpx2.AsyncClient, exporter: str) -> str | None:
    try:
        response = await http.get(f"{exporter}/metrics")
        response.raise_for_status()
    except httpx2.HTTPError as error:
        log.warning("could not read the metrics of %s: %s", exporter, error)
        return None
    return response.text


def merge(texts: Iterable[str]) -> str:
    """Merge the texts of several nodes: each family of this service once, with the samples of all nodes.

    Lines are moved but not parsed: for one node prometheus_client's parser takes 1.2 s of the process that serves
    requests, this 0.02 s.
    """
    heads: dict[str, dict[str, str]] = {}
    samples: dict[str, list[str]] = {}
    for text in texts:
        family = ""
        for line in text.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                _, keyword, family, *_ = line.split(" ", 3)
                heads.setdefault(family, {}).setdefault(keyword, line)
            elif line and not line.startswith("#"):
                samples.setdefault(family, []).append(line)
    kept = [family for family in heads if family.startswith(PREFIXES)]
    return "".join(f"{line}\n" for family in kept for line in (*heads[family].values(), *samples.get(family, ())))

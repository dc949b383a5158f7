"""`/metrics`: what every node of the cluster exports about this service.

Ray exports the figures of all processes of a node at that node. A scraper that reaches the service alone gets them
all here; one that reaches the nodes may take Ray's own endpoints and sees the same.
"""

from __future__ import annotations

import asyncio
import logging

import httpx2
import ray

log = logging.getLogger("s2s_ray.service")

PREFIXES = ("ray_s2s_", "ray_serve_")
_TIMEOUT_S = 5.0


async def scrape() -> str:
    """Prometheus' text of the service's families, of all nodes; a node that does not answer is left out and logged."""
    nodes = await asyncio.to_thread(ray.nodes)
    places = [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in nodes if node["Alive"]]
    async with httpx2.AsyncClient(timeout=_TIMEOUT_S, trust_env=False) as http:
        texts = await asyncio.gather(*(_read(http, place) for place in places))
    return merge([text for text in texts if text is not None])


async def _read(http: httpx2.AsyncClient, place: str) -> str | None:
    try:
        answer = await http.get(f"{place}/metrics")
        answer.raise_for_status()
    except httpx2.HTTPError as error:
        log.warning("the figures of %s could not be read: %s", place, error)
        return None
    return answer.text


def merge(texts: list[str]) -> str:
    """One text of several: every family once, with the samples of all; families of others are left out."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for text in texts:
        family = ""
        for line in text.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                family = line.split(" ", 3)[2]
                head = heads.setdefault(family, [])
                if not any(known.split(" ", 3)[1] == line.split(" ", 3)[1] for known in head):
                    head.append(line)
            elif line and not line.startswith("#"):
                samples.setdefault(family, []).append(line)
    kept = [family for family in heads if family.startswith(PREFIXES)]
    return "".join(f"{line}\n" for family in kept for line in (*heads[family], *samples.get(family, ())))

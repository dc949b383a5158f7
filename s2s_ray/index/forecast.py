"""How long it takes to index a region, and how large the index becomes, measured before it begins."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import torch

from s2s_ray.errors import UnreadableImageError
from s2s_ray.index import vectors
from s2s_ray.index.build import embed
from s2s_ray.index.region import THUMBNAILS_UP_TO, RegionTiles
from s2s_ray.model.s2s import S2S

_ENTRY_BYTES = 64  # of a tile in `entries.parquet`
_THUMBNAIL_BYTES = 6_000
_CODE_BYTES = 72  # of a tile in a compressed index


class Forecast(NamedTuple):
    """Seconds to make an index in one process, and bytes of the finished index."""

    seconds: float
    bytes: int

    def __str__(self) -> str:
        return f"about {_duration(self.seconds)} in one process, about {_size(self.bytes)}"


def forecast(
    model: S2S, source: RegionTiles, rows: Sequence[int], *, known: int, batch: int, device: str | torch.device
) -> Forecast:
    """Measure one batch in the middle of a region.

    Args:
        model: in evaluation mode, on `device`.
        rows: of the source that are to be embedded.
        known: number of tiles that the index to extend has already.
        batch: tiles embedded at a time.
    """
    size = forecast_bytes(known + len(rows), model.config.descriptor_size, thumbnails=not known)
    if not rows:
        return Forecast(0.0, size)
    middle = rows[len(rows) // 2 :][:batch]
    started = time.perf_counter()
    with suppress(UnreadableImageError):  # its block is read all the same
        source.tile(middle[0])
    per_block = time.perf_counter() - started
    list(embed(model, source, middle[:1], 1, device))  # the first call of a model is slower
    started = time.perf_counter()
    list(embed(model, source, middle, batch, device))
    per_tile = (time.perf_counter() - started) / len(middle)
    passes = 2 if not known and len(rows) <= THUMBNAILS_UP_TO else 1  # of the imagery
    return Forecast(len(rows) * per_tile + passes * source.blocks * per_block, size)


def forecast_bytes(count: int, dimension: int, *, thumbnails: bool) -> int:
    """Return the approximate size of an index with so many tiles."""
    exact = count <= vectors.EXACT_UP_TO
    vector = 4 * dimension if exact else 2 * dimension + _CODE_BYTES
    picture = _THUMBNAIL_BYTES if thumbnails and count <= THUMBNAILS_UP_TO else 0
    return count * (vector + _ENTRY_BYTES + picture)


def _duration(seconds: float) -> str:
    for limit, unit, name in ((100, 1, "s"), (6_000, 60, "min"), (200_000, 3_600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86_400:.0f} days"


def _size(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count < 2e9 else f"{count / 1e9:,.0f} GB"

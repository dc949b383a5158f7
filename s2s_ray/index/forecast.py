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
from s2s_ray.index.pictures import thumbnail_of
from s2s_ray.index.region import THUMBNAILS_UP_TO, RegionTiles
from s2s_ray.model.s2s import S2S

_SAMPLE = 64
_ENTRY_BYTES = 64  # of a tile in `entries.parquet`
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
    """Measure one batch of a block of imagery in the middle of a region.

    Args:
        model: in evaluation mode, on `device`.
        rows: of the source that are to be embedded.
        known: number of tiles that the index to extend has already.
        batch: tiles embedded at a time.
    """
    count, dimension = known + len(rows), model.config.descriptor_size
    stored = 4 * dimension if count <= vectors.EXACT_UP_TO else 2 * dimension + _CODE_BYTES
    stored += _ENTRY_BYTES
    if not rows:
        return Forecast(0.0, count * stored)
    blocks = source.blocks()
    sample = blocks[len(blocks) // 2][: max(batch, _SAMPLE)]
    with suppress(UnreadableImageError):  # opening imagery and reading its first block takes longer
        source.tile(blocks[0][0])
    started = time.perf_counter()
    with suppress(UnreadableImageError):  # its block is read all the same
        source.tile(sample[0])
    per_block = time.perf_counter() - started
    list(embed(model, source, sample[:1], 1, device))  # the first call of a model is slower
    started = time.perf_counter()
    list(embed(model, source, sample, batch, device))
    per_tile = (time.perf_counter() - started) / len(sample)
    reading = per_block * len(blocks) * len(rows) / len(source.ids)
    seconds = per_tile * len(rows) + reading
    if not known and count <= THUMBNAILS_UP_TO:  # the imagery is read again for them
        seconds += reading
        with suppress(UnreadableImageError):
            picture = thumbnail_of(source.tile(sample[0]))
            started = time.perf_counter()
            thumbnail_of(source.tile(sample[0]))
            seconds += (time.perf_counter() - started) * len(rows)
            stored += len(picture)
    return Forecast(seconds, count * stored)


def _duration(seconds: float) -> str:
    for limit, unit, name in ((100, 1, "s"), (6_000, 60, "min"), (200_000, 3_600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86_400:.0f} days"


def _size(count: int) -> str:
    return f"{max(count / 1e6, 1):,.0f} MB" if count < 2e9 else f"{count / 1e9:,.0f} GB"

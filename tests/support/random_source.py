"""A source of random images whose tiles have imagery around them, made faster than any that renders."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

from s2s_ray.config import Config
from s2s_ray.data import prepare, shard
from s2s_ray.data.schema import Pair, Record, Split, TileSize
from s2s_ray.geo.metadata import PhotoMetadata
from s2s_ray.geo.views import ViewGeometry

SIZE = TileSize(64.0, 32)
WIDE = 64
"""Pixels of each tile's imagery, of which the tile is the middle."""


class RandomSource:
    """Pairs of random pixels, 2 m each."""

    def __init__(self, train: int) -> None:
        self.splits: list[Split] = [*["train"] * train, "val", "val", "test", "test"]  # type: ignore[list-item]

    @property
    def tile_size(self) -> TileSize:
        return SIZE

    def views(self, height: int, width: int) -> ViewGeometry:
        return ViewGeometry(height, width, (0.0, 1.0))

    def records(self) -> list[Record]:
        return [Record(f"{split}-{k}", split) for k, split in enumerate(self.splits)]

    def photo(self, record: Record) -> PhotoMetadata:
        return PhotoMetadata()

    def read(self, record: Record, margin_px: int = 0) -> Pair:
        rng = np.random.default_rng(zlib.crc32(record.id.encode()))
        imagery, street = (rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in ((WIDE, WIDE), (32, 80)))
        first, last = (WIDE - SIZE.px) // 2 - margin_px, (WIDE + SIZE.px) // 2 + margin_px
        return Pair(imagery[first:last, first:last], street)


def prepare_random(folder: Path, margin_m: float, train: int = 8) -> Config:
    """Prepare a data set of random pairs with a margin, at 32 x 40, and return its configuration."""
    model = {"height": 32, "width": 40, "channels": 4, "residual_blocks": 1, "discriminator_channels": 4}
    tree = {
        "model": {**model, "street_blocks": (1, 1, 1), "masks": 2},
        "prepare": {"parallel": False, "keep_tiles": True, "margin_m": margin_m},
        "data": {"uri": str(folder / "data")},
        "train": {"storage": str(folder / "runs"), "batch": 4, "epochs": 2, "checkpoint_every": 1},
    }
    config = Config.from_tree(tree)
    with pytest.MonkeyPatch.context() as patch:
        for module in (prepare, shard):
            patch.setattr(module, "open_source", lambda config: RandomSource(train))
        prepare.prepare(config)
    return config

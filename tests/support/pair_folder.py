"""The user's own data, in miniature: small random images and the manifest that lists them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from s2s_ray.config import Config, ManifestSourceConfig


class PairFolder:
    """Small random images on disk, and the manifest that lists them."""

    columns = ("id", "satellite", "street", "split", "latitude", "longitude", "heading")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []
        path.mkdir()

    def add(self, id: str, split: str = "train", tile: int = 24, **columns: object) -> None:
        """List a pair, with a `tile` x `tile` satellite image and a 20 x 44 panorama drawn from its id."""
        generator = np.random.default_rng(list(id.encode()))
        row = {"id": id, "split": split}
        for column, shape in (("satellite", (tile, tile, 3)), ("street", (20, 44, 3))):
            row[column] = f"{id}-{column}.png"
            pixels = generator.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(self.path / row[column])
        self.rows.append(row | {column: str(value) for column, value in columns.items()})

    def source(self) -> ManifestSourceConfig:
        """Write the manifest and return the source that reads it."""
        with (self.path / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)
        return ManifestSourceConfig(uri=str(self.path / "pairs.csv"))

    def config(self, uri: object, **prepare: object) -> Config:
        """Write the manifest and return the configuration that prepares it to a URI, at 32 x 40."""
        tree = {
            "model": {"height": 32, "width": 40},
            "source": self.source().model_dump(),
            "data": {"uri": str(uri)},
            "prepare": {"parallel": False, **prepare},
        }
        return Config.from_tree(tree)

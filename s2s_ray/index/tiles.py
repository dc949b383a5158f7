"""Tiles to index: those of a data set, or those of a manifest without panoramas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from torch import Tensor

from s2s_ray import storage
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.entries import COLUMNS, entries_table
from s2s_ray.data.schema import Record, Split
from s2s_ray.data.sources.manifest import ManifestSource
from s2s_ray.errors import ReferenceIndexError
from s2s_ray.geo.views import ViewGeometry
from s2s_ray.index.info import RegionInfo
from s2s_ray.index.pictures import write_pictures


class TileSource(Protocol):
    """Tiles in a fixed order; rows count from 0. Workers receive a pickled copy."""

    uri: str

    @property
    def split(self) -> Split | None:
        """Split of the data set, if the tiles are those of one."""

    @property
    def region(self) -> RegionInfo | None:
        """The region that the tiles fill, if they lie on a lattice."""

    @property
    def digest(self) -> str:
        """SHA-256 of the description of the tiles, recorded in `index.json`."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides what `polar` returns, so that stored descriptors can be matched to it."""

    @property
    def ids(self) -> Sequence[str]:
        """Id of each tile."""

    def polar(self, row: int) -> Tensor:
        """Return a tile as the model sees it, uint8 3 H W.

        Raises:
            UnreadableImageError, ViewError: the tile cannot be used; the index is built without it.
        """

    def entries(self, rows: Sequence[int]) -> pa.Table:
        """Return the rows of `entries.parquet` for some tiles."""

    def pictures(self, rows: Sequence[int]) -> Callable[[Path], None] | None:
        """Return a function that writes the pictures of some tiles into a folder; None if the source has none."""


class DatasetTiles:
    """The tiles of one split of a prepared data set.

    Raises:
        ReferenceIndexError: the split is empty.
    """

    region = None

    def __init__(self, dataset: PairDataset, split: Split | None = None) -> None:
        """`split`: name of the split that `dataset` reads, recorded in `index.json`."""
        if not len(dataset):
            raise ReferenceIndexError(f"data set {dataset.uri} has no pairs to index (split: {split})")
        self.uri, self.split, self._dataset = dataset.uri, split, dataset

    @property
    def digest(self) -> str:
        return self._dataset.info.digest

    @property
    def fingerprint(self) -> str:
        return storage.sha256(f"{self.digest} {self.split}".encode())

    @property
    def ids(self) -> Sequence[str]:
        return self._dataset.ids

    def polar(self, row: int) -> Tensor:
        """Return a tile, uint8 3 H W. Raises DatasetError if it cannot be decoded: the data set is damaged."""
        return self._dataset[row].polar

    def entries(self, rows: Sequence[int]) -> pa.Table:
        """Return the rows of `entries.parquet` for some tiles."""
        return entries_table(self._dataset).take(pa.array(rows, pa.int64()))

    def pictures(self, rows: Sequence[int]) -> Callable[[Path], None] | None:
        """Return the function that writes thumbnails and examples; all tiles of a data set can be read."""
        return partial(write_pictures, self._dataset)


class ManifestTiles:
    """The tiles that a manifest lists or cuts out of imagery, without panoramas.

    Raises:
        ManifestError: the manifest cannot be used, on first use of its rows.
    """

    split: Split | None = None
    region = None

    def __init__(self, source: ManifestSource, views: ViewGeometry) -> None:
        """`source` is opened with `panoramas=False`; `views` are those of the model's checkpoint."""
        self.uri, self._source, self._views = source.uri, source, views

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri, "_source": self._source, "_views": self._views}  # workers read the manifest themselves

    @cached_property
    def _records(self) -> Sequence[Record]:
        return self._source.records()

    @cached_property
    def digest(self) -> str:
        return storage.sha256(storage.read_bytes(self.uri))

    @property
    def fingerprint(self) -> str:
        return storage.sha256(f"{self.digest} {self._source.config.model_dump_json()} {self._views!r}".encode())

    @property
    def ids(self) -> Sequence[str]:
        return [record.id for record in self._records]

    def polar(self, row: int) -> Tensor:
        """Return a tile, uint8 3 H W. Raises UnreadableImageError, ViewError."""
        return self._views.satellite(self._source.tile(self._records[row]), "north-up")

    def entries(self, rows: Sequence[int]) -> pa.Table:
        """Return the rows of `entries.parquet` for some tiles."""
        records = [self._records[row] for row in rows]
        return pa.table({name: [getattr(record, name) for record in records] for name in COLUMNS.names}, schema=COLUMNS)

    def pictures(self, rows: Sequence[int]) -> None:
        """Return None: a manifest gives no pictures."""

"""The reference index: descriptors of a region's satellite tiles and where the tiles are, searched by descriptor.

A saved index is a published directory: the files of its `s2s_ray.index.vectors`, `entries.parquet` (one row per tile,
in the order of the vectors) and `index.json`, which names the checkpoint whose descriptors these are; the pictures of
`s2s_ray.index.pictures` where it was built from a data set.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from s2s_ray import storage
from s2s_ray.data.entries import COLUMNS as COLUMNS
from s2s_ray.errors import NotFoundError, ReferenceIndexError
from s2s_ray.geo.prior import Prior
from s2s_ray.index import vectors
from s2s_ray.index.pictures import Pictures, write_pictures
from s2s_ray.index.vectors import INDEX_FILE as INDEX_FILE
from s2s_ray.index.vectors import Descriptors as Descriptors
from s2s_ray.index.vectors import Kind, Vectors

if TYPE_CHECKING:  # a process that only searches needs neither the model nor the data set
    from s2s_ray.data.dataset import PairDataset

ENTRIES_FILE = "entries.parquet"
INFO_FILE = "index.json"


class Match(NamedTuple):
    """One reference tile found for a query. Positions that are not known are None.

    `rank` counts from 1. `descriptor_distance` is the squared Euclidean distance of the unit descriptors,
    2 - 2 cos, in [0, 4].
    """

    rank: int
    id: str
    latitude: float | None
    longitude: float | None
    easting: float | None
    northing: float | None
    zone: int | None
    descriptor_distance: float


class IndexInfo(BaseModel):
    """What `index.json` says: the kind of search structure and what it was built from."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    kind: Kind = "flat"
    dimension: int
    count: int
    checkpoint: str
    """Fingerprint of the checkpoint (sha256 of its weights) that made the descriptors."""
    dataset: str
    dataset_digest: str
    split: str | None = None

    def require(self, dimension: int, checkpoint: str | None = None) -> None:
        """Refuse to serve a model that did not make these descriptors.

        Args:
            dimension: the model's descriptor size.
            checkpoint: fingerprint of the model's checkpoint, where it has one.
        """
        if dimension != self.dimension:
            raise ReferenceIndexError(
                f"the index holds descriptors of {self.dimension} numbers, the model makes {dimension}: "
                "build the index with this model's checkpoint"
            )
        if checkpoint is not None and checkpoint != self.checkpoint:
            raise ReferenceIndexError(
                f"the index was built with checkpoint {self.checkpoint[:8]}, the model is checkpoint "
                f"{checkpoint[:8]}: build the index with this model's checkpoint"
            )


class ReferenceIndex:
    """Unit descriptors that are searched by inner product, with the place of each."""

    def __init__(self, info: IndexInfo, found_by: Vectors, entries: pa.Table, pictures: Pictures | None = None) -> None:
        """`entries` has one row per vector, in their order, with the columns of `entries.parquet`."""
        count, dimension = found_by.shape
        if not (dimension == info.dimension and count == entries.num_rows == info.count):
            raise ReferenceIndexError(
                f"{INDEX_FILE} has {count} vectors of {dimension} numbers and {ENTRIES_FILE} has "
                f"{entries.num_rows} rows, but {INFO_FILE} says {info.count} of {info.dimension}"
            )
        self.info = info
        self._vectors = found_by
        self._entries = entries.combine_chunks()
        self._latitudes, self._longitudes = (_floats(entries.column(name)) for name in ("latitude", "longitude"))
        self.pictures = pictures
        self._write_pictures: Callable[[Path], None] | None = None

    @classmethod
    def build(cls, info: IndexInfo, descriptors: Descriptors | NDArray[np.float16], entries: pa.Table) -> Self:
        """Index unit descriptors, count x dimension; `info.kind` becomes what suits their number."""
        built = vectors.build(descriptors)
        return cls(info.model_copy(update={"kind": built.kind}), built, entries)

    def with_more(self, descriptors: Descriptors, entries: pa.Table) -> Self:
        """A new index with more tiles at the end, without training again; pictures are not carried over.

        Args:
            descriptors: n x dimension, of the same checkpoint.
            entries: n rows with the columns of `entries.parquet`.

        Raises:
            ReferenceIndexError: ids that are in the index already.
        """
        known = self.ids()
        twice = [id for id in entries.column("id").to_pylist() if id in known]
        if twice:
            raise ReferenceIndexError(f"{len(twice)} tiles are in the index already: {', '.join(twice[:5])}")
        more = self._vectors.with_more(descriptors)
        info = self.info.model_copy(update={"count": self.info.count + len(descriptors)})
        return type(self)(info, more, pa.concat_tables([self._entries, entries.cast(self._entries.schema)]))

    def ids(self) -> frozenset[str]:
        """Ids of its tiles."""
        return frozenset(self._entries.column("id").to_pylist())

    def __len__(self) -> int:
        return self.info.count

    def row(self, id: str) -> int | None:
        """The row of a tile, the first where an id stands twice; None where there is none."""
        found = int(pc.index(self._entries.column("id"), id).as_py())
        return None if found < 0 else found

    def search(self, descriptors: Descriptors, k: int, prior: Prior | None = None) -> list[list[Match]]:
        """The k nearest tiles of each query, nearest first; equal distances in the order of the data set.

        Args:
            descriptors: B x dimension, unit length.
            k: 1 to the number of tiles.
            prior: only tiles inside it are found, fewer than k where it holds fewer; tiles whose position is not
                known are outside.

        Raises:
            ReferenceIndexError: another shape, numbers that are not finite, k out of range.
        """
        queries = np.ascontiguousarray(descriptors, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.info.dimension:
            raise ReferenceIndexError(
                f"descriptors have shape {queries.shape}: this index takes B x {self.info.dimension}"
            )
        if not np.isfinite(queries).all():
            raise ReferenceIndexError("descriptors hold numbers that are not finite")
        if not 1 <= k <= self.info.count:
            raise ReferenceIndexError(f"k={k}: expected 1 to {self.info.count}, the tiles of this index")
        if not len(queries):
            return []
        inside = None if prior is None else np.flatnonzero(prior.mask(self._latitudes, self._longitudes))
        k = k if inside is None else min(k, len(inside))
        if not k:
            return [[] for _ in queries]
        similarities, rows = self._vectors.search(queries, k, inside)
        distances = np.clip(2 - 2 * similarities.astype(np.float64), 0, 4)
        order = np.lexsort((rows, distances), axis=1)
        rows, distances = np.take_along_axis(rows, order, 1), np.take_along_axis(distances, order, 1)
        return [self._matches(*one) for one in zip(rows, distances, strict=True)]

    def _matches(self, rows: NDArray[np.int64], distances: NDArray[np.float64]) -> list[Match]:
        places = self._entries.take(pa.array(rows)).to_pylist()
        return [
            Match(rank=rank, **place, descriptor_distance=float(distance))
            for rank, (place, distance) in enumerate(zip(places, distances, strict=True), start=1)
        ]

    def save(self, uri: str) -> None:
        """Publish the index at a URI. Raises StorageError."""
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            self._vectors.save(directory)
            pq.write_table(self._entries, directory / ENTRIES_FILE)
            (directory / INFO_FILE).write_text(self.info.model_dump_json(indent=2) + "\n", encoding="utf-8")
            if self._write_pictures is not None:
                self._write_pictures(directory)
            storage.publish(directory, uri)

    def draw_from(self, dataset: PairDataset) -> None:
        """Save thumbnails and examples of the data set it was built from with it."""
        self._write_pictures = partial(write_pictures, dataset)

    @classmethod
    def load(cls, uri: str) -> Self:
        """Read a published index, its checksums verified.

        Raises:
            StorageError: nothing complete there, a file missing or failing its checksum.
            ReferenceIndexError: an index that this version does not read, or that contradicts itself.
        """
        # What is mapped into memory stays there after its file has lost its name.
        with tempfile.TemporaryDirectory() as folder:
            directory = storage.on_this_machine(uri, Path(folder))
            missing = [name for name in (INFO_FILE, INDEX_FILE, ENTRIES_FILE) if not (directory / name).is_file()]
            if missing:
                raise NotFoundError(f"{uri} was published without {', '.join(missing)}: it is no index")
            info = _parse_info(json.loads((directory / INFO_FILE).read_bytes()), uri)
            entries = pq.read_table(directory / ENTRIES_FILE, schema=COLUMNS)
            return cls(info, vectors.load(info.kind, directory), entries, Pictures(directory))


def read_info(uri: str) -> IndexInfo:
    """`index.json` of a published index, without its vectors. Raises StorageError, ReferenceIndexError."""
    if not storage.is_complete(uri):
        raise ReferenceIndexError(f"{uri} holds no complete index: build one with `s2s build-index`")
    return _parse_info(storage.read_json(storage.join(uri, INFO_FILE)), uri)


def _floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """A column with NaN for what is null."""
    values: NDArray[np.float64] = column.cast(pa.float64()).fill_null(float("nan")).to_numpy()
    return values


def _parse_info(tree: object, uri: str) -> IndexInfo:
    try:
        return IndexInfo.model_validate(tree)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors())
        raise ReferenceIndexError(f"{uri} is not an index this version reads ({faults})") from None

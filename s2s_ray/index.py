"""The reference index: descriptors of a region's satellite tiles and where the tiles are, searched by descriptor.

A saved index is a published directory: the files of its `s2s_ray.vectors`, `entries.parquet` (one row per tile, in
the order of the vectors) and `index.json`, which names the checkpoint whose descriptors these are; the pictures of
`s2s_ray.pictures` where it was built from a data set.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from s2s_ray import storage, vectors
from s2s_ray.pictures import Pictures, write_pictures
from s2s_ray.prior import Prior
from s2s_ray.vectors import INDEX_FILE as INDEX_FILE
from s2s_ray.vectors import Descriptors as Descriptors
from s2s_ray.vectors import Kind, Vectors

if TYPE_CHECKING:  # a process that only searches needs neither the model nor the data set
    from s2s_ray.data.dataset import PairDataset
    from s2s_ray.data.schema import Split
    from s2s_ray.data.sources.manifest import ManifestSource
    from s2s_ray.data.views import ViewGeometry
    from s2s_ray.model.s2s import S2S

ENTRIES_FILE = "entries.parquet"
INFO_FILE = "index.json"

_COLUMNS = pa.schema(
    [
        ("id", pa.string()),
        ("latitude", pa.float64()),
        ("longitude", pa.float64()),
        ("easting", pa.float64()),
        ("northing", pa.float64()),
        ("zone", pa.int32()),
    ]
)


class ReferenceIndexError(ValueError):
    """An index that cannot be used or asked so; the message names it and what does not fit."""


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

    def with_more(self, descriptors: Descriptors, entries: pa.Table, folder: Path) -> Self:
        """A new index with more tiles at the end, without training again; pictures are not carried over.

        Args:
            descriptors: n x dimension, of the same checkpoint.
            entries: n rows with the columns of `entries.parquet`; ids that are in the index already are refused.
            folder: where files go that are too large for memory; it must outlive the index.
        """
        known = set(self._entries.column("id").to_pylist())
        twice = [id for id in entries.column("id").to_pylist() if id in known]
        if twice:
            raise ReferenceIndexError(f"{len(twice)} tiles are in the index already: {', '.join(twice[:5])}")
        more = self._vectors.with_more(descriptors, folder)
        info = self.info.model_copy(update={"count": self.info.count + len(descriptors)})
        return type(self)(info, more, pa.concat_tables([self._entries, entries.cast(self._entries.schema)]))

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
                raise storage.NotFoundError(f"{uri} was published without {', '.join(missing)}: it is no index")
            info = _parse_info(json.loads((directory / INFO_FILE).read_bytes()), uri)
            entries = pq.read_table(directory / ENTRIES_FILE, schema=_COLUMNS)
            return cls(info, vectors.load(info.kind, directory), entries, Pictures(directory))


def read_info(uri: str) -> IndexInfo:
    """`index.json` of a published index, without its vectors. Raises StorageError, ReferenceIndexError."""
    if not storage.is_complete(uri):
        raise ReferenceIndexError(f"{uri} holds no complete index: build one with `s2s build-index`")
    return _parse_info(storage.read_json(storage.join(uri, INFO_FILE)), uri)


@torch.inference_mode()
def build_index(
    model: S2S,
    dataset: PairDataset,
    *,
    checkpoint_fingerprint: str,
    batch: int = 64,
    device: str | torch.device = "cpu",
    split: Split | None = None,
) -> ReferenceIndex:
    """Embed every satellite tile of a data set and index the descriptors.

    Args:
        model: in evaluation mode; it is moved to `device`.
        checkpoint_fingerprint: of the checkpoint the model was loaded from (`registry.fingerprint`).
        batch: tiles embedded at a time.
        split: which one of the data set this is, for the record.

    Raises:
        ReferenceIndexError: a data set without tiles.
    """
    assert not model.training, "descriptors of a model in training mode depend on the batch"
    if not len(dataset):
        raise ReferenceIndexError(f"data set {dataset.uri} has no pairs to index (split: {split})")
    model.to(device)
    descriptors = np.empty((len(dataset), model.config.descriptor_size), np.float32)
    for start in range(0, len(dataset), batch):
        rows = range(start, min(start + batch, len(dataset)))
        polar = torch.stack([dataset[row].polar for row in rows]).to(device)
        descriptors[rows.start : rows.stop] = model.embed_satellite(polar).float().cpu().numpy()
    info = IndexInfo(
        dimension=model.config.descriptor_size,
        count=len(dataset),
        checkpoint=checkpoint_fingerprint,
        dataset=dataset.uri,
        dataset_digest=dataset.manifest.digest,
        split=split,
    )
    index = ReferenceIndex.build(info, descriptors, entries_table(dataset))
    index.draw_from(dataset)
    return index


@torch.inference_mode()
def index_tiles(
    model: S2S,
    views: ViewGeometry,
    source: ManifestSource,
    *,
    checkpoint_fingerprint: str,
    batch: int = 64,
    device: str | torch.device = "cpu",
) -> tuple[ReferenceIndex, list[str]]:
    """Index the satellite tiles of a region's own list, without panoramas and without a data set.

    Args:
        model: in evaluation mode; it is moved to `device`.
        views: of the model's checkpoint.
        source: opened with `panoramas=False`.
        checkpoint_fingerprint, batch: as in `build_index`.

    Returns: the index, and a line for each tile that is not in it because it cannot be read.

    Raises:
        ManifestError: a list that cannot be used. ReferenceIndexError: not one tile can be read.
    """
    from s2s_ray.data.schema import UnreadableImage
    from s2s_ray.data.views import ViewError
    from s2s_ray.progress import progress

    assert not model.training, "descriptors of a model in training mode depend on the batch"
    model.to(device)
    records, faults, parts, kept = source.records(), [], [], []
    with progress(len(records), "index", "tiles") as advance:
        for start in range(0, len(records), batch):
            polar = []
            for record in records[start : start + batch]:
                try:
                    polar.append(views.satellite(source.tile(record), "north-up"))
                    kept.append(record)
                except (UnreadableImage, ViewError) as error:
                    faults.append(f"{record.id}: {error}")
            if polar:
                parts.append(model.embed_satellite(torch.stack(polar).to(device)).float().cpu().numpy())
            advance(len(records[start : start + batch]))
    if not kept:
        raise ReferenceIndexError(f"{source.uri}: not one tile can be read; the first: {'; '.join(faults[:3])}")
    info = IndexInfo(
        dimension=model.config.descriptor_size,
        count=len(kept),
        checkpoint=checkpoint_fingerprint,
        dataset=source.uri,
        dataset_digest=storage.sha256(storage.read_bytes(source.uri)),
    )
    columns = {name: [getattr(record, name) for record in kept] for name in _COLUMNS.names}
    return ReferenceIndex.build(info, np.concatenate(parts), pa.table(columns, schema=_COLUMNS)), faults


def entries_table(dataset: PairDataset) -> pa.Table:
    """The rows of `entries.parquet`; what the data set does not know is null."""
    columns = {
        "id": list(dataset.ids),
        "latitude": _nullable(dataset.latlon[:, 0]),
        "longitude": _nullable(dataset.latlon[:, 1]),
        "easting": _nullable(dataset.positions[:, 0]),
        "northing": _nullable(dataset.positions[:, 1]),
        "zone": [int(zone) or None for zone in dataset.zones],
    }
    return pa.table(columns, schema=_COLUMNS)


def _floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """A column with NaN for what is null."""
    values: NDArray[np.float64] = column.cast(pa.float64()).fill_null(float("nan")).to_numpy()
    return values


def _nullable(values: NDArray[np.float64]) -> Sequence[float | None]:
    return [None if math.isnan(value) else float(value) for value in values]


def _parse_info(tree: object, uri: str) -> IndexInfo:
    try:
        return IndexInfo.model_validate(tree)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors())
        raise ReferenceIndexError(f"{uri} is not an index this version reads ({faults})") from None

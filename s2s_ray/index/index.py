"""The reference index: descriptors of a region's satellite tiles and their positions, searched by descriptor.

A saved index is a published directory: the files of its `s2s_ray.index.vectors`, `entries.parquet` (one row per tile,
in the order of the vectors), `index.json` (`s2s_ray.index.info`), and the files of `s2s_ray.index.pictures` if it was
built from a data set.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from s2s_ray import storage
from s2s_ray.data.entries import COLUMNS
from s2s_ray.errors import DamagedError, DescriptorError, InputError, NotFoundError, ReferenceIndexError
from s2s_ray.geo.images import Descriptors
from s2s_ray.geo.numbers import whole
from s2s_ray.geo.prior import Prior
from s2s_ray.geo.utm import with_degrees
from s2s_ray.index import vectors
from s2s_ray.index.info import INFO_FILE, IndexInfo, RegionInfo
from s2s_ray.index.pictures import Pictures
from s2s_ray.index.vectors import INDEX_FILE, Vectors
from s2s_ray.secrets import masked_tree

ENTRIES_FILE = "entries.parquet"


class Match(NamedTuple):
    """One reference tile found for a query. Unknown positions are None.

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


class ReferenceIndex:
    """Unit descriptors, searched by inner product, and the position of each tile.

    Attributes:
        info: the content of `index.json`.
        positions: latitude and longitude of each tile in degrees, float64 N 2; NaN if unknown.
        pictures: those of a loaded index.
    """

    def __init__(
        self,
        info: IndexInfo,
        vectors: Vectors,
        entries: pa.Table,
        pictures: Pictures | None = None,
        write_pictures: Callable[[Path], None] | None = None,
    ) -> None:
        """Check that the parts fit together.

        Args:
            entries: one row per vector, in their order, with the columns of `entries.parquet`.
            pictures: those of a loaded index.
            write_pictures: writes the pictures of a new index into a folder when it is saved.

        Raises:
            ReferenceIndexError: the parts contradict each other.
        """
        count, dimension = vectors.shape
        if not (dimension == info.dimension and count == entries.num_rows == info.count):
            raise ReferenceIndexError(
                f"{INDEX_FILE} has {count} vectors of {dimension} numbers and {ENTRIES_FILE} has "
                f"{entries.num_rows} rows, but {INFO_FILE} says {info.count} of {info.dimension}"
            )
        self.info = info
        self.pictures = pictures
        self._vectors = vectors
        self._entries = entries.combine_chunks()
        degrees, plane = (
            np.stack([_floats(entries.column(name)) for name in names], axis=1)
            for names in (("latitude", "longitude"), ("easting", "northing"))
        )
        self.positions = with_degrees(degrees, plane, entries.column("zone").fill_null(0).to_numpy())
        self._write_pictures = write_pictures

    @classmethod
    def build(
        cls,
        info: IndexInfo,
        descriptors: Descriptors | NDArray[np.float16],
        entries: pa.Table,
        write_pictures: Callable[[Path], None] | None = None,
    ) -> Self:
        """Index unit descriptors, count x dimension; `info.kind` becomes the kind that suits their number."""
        built = vectors.build(descriptors)
        return cls(info.model_copy(update={"kind": built.kind}), built, entries, write_pictures=write_pictures)

    def with_more(self, descriptors: Descriptors, entries: pa.Table, region: RegionInfo | None = None) -> Self:
        """Return a new index with more tiles at the end; nothing is trained again and pictures are not carried over.

        Args:
            descriptors: n x dimension, of the same checkpoint.
            entries: n rows with the columns of `entries.parquet`.
            region: the region that the tiles fill, joined to that of this index.

        Raises:
            ReferenceIndexError: ids that are in the index already, or a region that does not fit.
        """
        known = self.ids()
        repeated = [id for id in entries.column("id").to_pylist() if id in known]
        if repeated:
            raise ReferenceIndexError(f"{len(repeated)} tiles are in the index already: {', '.join(repeated[:5])}")
        more = self._vectors.with_more(descriptors)
        count, joined = self.info.count + len(descriptors), self.info.with_region(region)
        info = self.info.model_copy(update={"count": count, "region": joined})
        return type(self)(info, more, pa.concat_tables([self._entries, entries.cast(self._entries.schema)]))

    def ids(self) -> frozenset[str]:
        """Return the ids of all tiles."""
        return frozenset(self._entries.column("id").to_pylist())

    def __len__(self) -> int:
        return self.info.count

    def row(self, id: str) -> int | None:
        """Return the row of a tile, the first of repeated ids; None if there is no such tile."""
        found = int(pc.index(self._entries.column("id"), id).as_py())
        return None if found < 0 else found

    def search(self, descriptors: Descriptors, k: int, prior: Prior | None = None) -> list[list[Match]]:
        """Return the k nearest tiles of each query, nearest first; equal distances in the order of the data set.

        Args:
            descriptors, k, prior: as in `search_rows`.

        Raises:
            DescriptorError, InputError: as `search_rows` does.
        """
        similarities, rows = self.search_rows(descriptors, k, prior)
        return [self.matches(*one) for one in zip(rows, similarities, strict=True)]

    def search_rows(
        self, descriptors: Descriptors, k: int, prior: Prior | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the k most similar tiles of each query as rows of the index: one search for all queries.

        Args:
            descriptors: B x dimension, unit length.
            k: 1 to the number of tiles.
            prior: only tiles inside it are found, fewer than k if it holds fewer; tiles without a position are
                outside.

        Returns:
            Cosines and rows, each B k, the most similar first and equal ones by row; k is the number of tiles found.

        Raises:
            DescriptorError: the wrong shape, or numbers that are not finite.
            InputError: k is not a whole number, or out of range.
        """
        queries = np.ascontiguousarray(descriptors, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.info.dimension:
            raise DescriptorError(f"descriptors have shape {queries.shape}: this index needs B x {self.info.dimension}")
        if not np.isfinite(queries).all():
            raise DescriptorError("descriptors hold numbers that are not finite")
        k = whole("k", k)
        if not 1 <= k <= self.info.count:
            raise InputError(f"k={k}: expected 1 to {self.info.count}, the number of tiles of this index")
        inside = None if prior is None else np.flatnonzero(prior.mask(*self.positions.T))
        k = k if inside is None else min(k, len(inside))
        if not len(queries) or not k:
            return np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        similarities, rows = self._vectors.search(queries, k, inside)
        similarities = np.clip(similarities, -1, 1)
        order = np.lexsort((rows, -similarities), axis=1)
        return np.take_along_axis(similarities, order, 1), np.take_along_axis(rows, order, 1)

    def matches(self, rows: NDArray[np.int64], similarities: NDArray[np.float32]) -> list[Match]:
        """Return the tiles in some rows as matches, ranked in this order.

        Args:
            rows: n, of the index.
            similarities: n, the cosine of each with the query.
        """
        entries = self._entries.take(pa.array(rows)).to_pylist()
        for entry, (latitude, longitude) in zip(entries, self.positions[rows].tolist(), strict=True):
            if entry["latitude"] is None and not math.isnan(latitude):
                entry |= {"latitude": latitude, "longitude": longitude}
        distances = 2 - 2 * np.clip(similarities, -1, 1).astype(np.float64)
        return [
            Match(rank=rank, **entry, descriptor_distance=float(distance))
            for rank, (entry, distance) in enumerate(zip(entries, distances, strict=True), start=1)
        ]

    def descriptors(self, rows: NDArray[np.int64]) -> Descriptors:
        """Return the descriptors of the tiles in some rows, n x dimension; of half precision in a compressed index."""
        return self._vectors.rows(np.asarray(rows, np.int64))

    def similarities(self, rows: NDArray[np.int64], descriptors: Descriptors) -> NDArray[np.float32]:
        """Return the cosines of the tiles in some rows with unit descriptors B x dimension, n B."""
        return self._vectors.products(np.asarray(rows, np.int64), descriptors)

    def save(self, uri: str, *, replace: bool = False) -> None:
        """Publish the index at a URI.

        Args:
            uri: a new folder; an equal index there is left alone.
            replace: replace another index there. Those who read it find the former one or this one, never a mix.

        Raises:
            ReferenceIndexError: something else than an index is published there.
            ConflictError: another index is there, and `replace` is false; or another process is writing one.
            StorageError: the index cannot be written.
        """
        require_place(uri)
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            self._vectors.save(directory)
            pq.write_table(self._entries, directory / ENTRIES_FILE)
            # The address of the data set may come from an index that an earlier version wrote.
            storage.write_json(str(directory / INFO_FILE), masked_tree(self.info.tree()))
            if self._write_pictures is not None:
                self._write_pictures(directory)
            storage.publish(directory, uri, replace=replace)

    @classmethod
    def load(cls, uri: str) -> Self:
        """Read a published index and verify its checksums.

        Raises:
            StorageError: nothing complete at the URI, or a file that is missing, damaged or fails its checksum.
            ReferenceIndexError: an index of a newer version, or one that contradicts itself.
        """
        # A mapped file stays readable after its name is gone.
        with tempfile.TemporaryDirectory() as folder:
            return storage.with_manifest(uri, lambda manifest: cls._load(uri, manifest, Path(folder)))

    @classmethod
    def _load(cls, uri: str, manifest: storage.Manifest, into: Path) -> Self:
        missing = [name for name in (INFO_FILE, INDEX_FILE, ENTRIES_FILE) if name not in manifest.files]
        if missing:
            raise NotFoundError(f"{uri} was published without {', '.join(missing)}: it is not an index")
        directory = storage.local_copy(uri, manifest, into)
        tree = storage.read_json(str(directory / INFO_FILE))
        info = IndexInfo.parse(tree, storage.join(uri, INFO_FILE))
        try:
            entries = pq.read_table(directory / ENTRIES_FILE, schema=COLUMNS)
        except (pa.ArrowException, OSError) as error:
            raise DamagedError(f"{uri}/{ENTRIES_FILE} cannot be read ({error}): build the index again") from None
        return cls(info, vectors.load(info.kind, directory), entries, Pictures(directory, manifest.files))


def require_place(uri: str) -> None:
    """Check that an index may be published at a URI: that nothing else is.

    Raises:
        ReferenceIndexError: something else is published there, or a file `manifest.json` of something else is there.
        StorageError: it cannot be read.
    """
    path = storage.join(uri, storage.MANIFEST)
    advice = "choose another folder for the index"
    try:
        names = storage.read_manifest(uri).files
    except NotFoundError:
        return
    except DamagedError as error:
        raise ReferenceIndexError(f"{path} does not list the files of an index: {advice} ({error})") from None
    if INFO_FILE not in names:
        raise ReferenceIndexError(f"{uri} holds {', '.join(sorted(names)[:3])}, which is not an index: {advice}")


def _floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Return a column with NaN for null."""
    values: NDArray[np.float64] = column.cast(pa.float64()).fill_null(float("nan")).to_numpy()
    return values

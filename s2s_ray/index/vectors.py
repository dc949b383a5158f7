"""The vectors of a reference index and how they are searched: exactly, or compressed for galleries of a million.

A compressed search takes two steps: a FAISS index of a few dozen bytes per tile (PCA, inverted lists, 4-bit product
quantiser) selects candidates, then their half-precision descriptors, in a memory-mapped file, decide. A process
therefore needs little memory for itself and reads only the candidates of the file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, Self

import faiss
import numpy as np
from numpy.typing import DTypeLike, NDArray

from s2s_ray.errors import DamagedError
from s2s_ray.geo.images import Descriptors
from s2s_ray.index.info import Kind

Found = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Similarities and rows, B k each, the most similar first."""

INDEX_FILE = "index.faiss"
HALVES_FILE = "vectors.f16"
EXACT_UP_TO = 50_000
"""Largest gallery that is searched exactly."""

_TRAINING_ROWS = 65_536
_REDUCED = 128
_CANDIDATES = 400
_PROBED = 0.5  # of the lists
_EXACT_ROWS = 20_000  # an area with no more tiles is searched exactly
_CHUNK = 16_384
_PRODUCT_FROM = 20  # queries; FAISS, too, multiplies matrices from there on, but slower and not within an area
_PRODUCT_FROM_K = 256  # results of a query; FAISS would need longer for its heap than for the products
_AT_ONCE = 128  # queries, to bound the memory for their products
_IN_MEMORY_BYTES = 500_000_000


class Vectors(Protocol):
    """Unit vectors that can be searched, N x D."""

    kind: Kind

    @property
    def shape(self) -> tuple[int, int]: ...
    def search(self, queries: Descriptors, k: int, inside: NDArray[np.int64] | None) -> Found:
        """Return the k most similar rows of each query, only rows in `inside` if it is given."""

    def rows(self, rows: NDArray[np.int64]) -> Descriptors:
        """Return the vectors in some rows, n x D."""

    def products(self, rows: NDArray[np.int64], queries: Descriptors) -> NDArray[np.float32]:
        """Return the inner products of the vectors in some rows with queries, n B."""

    def with_more(self, descriptors: Descriptors) -> Self:
        """Return a copy with more rows at the end; nothing is trained again."""

    def save(self, folder: Path) -> None:
        """Write the files of the index."""


class FlatVectors:
    """Exact search by inner product."""

    kind: Kind = "flat"

    def __init__(self, index: faiss.Index) -> None:
        self._index = index

    @classmethod
    def build(cls, descriptors: Descriptors) -> Self:
        """Index N x D unit descriptors."""
        index = faiss.IndexFlatIP(descriptors.shape[1])
        index.add(np.ascontiguousarray(descriptors, np.float32))
        return cls(index)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the files of an index. Raises DamagedError."""
        return cls(_read_index(folder / INDEX_FILE))

    @property
    def shape(self) -> tuple[int, int]:
        return self._index.ntotal, self._index.d

    def search(self, queries: Descriptors, k: int, inside: NDArray[np.int64] | None) -> Found:
        """Return the k most similar rows of each query, see `Vectors`."""
        if len(queries) >= _PRODUCT_FROM or k >= _PRODUCT_FROM_K:
            return self._multiply(queries, k, inside)
        selected = None
        if inside is not None:
            selected = faiss.SearchParameters()
            selected.sel = selector = faiss.IDSelectorBatch(inside)  # noqa: F841 - FAISS keeps no reference
        similarities, rows = self._index.search(queries, k, params=selected)
        return similarities, rows

    def rows(self, rows: NDArray[np.int64]) -> Descriptors:
        """Return the vectors in some rows, n x D."""
        return np.asarray(self._all()[rows])

    def products(self, rows: NDArray[np.int64], queries: Descriptors) -> NDArray[np.float32]:
        """Return the inner products of the vectors in some rows with queries, n B; all rows are not copied."""
        vectors = self._all()
        whole = len(rows) == len(vectors) and bool((np.diff(rows) == 1).all())
        return np.asarray((vectors if whole else vectors[rows]) @ queries.T)

    def with_more(self, descriptors: Descriptors) -> Self:
        """Return a copy with more rows at the end."""
        index = faiss.clone_index(self._index)
        index.add(np.ascontiguousarray(descriptors, np.float32))
        return type(self)(index)

    def save(self, folder: Path) -> None:
        """Write the file of the index."""
        faiss.write_index(self._index, str(folder / INDEX_FILE))

    def _multiply(self, queries: Descriptors, k: int, inside: NDArray[np.int64] | None) -> Found:
        """Search for many queries by the product of both matrices."""
        vectors = self._all()
        similarities = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        for start in range(0, len(queries), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            every = queries[part] @ vectors.T
            if inside is not None:
                every = every[:, inside]
            best = np.argpartition(every, every.shape[1] - k, axis=1)[:, -k:]
            best = np.take_along_axis(best, np.argsort(-np.take_along_axis(every, best, 1), axis=1), 1)
            similarities[part] = np.take_along_axis(every, best, 1)
            rows[part] = best if inside is None else inside[best]
        return similarities, rows

    def _all(self) -> Descriptors:
        """Return all vectors where FAISS keeps them: only while the index exists."""
        index: Any = self._index
        vectors: Descriptors = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(self.shape)
        return vectors


class CompressedVectors:
    """Candidates from short codes, ranked by half-precision descriptors in a mapped file."""

    kind: Kind = "compressed"

    def __init__(self, index: faiss.Index, halves: NDArray[np.float16]) -> None:
        """`halves`: N x D, mapped."""
        self._index = index
        self._halves = halves
        self._lists = faiss.extract_index_ivf(index).nlist

    @classmethod
    def build(cls, halves: NDArray[np.float16], seed: int = 0) -> Self:
        """Train on a sample and add all rows of a mapped array, one chunk at a time."""
        count, dimension = halves.shape
        rows = np.random.default_rng(seed).permutation(count)[:_TRAINING_ROWS]
        sample = halves[np.sort(rows)].astype(np.float32)
        reduced = min(_REDUCED, dimension)
        lists = int(np.clip(4 * np.sqrt(count), 16, 1024))
        # Inner products of unit vectors order as their distances do, which survive the centring of a PCA.
        index = faiss.index_factory(dimension, f"PCAR{reduced},IVF{lists},PQ{reduced // 2}x4fs", faiss.METRIC_L2)
        index.train(sample)
        del sample
        for chunk in _chunks(halves):
            index.add(chunk.astype(np.float32))
        return cls(index, halves)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the files of an index. Raises DamagedError."""
        index, path = _read_index(folder / INDEX_FILE), folder / HALVES_FILE
        expected = 2 * index.ntotal * index.d
        if not path.is_file() or path.stat().st_size != expected:
            raise DamagedError(f"{path} is not {expected:,} bytes long, as {INDEX_FILE} says: build the index again")
        return cls(index, np.memmap(path, np.float16, "r", shape=(index.ntotal, index.d)))

    @property
    def shape(self) -> tuple[int, int]:
        count, dimension = self._halves.shape
        return count, dimension

    def search(self, queries: Descriptors, k: int, inside: NDArray[np.int64] | None) -> Found:
        """Return the k most similar rows of each query, see `Vectors`."""
        found = (
            self._search_some(queries[start : start + _AT_ONCE], k, inside)
            for start in range(0, len(queries), _AT_ONCE)
        )
        similarities, rows = zip(*found, strict=True)
        return np.concatenate(similarities), np.concatenate(rows)

    def rows(self, rows: NDArray[np.int64]) -> Descriptors:
        """Return the vectors in some rows, n x D, rounded to half precision."""
        return self._halves[rows].astype(np.float32)

    def products(self, rows: NDArray[np.int64], queries: Descriptors) -> NDArray[np.float32]:
        """Return the inner products of the vectors in some rows with queries, n B."""
        return np.asarray(self.rows(rows) @ queries.T)

    def with_more(self, descriptors: Descriptors) -> Self:
        """Return a copy with more rows at the end."""
        index = faiss.clone_index(self._index)
        index.add(np.ascontiguousarray(descriptors, np.float32))
        count, dimension = self.shape
        halves = allocate((count + len(descriptors), dimension), np.float16)
        _copy(self._halves, halves[:count])
        _copy(descriptors, halves[count:])
        return type(self)(index, halves)

    def save(self, folder: Path) -> None:
        """Write the files of the index."""
        faiss.write_index(self._index, str(folder / INDEX_FILE))
        with (folder / HALVES_FILE).open("wb") as file:
            for chunk in _chunks(self._halves):
                file.write(chunk.tobytes())

    def _search_some(self, queries: Descriptors, k: int, inside: NDArray[np.int64] | None) -> Found:
        count = len(self._halves)
        if inside is not None and len(inside) <= _EXACT_ROWS:
            return self._rank(queries, [inside] * len(queries), k)
        wanted, probed = max(_CANDIDATES, 4 * k), _PROBED
        if inside is not None:  # more candidates in proportion to the rows outside, from all lists
            wanted, probed = min(count, wanted * count // len(inside)), 1.0
        candidates = self._candidates(queries, wanted, probed)
        if inside is not None:
            candidates = [rows[np.isin(rows, inside, assume_unique=True)] for rows in candidates]
        every = np.arange(count) if inside is None else inside
        return self._rank(queries, [rows if len(rows) >= k else every for rows in candidates], k)

    def _candidates(self, queries: Descriptors, wanted: int, probed: float) -> list[NDArray[np.int64]]:
        lists = faiss.SearchParametersIVF()
        lists.nprobe = max(1, round(probed * self._lists))
        params = faiss.SearchParametersPreTransform()
        params.index_params = lists
        found: NDArray[np.int64] = self._index.search(queries, min(wanted, len(self._halves)), params=params)[1]
        return [rows[rows >= 0] for rows in found]

    def _rank(self, queries: Descriptors, candidates: list[NDArray[np.int64]], k: int) -> Found:
        """Return the best of each query's own candidates; rows that several queries share are read once."""
        candidates = [np.sort(rows) for rows in candidates]
        similarities = [np.empty(len(rows), np.float32) for rows in candidates]
        for chunk in _chunks(np.unique(np.concatenate(candidates))):  # in the order of the file
            products = self._halves[chunk].astype(np.float32) @ queries.T
            for query, rows in enumerate(candidates):
                own = slice(*np.searchsorted(rows, (chunk[0], chunk[-1] + 1)))
                similarities[query][own] = products[np.searchsorted(chunk, rows[own]), query]
        best = [np.argpartition(-one, k - 1)[:k] for one in similarities]
        best = [rows[np.argsort(-one[rows], kind="stable")] for one, rows in zip(similarities, best, strict=True)]
        return (
            np.stack([one[rows] for one, rows in zip(similarities, best, strict=True)]),
            np.stack([one[rows] for one, rows in zip(candidates, best, strict=True)]),
        )


def stored_dtype(count: int) -> type[np.float32] | type[np.float16]:
    """Return the precision in which `build` keeps so many descriptors."""
    return np.float32 if count <= EXACT_UP_TO else np.float16


def allocate(shape: tuple[int, int], dtype: DTypeLike) -> NDArray[Any]:
    """Return an array to fill, in memory if it is small and else mapped from a file without a name."""
    if np.dtype(dtype).itemsize * shape[0] * shape[1] <= _IN_MEMORY_BYTES:
        return np.empty(shape, dtype)
    with tempfile.TemporaryDirectory() as folder:  # a mapped file stays readable after its name is gone
        return np.memmap(Path(folder) / HALVES_FILE, dtype, "w+", shape=shape)


def build(descriptors: Descriptors | NDArray[np.float16]) -> FlatVectors | CompressedVectors:
    """Build exact search for a small gallery, compressed search for a larger one (`EXACT_UP_TO`).

    Half-precision descriptors, which may be mapped, become part of a compressed index as they are.
    """
    if stored_dtype(len(descriptors)) is np.float32:
        return FlatVectors.build(descriptors.astype(np.float32, copy=False))
    if descriptors.dtype == np.float16:
        return CompressedVectors.build(descriptors.astype(np.float16, copy=False))
    count, dimension = descriptors.shape
    halves = allocate((count, dimension), np.float16)
    _copy(descriptors, halves)
    return CompressedVectors.build(halves)


def load(kind: Kind, folder: Path) -> FlatVectors | CompressedVectors:
    """Read the files of an index. Raises DamagedError."""
    return FlatVectors.load(folder) if kind == "flat" else CompressedVectors.load(folder)


def _read_index(path: Path) -> faiss.Index:
    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        raise DamagedError(f"{path} is not an index that FAISS reads ({error}): build the index again") from None


def _chunks(rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for start in range(0, len(rows), _CHUNK):
        yield rows[start : start + _CHUNK]


def _copy(source: NDArray[Any], target: NDArray[Any]) -> None:
    for start in range(0, len(source), _CHUNK):
        target[start : start + _CHUNK] = source[start : start + _CHUNK]

"""The vectors of a reference index and how they are searched: exactly, or compressed for galleries of a million.

Compressed is two steps: a FAISS index of a few dozen bytes per tile (PCA, inverted lists, 4-bit product quantiser)
names candidates, whose half-precision descriptors, in a memory-mapped file, then decide. So the memory that a
process must own stays small, and what is read of the rest is the candidates alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Protocol, Self

import faiss
import numpy as np
from numpy.typing import NDArray

Kind = Literal["flat", "compressed"]
Descriptors = NDArray[np.float32]
Found = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Similarities and rows, B k each, the most similar first."""

INDEX_FILE = "index.faiss"
HALVES_FILE = "vectors.f16"
EXACT_BELOW = 50_000
"""Galleries up to this size are searched exactly."""

_TRAINED_WITH = 65_536
_REDUCED = 128
_CANDIDATES = 400
_PROBED = 0.5  # of the lists
_EXACT_ROWS = 20_000  # an area with no more tiles is searched exactly
_CHUNK = 16_384


class Vectors(Protocol):
    """Unit vectors that can be searched, N x D."""

    kind: Kind

    @property
    def shape(self) -> tuple[int, int]: ...
    def search(self, queries: Descriptors, k: int, inside: NDArray[np.int64] | None) -> Found:
        """The k most similar rows of each query, among the rows `inside` where they are given."""

    def with_more(self, descriptors: Descriptors) -> Self:
        """The same with more rows at the end, nothing trained again."""

    def save(self, folder: Path) -> None:
        """Write the files of the index."""


class FlatVectors:
    """Exact search by inner product."""

    kind: Kind = "flat"

    def __init__(self, index: faiss.Index) -> None:
        self._index = index

    @classmethod
    def build(cls, descriptors: Descriptors) -> Self:
        index = faiss.IndexFlatIP(descriptors.shape[1])
        index.add(np.ascontiguousarray(descriptors, np.float32))
        return cls(index)

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(faiss.read_index(str(folder / INDEX_FILE)))

    @property
    def shape(self) -> tuple[int, int]:
        return self._index.ntotal, self._index.d

    def search(self, queries: Descriptors, k: int, inside: NDArray[np.int64] | None) -> Found:
        chosen = None
        if inside is not None:
            chosen = faiss.SearchParameters()
            chosen.sel = selector = faiss.IDSelectorBatch(inside)  # noqa: F841 - FAISS keeps no reference of its own
        similarities, rows = self._index.search(queries, k, params=chosen)
        return similarities, rows

    def with_more(self, descriptors: Descriptors) -> Self:
        index = faiss.clone_index(self._index)
        index.add(np.ascontiguousarray(descriptors, np.float32))
        return type(self)(index)

    def save(self, folder: Path) -> None:
        faiss.write_index(self._index, str(folder / INDEX_FILE))


class CompressedVectors:
    """Candidates from short codes, decided by half-precision descriptors in a mapped file."""

    kind: Kind = "compressed"

    def __init__(self, index: faiss.Index, halves: NDArray[np.float16]) -> None:
        """`halves`: N x D, mapped."""
        self._index = index
        self._halves = halves
        self._lists = faiss.extract_index_ivf(index).nlist

    @classmethod
    def build(cls, halves: NDArray[np.float16], seed: int = 0) -> Self:
        """Train on a sample and add all rows of a mapped array, a chunk at a time."""
        count, dimension = halves.shape
        rows = np.random.default_rng(seed).permutation(count)[:_TRAINED_WITH]
        sample = halves[np.sort(rows)].astype(np.float32)
        reduced = min(_REDUCED, dimension)
        lists = int(np.clip(4 * np.sqrt(count), 16, 1024))
        # Inner products of unit vectors order as their distances do, which survive the centring of a PCA.
        index = faiss.index_factory(dimension, f"PCAR{reduced},IVF{lists},PQ{reduced // 2}x4fs", faiss.METRIC_L2)
        index.train(sample)
        del sample
        for chunk in _chunks(halves):
            index.add(chunk)
        return cls(index, halves)

    @classmethod
    def load(cls, folder: Path) -> Self:
        index = faiss.read_index(str(folder / INDEX_FILE))
        path = folder / HALVES_FILE
        return cls(index, np.memmap(path, np.float16, "r", shape=(index.ntotal, index.d)))

    @property
    def shape(self) -> tuple[int, int]:
        count, dimension = self._halves.shape
        return count, dimension

    def search(self, queries: Descriptors, k: int, inside: NDArray[np.int64] | None) -> Found:
        found = [self._search_one(query, k, inside) for query in queries]
        return np.stack([one[0] for one in found]), np.stack([one[1] for one in found])

    def with_more(self, descriptors: Descriptors) -> Self:
        index = faiss.clone_index(self._index)
        index.add(np.ascontiguousarray(descriptors, np.float32))
        count, dimension = self.shape
        shape = (count + len(descriptors), dimension)
        with tempfile.TemporaryDirectory() as folder:  # what is mapped stays there after its file has lost its name
            halves = np.memmap(Path(folder) / HALVES_FILE, np.float16, "w+", shape=shape)
        for start in range(0, count, _CHUNK):
            halves[start : min(start + _CHUNK, count)] = self._halves[start : start + _CHUNK]
        halves[count:] = descriptors
        return type(self)(index, halves)

    def save(self, folder: Path) -> None:
        faiss.write_index(self._index, str(folder / INDEX_FILE))
        with (folder / HALVES_FILE).open("wb") as file:
            for start in range(0, len(self._halves), _CHUNK):
                file.write(self._halves[start : start + _CHUNK].tobytes())

    def _search_one(self, query: Descriptors, k: int, inside: NDArray[np.int64] | None) -> Found:
        count = len(self._halves)
        if inside is not None and len(inside) <= _EXACT_ROWS:
            return self._decide(query, inside, k)
        wanted, probed = max(_CANDIDATES, 4 * k), _PROBED
        if inside is not None:  # as many more as there are rows outside, from all lists
            wanted, probed = min(count, wanted * count // len(inside)), 1.0
        candidates = self._candidates(query, wanted, probed)
        if inside is not None:
            candidates = candidates[np.isin(candidates, inside, assume_unique=True)]
        if len(candidates) < k:
            candidates = np.arange(count) if inside is None else inside
        return self._decide(query, candidates, k)

    def _candidates(self, query: Descriptors, wanted: int, probed: float) -> NDArray[np.int64]:
        lists = faiss.SearchParametersIVF()
        lists.nprobe = max(1, round(probed * self._lists))
        params = faiss.SearchParametersPreTransform()
        params.index_params = lists
        rows: NDArray[np.int64] = self._index.search(query[None], min(wanted, len(self._halves)), params=params)[1][0]
        return rows[rows >= 0]

    def _decide(self, query: Descriptors, rows: NDArray[np.int64], k: int) -> Found:
        rows = np.sort(rows)  # in the order of the file
        parts = (rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK))
        similarities = np.concatenate([self._halves[part].astype(np.float32) @ query for part in parts])
        best = np.argpartition(-similarities, min(k, len(rows)) - 1)[:k]
        best = best[np.argsort(-similarities[best], kind="stable")]
        return similarities[best], rows[best]


def build(descriptors: Descriptors | NDArray[np.float16]) -> FlatVectors | CompressedVectors:
    """Exact search for small galleries, compressed for larger ones; half precision is taken as it is, mapped or not."""
    if len(descriptors) <= EXACT_BELOW:
        return FlatVectors.build(descriptors.astype(np.float32))
    return CompressedVectors.build(descriptors.astype(np.float16, copy=False))


def load(kind: Kind, folder: Path) -> FlatVectors | CompressedVectors:
    """Read the files of an index."""
    return FlatVectors.load(folder) if kind == "flat" else CompressedVectors.load(folder)


def _chunks(halves: NDArray[np.float16]) -> Iterator[Descriptors]:
    for start in range(0, len(halves), _CHUNK):
        yield halves[start : start + _CHUNK].astype(np.float32)

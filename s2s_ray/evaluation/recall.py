"""Retrieval recall: the rank in the gallery of each query's correct tile."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from s2s_ray.errors import DescriptorError, InputError
from s2s_ray.evaluation.rows import Rows
from s2s_ray.geo.places import Places

TIE = 16 * 2.0**-23
"""Difference of squared distances up to which they tie: 16 float32 ulps of 1, for unit descriptors.

Dot products are computed in float64, so exact copies tie for any blocking. The tolerance covers the rounding of the
descriptors, which the model computes in float32.
"""


@dataclass(frozen=True, slots=True)
class Nearby:
    """The rule that tiles within `radius_m` of the query are also correct (CVACT_test: 5 m)."""

    queries: Places
    gallery: Places
    radius_m: float


@dataclass(frozen=True, slots=True)
class RecallResult:
    """Recall of one direction, as fractions in [0, 1].

    `recall` is keyed "1", "5", "10" and "1%"; p percent of a gallery of M are its first ceil(p * M / 100) ranks
    (repositories differ). `ranks` int64 N are 1-based: 1 plus the number of incorrect tiles at least as close as the
    best correct one, so ties count against the model. A query without any correct tile has rank M + 1 and counts as
    missed at every k. `correct` int64 N is the number of correct tiles of each query. `counted` bool N are the queries
    that the figures are about; None: all.
    """

    recall: dict[str, float]
    gallery: int
    ranks: Tensor
    correct: Tensor
    counted: Tensor | None = None

    @property
    def queries(self) -> int:
        """The number of queries."""
        return len(self.ranks) if self.counted is None else int(self.counted.sum())

    @property
    def median_rank(self) -> float:
        """The median of the ranks."""
        return float(np.median(_counted(self.ranks, self.counted).numpy()))

    @property
    def chance(self) -> float:
        """Recall at 1 of a random ranking: 1 / gallery if each query has one correct tile."""
        return float(_counted(self.correct, self.counted).double().mean()) / self.gallery

    def as_dict(self) -> dict[str, float]:
        """Return `recall_at_1`, ..., `recall_at_1_percent`, `median_rank`, `queries` and `gallery` for JSON."""
        named = {f"recall_at_{key.replace('%', '_percent')}": value for key, value in self.recall.items()}
        return {**named, "median_rank": self.median_rank, "queries": self.queries, "gallery": self.gallery}


@torch.inference_mode()
def recall_at_k(
    queries: Rows,
    gallery: Rows,
    *,
    truth: Tensor | None = None,
    nearby: Nearby | None = None,
    counted: Tensor | None = None,
    ks: Sequence[int] = (1, 5, 10),
    percent: Sequence[float] = (1.0,),
    chunk: int = 4096,
    gallery_chunk: int = 1024,
) -> RecallResult:
    """Rank the gallery by squared L2 distance for each query, and return the recall at several ranks.

    Ties, within `TIE` (times the largest squared norm, which is 1 for unit descriptors), count against the model: a
    collapsed model, whose descriptors are all equal, has a recall of zero instead of luck. A query counts at k if any
    of its correct tiles is among the first k; a correct tile never displaces another. The computation is in float64 on
    the device of the descriptors, with chunk x gallery_chunk distances at a time; with `StoredRows`, memory depends on
    the chunks alone.

    Args:
        queries: N D descriptors.
        gallery: M D descriptors.
        truth: N gallery indices of the queries' own tiles. Default: i for query i (N = M); with `nearby` and N != M,
            only the radius counts.
        nearby: rule for further correct tiles.
        counted: the queries that the figures are about, bool N, at least one; default: all.
        ks, percent: ranks, and percentages of the gallery, at which recall is measured.
        chunk, gallery_chunk: rows of both at a time; they affect no result.

    Raises:
        DescriptorError: shapes that do not fit together, NaN or infinite values, or nothing to rank.
        InputError: `truth` or places that do not fit the descriptors.
    """
    _check(queries, gallery, nearby)
    truth = _own_tiles(len(queries), len(gallery), truth, radius=nearby is not None)
    scale = max(_largest_square(rows, chunk) for rows in (queries, gallery))
    ranks, correct = [], []
    for start in range(0, len(queries), chunk):
        rows = slice(start, min(start + chunk, len(queries)))
        part = _Queries(
            queries[rows].double(),
            None if truth is None else truth[rows].to(queries.device),
            None if nearby is None else Nearby(nearby.queries[rows], nearby.gallery, nearby.radius_m),
        )
        bound, count = part.best_correct(gallery, gallery_chunk)
        closer = part.incorrect_within(bound + TIE * scale, gallery, gallery_chunk)
        ranks.append((1 + closer).cpu())  # M + 1 without a correct tile: the bound is infinite then
        correct.append(count.cpu())
    found = torch.cat(ranks)
    depths = {str(k): k for k in ks} | {f"{p:g}%": math.ceil(p * len(gallery) / 100) for p in percent}
    ranked = _counted(found, counted)
    recall = {key: float((ranked <= min(depth, len(gallery))).double().mean()) for key, depth in depths.items()}
    return RecallResult(recall, len(gallery), found, torch.cat(correct), counted)


@torch.inference_mode()
def nearest(
    queries: Rows, gallery: Rows, k: int, *, chunk: int = 4096, gallery_chunk: int = 1024
) -> tuple[Tensor, Tensor]:
    """Return the k closest gallery rows of each query, closest first; the first rows of a tie.

    (`faiss.knn` computes in float32 and orders ties differently.)

    Returns: squared distances N k (float64) and gallery indices N k, on the device of the descriptors; M of them if k
    is larger.
    """
    parts = [
        _nearest(queries[start : start + chunk].double(), gallery, k, gallery_chunk)
        for start in range(0, max(len(queries), 1), chunk)
    ]
    return torch.cat([distances for distances, _ in parts]), torch.cat([indices for _, indices in parts])


def _counted(values: Tensor, counted: Tensor | None) -> Tensor:
    return values if counted is None else values[counted]


def _nearest(queries: Tensor, gallery: Rows, k: int, gallery_chunk: int) -> tuple[Tensor, Tensor]:
    distances = queries.new_empty((len(queries), 0))
    indices = torch.empty((len(queries), 0), dtype=torch.int64, device=queries.device)
    for start in range(0, len(gallery), gallery_chunk):
        block, columns = _first(_distances(queries, gallery[start : start + gallery_chunk].double()), k)
        distances, indices = torch.cat([distances, block], 1), torch.cat([indices, columns + start], 1)
        order = torch.argsort(distances, dim=1, stable=True)[:, :k]
        distances, indices = distances.gather(1, order), indices.gather(1, order)
    return distances, indices


def _first(distances: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k smallest values of each row with their columns, smallest first; the first columns of equal ones."""
    if distances.shape[1] <= k:
        order = torch.argsort(distances, dim=1, stable=True)
        return distances.gather(1, order), order
    least, columns = distances.topk(k, dim=1, largest=False)
    columns, by_column = columns.sort(dim=1)
    least = least.gather(1, by_column)
    order = torch.argsort(least, dim=1, stable=True)
    least, columns = least.gather(1, order), columns.gather(1, order)
    # more than k values up to the last one: `topk` chose arbitrarily among equal ones
    tied = ((distances <= least[:, -1:]).sum(1) > k).nonzero().flatten()
    if len(tied):
        order = torch.argsort(distances[tied], dim=1, stable=True)[:, :k]
        least[tied], columns[tied] = distances[tied].gather(1, order), order
    return least, columns


def require_finite(descriptors: Rows, what: str, ids: Sequence[str] | None = None) -> None:
    """Raise DescriptorError naming the first rows (by id, if given) that hold NaN or infinity."""
    # sums are enough to detect them, without a mask as large as the descriptors
    sums = torch.cat([part.sum(1) for part in _parts(descriptors, 4096)])
    bad = (~sums.isfinite()).nonzero().flatten().tolist()
    if bad:
        first = ", ".join(str(i) if ids is None else ids[i] for i in bad[:5])
        kind = "row" if ids is None else "id"
        raise DescriptorError(
            f"{len(bad)} of {len(descriptors)} {what} descriptors hold NaN or infinity (first by {kind}: {first}); "
            "the weights have diverged or the images are not finite"
        )


@dataclass(frozen=True, slots=True)
class _Queries:
    """A chunk of queries (n D, float64) with the rule for correct tiles."""

    descriptors: Tensor
    truth: Tensor | None
    nearby: Nearby | None

    def best_correct(self, gallery: Rows, gallery_chunk: int) -> tuple[Tensor, Tensor]:
        """Return the squared distance to the closest correct tile (infinite without one), and the number of them."""
        n = len(self.descriptors)
        best = self.descriptors.new_full((n,), torch.inf)
        count = torch.zeros(n, dtype=torch.int64, device=best.device)
        if self.nearby is None:
            assert self.truth is not None
            return self._pair_distances(torch.arange(n, device=best.device), gallery, self.truth), count + 1
        for start in range(0, len(gallery), gallery_chunk):
            mask = self._correct(start, min(gallery_chunk, len(gallery) - start))
            count += mask.sum(1)
            rows, columns = mask.nonzero(as_tuple=True)
            best.scatter_reduce_(0, rows, self._pair_distances(rows, gallery, columns + start), "amin")
        return best, count

    def incorrect_within(self, bound: Tensor, gallery: Rows, gallery_chunk: int) -> Tensor:
        """Return the number of incorrect tiles of the gallery within each query's `bound`."""
        closer = torch.zeros(len(bound), dtype=torch.int64, device=bound.device)
        for start in range(0, len(gallery), gallery_chunk):
            block = gallery[start : start + gallery_chunk].double()
            within = _distances(self.descriptors, block) <= bound[:, None]
            within &= ~self._correct(start, len(block))
            closer += within.sum(1)
        return closer

    def _correct(self, start: int, size: int) -> Tensor:
        """Return which of the `size` gallery rows from `start` are correct, n x size."""
        device = self.descriptors.device
        if self.nearby is None:
            mask = torch.zeros(len(self.descriptors), size, dtype=torch.bool, device=device)
        else:
            near, tiles = self.nearby, self.nearby.gallery[slice(start, start + size)]
            mask = torch.from_numpy(near.queries.within(tiles, near.radius_m)).to(device)
        if self.truth is not None:
            rows = ((self.truth >= start) & (self.truth < start + size)).nonzero().flatten()
            mask[rows, self.truth[rows] - start] = True
        return mask

    def _pair_distances(self, rows: Tensor, gallery: Rows, columns: Tensor) -> Tensor:
        parts = zip(torch.split(rows, 1024), torch.split(columns, 1024), strict=True)
        return torch.cat([(self.descriptors[r] - gallery[c].double()).square().sum(1) for r, c in parts])


def _distances(queries: Tensor, gallery: Tensor) -> Tensor:
    """Return the squared L2 distances, n x m; 2 - 2 s.s' for unit descriptors."""
    squares = queries.square().sum(1)[:, None] + gallery.square().sum(1)[None]
    return torch.addmm(squares, queries, gallery.T, alpha=-2)


def _largest_square(rows: Rows, chunk: int) -> float:
    return max(float(part.square().sum(1).max()) for part in _parts(rows, chunk))


def _parts(rows: Rows, chunk: int) -> Iterator[Tensor]:
    return (rows[start : start + chunk] for start in range(0, max(len(rows), 1), chunk))


def _check(queries: Rows, gallery: Rows, nearby: Nearby | None) -> None:
    if len(queries.shape) != 2 or len(gallery.shape) != 2 or queries.shape[1] != gallery.shape[1]:
        raise DescriptorError(f"queries {[*queries.shape]} and gallery {[*gallery.shape]}: expected N x D and M x D")
    if not len(queries) or not len(gallery):
        raise DescriptorError(f"{len(queries)} queries and a gallery of {len(gallery)}: nothing to rank")
    require_finite(queries, "query")
    require_finite(gallery, "gallery")
    if nearby is not None and (len(nearby.queries), len(nearby.gallery)) != (len(queries), len(gallery)):
        raise InputError(
            f"{len(nearby.queries)} and {len(nearby.gallery)} places for {len(queries)} queries and "
            f"{len(gallery)} gallery rows: expected one for each row (NaN if unknown)"
        )


def _own_tiles(queries: int, gallery: int, truth: Tensor | None, *, radius: bool) -> Tensor | None:
    if truth is None:
        if queries == gallery:
            return torch.arange(queries)
        if radius:
            return None
        raise InputError(f"{queries} queries and a gallery of {gallery}: pass the index of each query's tile as truth")
    if truth.shape != (queries,) or int(truth.min()) < 0 or int(truth.max()) >= gallery:
        raise InputError(f"truth {[*truth.shape]} for {queries} queries: expected one index below {gallery} for each")
    return truth

"""The posterior over tiles and headings: how likely each is to be where, and which way, a picture was taken.

Each tile and each heading is as likely as any other before the picture is seen, or as the known heading says. The
likelihood of both is exp(scale * cosine). Tiles that are not compared one by one, those of a large index which are
unlike the picture, count with an estimate of their sum from a fixed random sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from s2s_ray.geo.images import Descriptors
from s2s_ray.geo.prior import Prior
from s2s_ray.localization.calibration import Parameters
from s2s_ray.localization.turned import Turned

MOST_ROWS = 2048
"""Tiles that are compared one by one; an index with no more is compared as a whole."""

DEPTH = 512
"""Tiles that are found for each heading in a larger index."""
RowsFound: TypeAlias = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Cosines and rows of tiles for each heading of a picture, T K each, the most similar first."""

_SAMPLE = 512
_SPARSE_M = 32.0
_METRES_PER_DEGREE = 111_195.0


class Gallery(Protocol):
    """The part of a `ReferenceIndex` that is needed here."""

    positions: NDArray[np.float64]

    def __len__(self) -> int: ...
    def search_rows(self, descriptors: Descriptors, k: int, prior: Prior | None = None) -> RowsFound:
        """Return the cosines and rows of the k most similar tiles of each query."""

    def descriptors(self, rows: NDArray[np.int64]) -> Descriptors:
        """Return the descriptors of some rows."""

    def similarities(self, rows: NDArray[np.int64], descriptors: Descriptors) -> NDArray[np.float32]:
        """Return the cosines of the tiles in some rows with descriptors B D, n B."""


@dataclass(frozen=True, slots=True)
class Posterior:
    """The likelihood of some tiles, and of all others together.

    Attributes:
        rows: R rows of the index.
        log_likelihoods: R, the logarithm of the likelihood ratio between the tile and a place outside of the region,
            over all pictures and their headings.
        headings: probabilities of each picture's headings at each of these tiles, R T.
        log_rest: logarithm of the sum of the likelihood ratios of all other tiles; -inf if there are none.
        count: number of all tiles.
    """

    rows: NDArray[np.int64]
    log_likelihoods: NDArray[np.float64]
    headings: tuple[NDArray[np.float32], ...]
    log_rest: float
    count: int

    @property
    def log_sum(self) -> float:
        """Logarithm of the sum of the likelihood ratios of all tiles."""
        return float(np.logaddexp(log_sum_exp(self.log_likelihoods), self.log_rest))

    @property
    def evidence(self) -> float:
        """Logarithm of the mean likelihood ratio of all tiles: high if the picture is from the region."""
        return self.log_sum - float(np.log(self.count))

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Probability of each tile if the picture is from the region, R; less than 1 in all if others are left out."""
        return np.asarray(np.exp(self.log_likelihoods - self.log_sum))


def posterior(
    index: Gallery,
    pictures: Sequence[Turned],
    parameters: Sequence[Parameters],
    prior: Prior | None = None,
    searches: Sequence[RowsFound] | None = None,
) -> Posterior | None:
    """Return the posterior over the tiles of an index.

    Args:
        index: the gallery.
        pictures: one or more pictures of one place.
        parameters: those of each picture.
        prior: only tiles inside it count.
        searches: what `search_rows` finds for each picture, at least `DEPTH` tiles; None: it is called if necessary.

    Returns:
        None if no tile is inside the prior.
    """
    inside = np.arange(len(index)) if prior is None else np.flatnonzero(prior.mask(*index.positions.T))
    if not len(inside):
        return None
    rows = inside if len(inside) <= MOST_ROWS else _likely(index, pictures, prior, searches)
    compared = [index.similarities(rows, picture.descriptors) for picture in pictures]
    log_likelihoods, headings = _compare(compared, pictures, parameters)
    log_rest = -np.inf
    if len(rows) < len(inside):
        sampled, vectors = _ground(index).sample
        others = np.isin(sampled, inside, assume_unique=True) & ~np.isin(sampled, rows, assume_unique=True)
        # Of a small area few are sampled: the least likely of those found stand for the others then.
        chosen = vectors[others] if others.sum() >= _SAMPLE // 8 else index.descriptors(rows[-_SAMPLE:])
        found, _ = _compare([chosen @ picture.descriptors.T for picture in pictures], pictures, parameters)
        log_rest = log_sum_exp(found) - float(np.log(len(found))) + float(np.log(len(inside) - len(rows)))
    return Posterior(rows, log_likelihoods, headings, log_rest, len(inside))


def spacing_m(index: Gallery) -> float:
    """Return the metres between neighbouring tiles of an index, at most 32: the picture may be anywhere between them.

    It is the median over a sample of tiles.
    """
    return _ground(index).spacing_m


def log_sum_exp(values: NDArray[np.float64]) -> float:
    """Return the logarithm of the sum of exponentials."""
    most = values.max()
    return float(most + np.log(np.exp(values - most).sum()))


def log_likelihoods(
    similarities: NDArray[np.float32], weights: NDArray[np.float64], scale: float
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return the logarithm of the likelihood of N tiles, over all headings, and the headings' probabilities at each.

    Args:
        similarities: cosines, N T.
        weights: probabilities of the headings before the search, T.
        scale: see `Parameters`.

    Returns:
        N float64, and N T float32.
    """
    most = similarities.max(axis=1, keepdims=True)
    terms = weights.astype(np.float32) * np.exp(np.float32(scale) * (similarities - most))
    sums = terms.sum(axis=1, keepdims=True)
    return (scale * most.astype(np.float64) + np.log(sums))[:, 0], terms / sums


def _compare(
    similarities: Sequence[NDArray[np.float32]], pictures: Sequence[Turned], parameters: Sequence[Parameters]
) -> tuple[NDArray[np.float64], tuple[NDArray[np.float32], ...]]:
    """Return the summed log-likelihood ratios of N tiles, and each picture's headings at each, N T.

    Args:
        similarities: for each picture the cosines of the tiles at its headings, N T.
        pictures, parameters: as in `posterior`.
    """
    total, headings = np.zeros(len(similarities[0])), []
    for cosines, picture, one in zip(similarities, pictures, parameters, strict=True):
        found, at = log_likelihoods(cosines, picture.weights(), one.scale)
        total += found - one.outside
        headings.append(at)
    return total, tuple(headings)


def _likely(
    index: Gallery, pictures: Sequence[Turned], prior: Prior | None, searches: Sequence[RowsFound] | None
) -> NDArray[np.int64]:
    """Return the rows that are most similar to one of the pictures at one of its headings, the most similar first."""
    if searches is None:
        searches = [index.search_rows(picture.descriptors, DEPTH, prior) for picture in pictures]
    parts = []
    for similarities, rows in searches:
        order = np.argsort(-similarities.ravel(), kind="stable")
        found = rows.ravel()[order]
        _, first = np.unique(found, return_index=True)
        parts.append(found[np.sort(first)][: MOST_ROWS // len(pictures)])
    found = np.concatenate(parts)
    _, first = np.unique(found, return_index=True)
    return found[np.sort(first)]


class _Ground:
    """What is computed once for an index."""

    def __init__(self, index: Gallery) -> None:
        rows = np.sort(np.random.default_rng(0).permutation(len(index))[:_SAMPLE])
        self.sample = rows, index.descriptors(rows)
        self.spacing_m = spacing_of(index.positions)


_GROUNDS: WeakKeyDictionary[Gallery, _Ground] = WeakKeyDictionary()


def _ground(index: Gallery) -> _Ground:
    found = _GROUNDS.get(index)
    if found is None:
        found = _GROUNDS[index] = _Ground(index)
    return found


def spacing_of(positions: NDArray[np.float64]) -> float:
    """Return the median distance in metres from a sample of tiles to the closest other one, at most `_SPARSE_M`.

    Args:
        positions: latitude and longitude in degrees, N 2; NaN if unknown.
    """
    known = np.flatnonzero(np.isfinite(positions).all(axis=1))
    order = known[np.argsort(positions[known, 0], kind="stable")]
    latitudes, longitudes = positions[order].T
    reach = _SPARSE_M / _METRES_PER_DEGREE
    closest = []
    sample = np.random.default_rng(0).permutation(len(known))[:_SAMPLE]
    for latitude, longitude in positions[known[sample]]:
        low, high = np.searchsorted(latitudes, (latitude - reach, latitude + reach))
        east = (longitudes[low:high] - longitude + 180) % 360 - 180
        metres = np.hypot(latitudes[low:high] - latitude, east * np.cos(np.radians(latitude))) * _METRES_PER_DEGREE
        others = metres[metres > 0.01]  # a place that is listed twice is no neighbour
        closest.append(min(float(others.min()), _SPARSE_M) if len(others) else _SPARSE_M)
    return float(np.median(closest)) if closest else _SPARSE_M

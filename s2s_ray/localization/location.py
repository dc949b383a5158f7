"""Localisation of one place from the descriptors of one or more pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from s2s_ray.errors import InputError
from s2s_ray.geo.prior import Prior
from s2s_ray.index import ReferenceIndex
from s2s_ray.localization.calibration import UNCALIBRATED, Calibration, mean_of
from s2s_ray.localization.fix import Found, HeadedMatch, Surface, fix_of, surface_of
from s2s_ray.localization.surface import DEPTH, MOST_ROWS, RowsFound, posterior, spacing_m
from s2s_ray.localization.turned import Turned


def locate(
    index: ReferenceIndex,
    pictures: Sequence[Turned],
    *,
    k: int,
    prior: Prior | None = None,
    calibration: Calibration | None = None,
) -> Found:
    """Return the most likely tiles and the fix of one place.

    Args:
        index: the reference index.
        pictures: one or more pictures that were taken at that place, each with its own heading.
        k: number of matches, 1 to the number of tiles.
        prior: only tiles inside it are found.
        calibration: that of the checkpoint; without it the fix has neither radii nor a confidence.

    Raises:
        InputError: no picture, or a `k` that is out of range.
        DescriptorError: descriptors of another size than the index's, or not finite.
    """
    if not pictures:
        raise InputError("pictures=[]: expected at least one picture of the place")
    searched = [picture.narrowed() for picture in pictures]
    searches = [_search(index, picture, k, prior) for picture in searched]
    matches = _matches(index, searched, searches, k, prior)
    parameters = [
        UNCALIBRATED if calibration is None else calibration.parameters(picture.fov, picture.unknown)
        for picture in searched
    ]
    found = posterior(index, searched, parameters, prior, searches)
    if found is None:
        empty = np.empty(0, np.int64)
        return Found(matches, None, Surface(empty, np.empty(0), np.empty((0, 2))), (None,) * len(searched))
    positions = index.positions[found.rows]
    fix, headings = fix_of(
        found,
        positions,
        spacing_m(index),
        searched,
        mean_of(parameters),
        calibrated=calibration is not None,
    )
    return Found(matches, fix, surface_of(found, positions), headings)


def _search(index: ReferenceIndex, picture: Turned, k: int, prior: Prior | None) -> RowsFound:
    """Return the most similar tiles for each heading of a picture: one search, deep enough for matches and fix."""
    depth = min(len(index), max(k, DEPTH)) if len(index) > MOST_ROWS else k
    return index.search_rows(picture.descriptors, depth, prior)


def _matches(
    index: ReferenceIndex, pictures: Sequence[Turned], searches: Sequence[RowsFound], k: int, prior: Prior | None
) -> list[HeadedMatch]:
    """Return the k most similar tiles, each at its best heading; of several pictures the mean similarity counts."""
    if len(pictures) == 1:
        similarities, rows = searches[0]
        if index.info.kind != "flat" and len(similarities) == 1 and similarities.shape[1] > k:
            # A compressed index finds slightly other tiles if more are asked for.
            similarities, rows = index.search_rows(pictures[0].descriptors, k, prior)
        best, similarity, turn = _best(rows[:, :k], similarities[:, :k])
    else:
        best = np.unique(np.concatenate([rows[:, :k].ravel() for _, rows in searches]))
        compared = [np.clip(index.similarities(best, picture.descriptors), -1, 1) for picture in pictures]
        similarity = np.mean([each.max(axis=1) for each in compared], axis=0, dtype=np.float32)
        turn = compared[0].argmax(axis=1)
    order = np.lexsort((best, -similarity))[: min(k, len(best))]
    found = index.matches(best[order], similarity[order])
    headings = pictures[0].headings[turn[order]] % 360
    return [HeadedMatch(*match, heading=float(heading)) for match, heading in zip(found, headings, strict=True)]


def _best(
    rows: NDArray[np.int64], similarities: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Return each row that was found for one of T headings, its highest similarity and the heading, given T k."""
    order = np.lexsort((rows.ravel(), -similarities.ravel()))
    found, first = np.unique(rows.ravel()[order], return_index=True)
    chosen = order[first]
    return found, similarities.ravel()[chosen], chosen // max(1, rows.shape[1])

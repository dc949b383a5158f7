"""Matching by colour alone: a control that should fail on a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2s_ray.errors import InputError

Images = Sequence[NDArray[np.uint8]]


def colour_matching_recall(queries: Images, gallery: Images, bins: int = 8) -> dict[str, float]:
    """Return the R@1 of finding gallery image k for query k by mean colour and by RGB histograms of `bins` cubed.

    Images are H W 3 uint8 of any size. Keys of the result: `mean` (L2), `mean_standardised` (each channel of each side
    has mean 0 and deviation 1, so that a tint common to all images does not matter), `histogram_l1`, `histogram_chi2`
    and `histogram_standardised` (L1 of histograms of images whose colours were standardised). A tie counts against the
    match, as in `evaluation.recall`.

    Raises:
        InputError: different numbers of images or none, or fewer than 2 bins.
    """
    if len(queries) != len(gallery) or not queries:
        raise InputError(
            f"{len(queries)} queries and {len(gallery)} gallery images: expected as many, and at least one"
        )
    if bins < 2:
        raise InputError(f"bins={bins}: expected at least 2")
    means = [np.stack([image.reshape(-1, 3).mean(0) for image in side]) for side in (queries, gallery)]
    standard = [(side - side.mean(0)) / (side.std(0) + 1e-9) for side in means]
    plain = [_histograms(side, bins) for side in (queries, gallery)]
    even = [_histograms([_standardised(image) for image in side], bins) for side in (queries, gallery)]
    return {
        "mean": _recall(_rows(_l2, *means)),
        "mean_standardised": _recall(_rows(_l2, *standard)),
        "histogram_l1": _recall(_rows(_l1, *plain)),
        "histogram_chi2": _recall(_rows(_chi2, *plain)),
        "histogram_standardised": _recall(_rows(_l1, *even)),
    }


def _histograms(images: Images, bins: int) -> NDArray[np.float64]:
    """Return the shares of pixels, N x bins cubed."""
    rows = []
    for image in images:
        codes = (image.reshape(-1, 3).astype(np.int64) * bins) >> 8
        counts = np.bincount(codes @ (bins**2, bins, 1), minlength=bins**3)
        rows.append(counts / counts.sum())
    return np.stack(rows)


def _standardised(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the image with a mean of 128 and a deviation of 64 in each channel."""
    pixels = image.reshape(-1, 3).astype(np.float64)
    even = (pixels - pixels.mean(0)) / (pixels.std(0) + 1e-9)
    return np.asarray(np.clip(128 + 64 * even, 0, 255).astype(np.uint8))


def _l2(query: NDArray[np.float64], gallery: NDArray[np.float64]) -> Any:
    return ((gallery - query) ** 2).sum(1)


def _l1(query: NDArray[np.float64], gallery: NDArray[np.float64]) -> Any:
    return np.abs(gallery - query).sum(1)


def _chi2(query: NDArray[np.float64], gallery: NDArray[np.float64]) -> Any:
    return ((gallery - query) ** 2 / (gallery + query + 1e-12)).sum(1)


def _rows(distance: Any, queries: NDArray[np.float64], gallery: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([distance(query, gallery) for query in queries])


def _recall(distances: NDArray[np.float64]) -> float:
    """Return the share of rows whose own column is nearer than every other."""
    own = np.diagonal(distances)[:, None]
    return float(((distances <= own).sum(1) == 1).mean())

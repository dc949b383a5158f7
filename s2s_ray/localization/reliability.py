"""Figures of probabilistic answers: calibration error, risk and coverage, ROC, and logistic regression."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BINS = 10
_ITERATIONS = 50

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def bins(confidences: Floats, right: Bools) -> tuple[tuple[float, float, int], ...]:
    """Return the mean confidence, the share right and the number of answers in each tenth that has some."""
    number = np.minimum((confidences * BINS).astype(int), BINS - 1)
    return tuple(
        (float(confidences[number == one].mean()), float(right[number == one].mean()), int((number == one).sum()))
        for one in np.unique(number)
    )


def calibration_error(confidences: Floats, right: Bools) -> float:
    """Return the expected calibration error: the mean gap between confidence and share right over the tenths."""
    found = bins(confidences, right)
    return sum(count * abs(mean - share) for mean, share, count in found) / len(right)


def auroc(positive: Floats, negative: Floats) -> float | None:
    """Return the area under the ROC curve: how often a positive is above a negative, ties counting half.

    None if there are no positives or no negatives.
    """
    if not len(positive) or not len(negative):
        return None
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left")
    level = np.searchsorted(ordered, positive, side="right")
    return float((below + level).sum() / (2 * len(positive) * len(negative)))


def risk_coverage(confidences: Floats, right: Bools) -> float:
    """Return the area under the curve of the share wrong over the share kept, the most confident kept first.

    Answers of equal confidence are kept together; 0 is best, and the share wrong is what chance makes.
    """
    wrong = 1.0 - right.astype(np.float64)
    levels, row = np.unique(-confidences, return_inverse=True)
    counts = np.bincount(row, minlength=len(levels))
    # Among equals each order is as likely: each of them counts as wrong as they are on average.
    expected = (np.bincount(row, wrong, len(levels)) / counts)[np.sort(row)]
    return float((np.cumsum(expected) / np.arange(1, len(wrong) + 1)).mean())


def logistic(features: Floats, outcomes: Bools, start: Floats, ridge: float = 1.0) -> Floats:
    """Return the weights of a logistic regression, pulled towards `start`.

    Args:
        features: N F; a column of ones is the offset.
        outcomes: N.
        start: F weights of a normal prior.
        ridge: its precision along each weight.

    Returns:
        F weights.
    """
    weights = start.astype(np.float64, copy=True)
    for _ in range(_ITERATIONS):
        expected = 1 / (1 + np.exp(-np.clip(features @ weights, -30, 30)))
        gradient = features.T @ (outcomes - expected) - ridge * (weights - start)
        curvature = features.T @ (features * (expected * (1 - expected))[:, None]) + ridge * np.eye(len(start))
        step = np.linalg.solve(curvature, gradient)
        step *= min(1.0, 4.0 / max(float(np.abs(step).max()), 1e-12))
        weights += step
        if np.abs(step).max() < 1e-8:
            break
    return weights

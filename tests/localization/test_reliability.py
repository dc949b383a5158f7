"""The figures of probabilistic answers, against loops over all pairs and prefixes."""

from __future__ import annotations

import numpy as np
import pytest

from s2s_ray.localization.reliability import auroc, bins, calibration_error, logistic, risk_coverage


def answers(seed: int, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Return confidences in hundredths, with ties, and what was right."""
    random = np.random.default_rng(seed)
    confidences = np.round(random.uniform(0, 1, count), 2)
    return confidences, random.uniform(0, 1, count) < confidences**2


def test_auroc_counts_all_pairs() -> None:
    confidences, right = answers(0)
    positive, negative = confidences[right], confidences[~right]
    pairs = [(one > other) + 0.5 * (one == other) for one in positive for other in negative]
    assert auroc(positive, negative) == pytest.approx(np.mean(pairs))
    assert auroc(positive, positive[:0]) is None
    assert auroc(np.ones(3), np.ones(2)) == 0.5


def test_risk_coverage_is_the_mean_risk_of_the_most_confident() -> None:
    """Among equal confidences, the mean over the orders in which they may come."""
    confidences, right = answers(1)
    random, areas = np.random.default_rng(2), []
    for _ in range(40):
        wrong = 1 - right[np.lexsort((random.permutation(len(right)), -confidences))]
        areas.append(np.mean([wrong[: kept + 1].mean() for kept in range(len(wrong))]))
    assert risk_coverage(confidences, right) == pytest.approx(np.mean(areas), abs=0.003)
    assert risk_coverage(np.ones(10), np.arange(10) < 7) == pytest.approx(0.3)
    assert risk_coverage(np.array([0.9, 0.8]), np.array([True, False])) == pytest.approx(0.25)


def test_calibration_error_by_tenths() -> None:
    confidences = np.array([0.05, 0.05, 0.95, 0.95, 1.0])
    right = np.array([False, True, True, True, False])
    first, second = bins(confidences, right)
    assert first == pytest.approx((0.05, 0.5, 2))
    assert second == pytest.approx((2.9 / 3, 2 / 3, 3))
    assert calibration_error(confidences, right) == pytest.approx(0.4 * 0.45 + 0.6 * 0.3)


def test_a_perfectly_calibrated_source_has_almost_no_error() -> None:
    random = np.random.default_rng(3)
    confidences = random.uniform(0, 1, 20_000)
    right = random.uniform(0, 1, 20_000) < confidences
    assert calibration_error(confidences, right) < 0.02
    assert calibration_error(confidences, ~right) > 0.3


def test_logistic_regression_is_where_the_penalised_likelihood_is_highest() -> None:
    random = np.random.default_rng(4)
    features = np.stack([np.ones(300), *random.normal(size=(2, 300))], axis=-1)
    outcomes = random.uniform(0, 1, 300) < 1 / (1 + np.exp(-features @ (0.5, 1.5, -1.0)))
    start = np.array([0.0, 1.0, 0.0])

    def loss(weights: np.ndarray) -> float:
        signed = np.where(outcomes, 1, -1) * (features @ weights)
        return float(np.log1p(np.exp(-signed)).sum() + 0.5 * ((weights - start) ** 2).sum())

    found = logistic(features, outcomes, start)
    for axis in range(3):
        for step in (1e-3, -1e-3):
            assert loss(found) < loss(found + step * np.eye(3)[axis])
    np.testing.assert_allclose(found, (0.5, 1.5, -1.0), atol=0.5)


def test_logistic_regression_of_separable_answers_is_finite() -> None:
    features = np.stack([np.ones(20), np.linspace(-1, 1, 20)], axis=-1)
    found = logistic(features, features[:, 1] > 0, np.array([0.0, 1.0]))
    assert np.isfinite(found).all()
    assert found[1] > 1

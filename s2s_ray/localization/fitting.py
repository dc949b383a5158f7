"""Fitting a calibration: what similarities have meant for pictures whose places are known.

A handful of numbers is fitted for each kind of picture, by maximum likelihood and by quantiles, because a validation
split has a few hundred pictures. The figures of `Reliability` come from pictures that were left out of the fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from s2s_ray.errors import DatasetError
from s2s_ray.geo.places import Places
from s2s_ray.localization import peaks
from s2s_ray.localization.calibration import UNCALIBRATED, Kind, Parameters, Reliability
from s2s_ray.localization.fix import heading_of, log_odds, place, probability
from s2s_ray.localization.reliability import auroc, bins, calibration_error, logistic, risk_coverage
from s2s_ray.localization.surface import Posterior, log_likelihoods
from s2s_ray.localization.turned import Turned, angle

LEAST_PICTURES = 20
"""Pictures with which a calibration can be fitted."""

_FOLDS = 5
_SCALES = tuple(np.geomspace(4.0, 200.0, 16).tolist())
_BLURS_M = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
_ELSEWHERE = 0.02 / (np.pi * 500.0**2)  # probability density of places for which the fit allows in any case
_LEAST_FACTOR = 0.2

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Trials:
    """Pictures of one kind, searched in one gallery.

    Attributes:
        fov: horizontal field of view in degrees.
        heading_known: whether the heading was known.
        similarities: cosines of Q pictures at T headings with N tiles, Q N T.
        headings: the headings that the T descriptors of a picture suppose, in degrees.
        true_headings: Q, in degrees.
        tiles: latitude and longitude of the tiles in degrees, N 2.
        places: latitude and longitude of where the pictures were taken, Q 2.
        spacing_m: metres between neighbouring tiles, as `spacing_m` counts them.
        dense: whether the pictures were taken between the tiles, and not at the centre of one.
        elsewhere_m: tiles closer to a picture are taken away to ask for it as one from outside of the region.
    """

    fov: float
    heading_known: bool
    similarities: NDArray[np.float32]
    headings: Floats
    true_headings: Floats
    tiles: Floats
    places: Floats
    spacing_m: float
    dense: bool
    elsewhere_m: float = 50.0

    def picture(self) -> Turned:
        """Return what is known of each picture."""
        return Turned(np.empty((len(self.headings), 0), np.float32), self.headings, 0.0, self.fov)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of one picture: all that the last numbers of a calibration are fitted to.

    Attributes:
        mass: posterior mass closer to the position than the place.
        metres: position error.
        right: whether the position is right.
        peak: log-odds of the first peak.
        evidence: logarithm of the mean likelihood over the tiles.
        peak_elsewhere, evidence_elsewhere: the same without the tiles around the place; NaN if there are no others.
        heading_error, heading_deviation: degrees.
    """

    mass: float
    metres: float
    right: bool
    peak: float
    evidence: float
    peak_elsewhere: float
    evidence_elsewhere: float
    heading_error: float
    heading_deviation: float


def fit(trials: Trials) -> Kind:
    """Fit the calibration of one kind of picture.

    Raises:
        DatasetError: fewer pictures than `LEAST_PICTURES`.
    """
    count = len(trials.places)
    if count < LEAST_PICTURES:
        raise DatasetError(
            f"{count} pictures with a position are too few to calibrate with: expected at least {LEAST_PICTURES}"
        )
    surfaces = _Surfaces(trials)
    everything = np.arange(count)
    held: list[tuple[_Outcome, Parameters]] = []
    folds = np.random.default_rng(0).permutation(count) % _FOLDS
    for fold in range(_FOLDS):
        mine, others = everything[folds == fold], everything[folds != fold]
        parameters = _parameters(trials, surfaces, others)
        held += [(surfaces.outcome(row, parameters.scale, parameters.blur_m), parameters) for row in mine]
    parameters = _parameters(trials, surfaces, everything)
    return Kind(
        fov=trials.fov,
        heading_known=trials.heading_known,
        **parameters._asdict(),
        reliability=_reliability(trials, held),
    )


class _Surfaces:
    """The posterior of each picture at any scale."""

    def __init__(self, trials: Trials) -> None:
        self.trials = trials
        self.picture = trials.picture()
        self.weights = self.picture.weights()
        tiles, places = Places.on_ellipsoid(trials.tiles).points, Places.on_ellipsoid(trials.places).points
        self.metres = np.stack([np.linalg.norm(tiles - one, axis=1) for one in places])
        blurs = _BLURS_M if trials.dense else (UNCALIBRATED.blur_m,)
        self.choices = [(scale, blur) for scale in _SCALES for blur in blurs]
        variances = [blur**2 + trials.spacing_m**2 / 12 for blur in blurs]
        densities = [np.exp(self.metres**2 / (-2 * one)) / (2 * np.pi * one) for one in variances]
        self.fits = np.concatenate([self._fits(scale, densities) for scale in _SCALES])
        self._outcomes: dict[tuple[int, float, float], _Outcome] = {}

    def _fits(self, scale: float, densities: list[Floats]) -> Floats:
        """Return the logarithm of the posterior's density at the place of each picture, for each blur, B Q.

        Args:
            densities: for each blur, that of a place around each tile at the place of each picture, Q N.
        """
        found = np.stack([log_likelihoods(one, self.weights, scale)[0] for one in self.trials.similarities])
        shares = np.exp(found - found.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        return np.log(np.stack([(shares * density).sum(axis=1) for density in densities]) + _ELSEWHERE)

    def outcome(self, row: int, scale: float, blur_m: float) -> _Outcome:
        """Return what becomes of a picture."""
        key = (row, scale, blur_m)
        if key not in self._outcomes:
            self._outcomes[key] = self._outcome(row, scale, blur_m)
        return self._outcomes[key]

    def growth(self, rows: Rows, scale: float) -> float:
        """Return `Parameters.growth`: the deviation of the log-likelihood over the tiles away from each picture."""
        variances = [
            log_likelihoods(self.trials.similarities[row][far], self.weights, scale)[0].var()
            for row in rows
            if len(far := np.flatnonzero(self.metres[row] > self.trials.elsewhere_m)) > 1
        ]
        return float(np.sqrt(np.mean(variances))) if variances else 0.0

    def _outcome(self, row: int, scale: float, blur_m: float) -> _Outcome:
        trials = self.trials
        likelihoods, at = log_likelihoods(trials.similarities[row], self.weights, scale)
        found = Posterior(np.arange(len(likelihoods)), likelihoods, (at,), -np.inf, len(likelihoods))
        located = place(found, trials.tiles, trials.spacing_m, blur_m)
        assert located is not None, "all tiles of a calibration have positions"
        members = located.groups[0].members
        heading, deviation = heading_of(self.picture, found.probabilities[members] @ at[members], 1.0)
        metres = located.metres_to(trials.places[row])
        far = np.flatnonzero(self.metres[row] > trials.elsewhere_m)
        peak_elsewhere = evidence_elsewhere = float("nan")
        if len(far):
            others = Posterior(far, likelihoods[far], (), -np.inf, len(far))
            elsewhere = place(others, trials.tiles[far], trials.spacing_m, blur_m)
            assert elsewhere is not None, "all tiles of a calibration have positions"
            peak_elsewhere, evidence_elsewhere = log_odds(elsewhere.groups[0].probability), others.evidence
        return _Outcome(
            mass=peaks.mass_within(located.distances, located.within, metres),
            metres=metres,
            right=metres <= located.right_m,
            peak=log_odds(located.groups[0].probability),
            evidence=found.evidence,
            peak_elsewhere=peak_elsewhere,
            evidence_elsewhere=evidence_elsewhere,
            heading_error=abs(float(angle(np.array(heading - trials.true_headings[row])))),
            heading_deviation=deviation,
        )


def _parameters(trials: Trials, surfaces: _Surfaces, rows: Rows) -> Parameters:
    """Fit all numbers to some of the pictures."""
    scale, blur_m = surfaces.choices[int(np.argmax(surfaces.fits[:, rows].sum(axis=1)))]
    outcomes = [surfaces.outcome(row, scale, blur_m) for row in rows]
    outside, region = _region(outcomes)
    masses = np.array([outcome.mass for outcome in outcomes])
    # Pictures at the centres of their tiles say nothing of those between: their radii are only widened.
    least = (0.0, 0.0) if trials.dense else (0.68, 0.95)
    features = np.array([(1.0, outcome.evidence - outside, outcome.peak) for outcome in outcomes])
    right = np.array([outcome.right for outcome in outcomes])
    return Parameters(
        scale=scale,
        outside=outside,
        blur_m=blur_m,
        mass_68=max(_quantile(masses, 0.68), least[0]),
        mass_95=max(_quantile(masses, 0.95), least[1]),
        heading_factor=_heading_factor(outcomes),
        tiles=len(trials.tiles),
        growth=surfaces.growth(rows, scale),
        region=region,
        confidence=_triple(logistic(features, right, np.array(UNCALIBRATED.confidence))),
    )


def _region(outcomes: list[_Outcome]) -> tuple[float, tuple[float, float, float]]:
    """Return `outside` and `region`: the logistic regression of pictures from the region against others."""
    inside = np.array([(outcome.evidence, outcome.peak) for outcome in outcomes])
    outside = np.array([(outcome.evidence_elsewhere, outcome.peak_elsewhere) for outcome in outcomes])
    outside = outside[np.isfinite(outside).all(axis=1)]
    if not len(outside):
        return float(inside[:, 0].mean()), UNCALIBRATED.region
    both = np.concatenate([inside, outside])
    centre = float(np.median(both[:, 0]))
    features = np.column_stack([np.ones(len(both)), both[:, 0] - centre, both[:, 1]])
    found = logistic(features, np.arange(len(both)) < len(inside), np.array([0.0, 0.3, 0.0]))
    return centre, _triple(found)


def _triple(weights: Floats) -> tuple[float, float, float]:
    offset, first, second = weights.tolist()
    return offset, first, second


def _heading_factor(outcomes: list[_Outcome]) -> float:
    """Return `heading_factor`: how many deviations hold the heading of 68% of the pictures whose place is right."""
    headed = [outcome for outcome in outcomes if outcome.right and outcome.heading_deviation > 0]
    if len(headed) < LEAST_PICTURES:
        return UNCALIBRATED.heading_factor
    ratios = np.array([outcome.heading_error / outcome.heading_deviation for outcome in headed])
    return max(_LEAST_FACTOR, _quantile(ratios, 0.68))


def _quantile(values: Floats, share: float) -> float:
    """Return the smallest value that is at least as large as a share of the next one would be (split conformal)."""
    ordered = np.sort(values)
    return float(ordered[min(len(ordered), int(np.ceil(share * (len(ordered) + 1)))) - 1])


def _reliability(trials: Trials, held: list[tuple[_Outcome, Parameters]]) -> Reliability:
    """Return the figures of pictures with the parameters that were fitted without them."""
    asked = [(by, one.evidence - by.outside, one.peak) for one, by in held]
    others = [
        (by, one.evidence_elsewhere - by.outside, one.peak_elsewhere)
        for one, by in held
        if np.isfinite(one.evidence_elsewhere)
    ]
    regions = np.array([probability(by.region, evidence, peak) for by, evidence, peak in asked + others])
    confidences = regions * [probability(by.confidence, evidence, peak) for by, evidence, peak in asked + others]
    right = np.array([one.right for one, _ in held] + [False] * len(others))
    headed = [one.heading_error <= by.heading_factor * one.heading_deviation for one, by in held if one.right]
    return Reliability(
        pictures=len(held),
        right=float(right[: len(held)].mean()),
        bins=bins(confidences, right),
        calibration_error=calibration_error(confidences, right),
        risk_coverage=risk_coverage(confidences, right),
        auroc_right=auroc(confidences[right], confidences[~right]),
        auroc_region=auroc(regions[: len(held)], regions[len(held) :]),
        within_68=float(np.mean([one.mass <= by.mass_68 for one, by in held])),
        within_95=float(np.mean([one.mass <= by.mass_95 for one, by in held])),
        heading_within=None if trials.heading_known or not headed else float(np.mean(headed)),
        median_m=float(np.median([one.metres for one, _ in held])),
    )

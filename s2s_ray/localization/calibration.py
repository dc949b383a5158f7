"""`calibration.json`: how similarities of one checkpoint become probabilities, by what is known of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from s2s_ray.errors import RegistryError, S2SError
from s2s_ray.storage.documents import Document

CALIBRATION_FILE = "calibration.json"
RIGHT_M = 25.0
"""Metres within which a position counts as right, as usual in visual place recognition; more in a sparse index."""


class Parameters(NamedTuple):
    """What turns the similarities of one picture into a fix.

    Attributes:
        scale: logarithm of the likelihood ratio for each unit of cosine similarity (tau).
        outside: logarithm of the mean likelihood over the tiles, halfway between pictures from the region and others.
        region: offset, and the factors of that logarithm beyond `outside` and of the first peak's log-odds, in the
            log-odds that the picture is from the region.
        blur_m: standard deviation in metres, along each axis, of the place around the tile that matches best, without
            the spacing of the tiles.
        mass_68, mass_95: posterior mass within the radii that hold the place at these rates.
        heading_factor: standard deviations of the posterior's headings in one spread that holds at 68%.
        tiles: number of tiles with which `outside` and `region` were fitted; 0 if unknown.
        growth: standard deviation of the log-likelihood over tiles that are not those of the picture.
        confidence: the same in the log-odds that the position is right, for a picture from the region; a fix's
            confidence is this probability times that of the region.
    """

    scale: float = 25.0
    outside: float = 0.0
    blur_m: float = 4.0
    mass_68: float = 0.68
    mass_95: float = 0.95
    heading_factor: float = 1.0
    tiles: float = 0.0
    growth: float = 0.0
    region: tuple[float, float, float] = (0.0, 1.0, 0.0)
    confidence: tuple[float, float, float] = (0.0, 0.0, 1.0)


UNCALIBRATED = Parameters()
"""Used to rank places without a calibration; its probabilities mean nothing."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Reliability(_Part):
    """How a calibration does on pictures that it was not fitted on (cross-validation).

    Attributes:
        pictures: number of pictures from the region; as many are asked again from outside of it.
        right: share of the fixes of pictures from the region that are right.
        bins: confidence (mean), share right and number of pictures in each tenth of confidence that has some. Here, and
            in the three figures below, pictures from outside count as wrong.
        calibration_error: expected calibration error of the confidence.
        risk_coverage: area under the curve of the share of wrong fixes over the share of fixes kept, by confidence.
        auroc_right: area under the ROC curve of the confidence, right against wrong fixes; None if all are alike.
        auroc_region: the same for `in_region_probability`, pictures from the region against others.
        within_68, within_95: share of the pictures within the radii.
        heading_within: share of right fixes whose heading is within its spread; None if the heading is known.
        median_m: median of the position error in metres.
    """

    pictures: int
    right: float
    bins: tuple[tuple[float, float, int], ...]
    calibration_error: float
    risk_coverage: float
    auroc_right: float | None
    auroc_region: float | None
    within_68: float
    within_95: float
    heading_within: float | None
    median_m: float


class Kind(_Part):
    """The calibration of one kind of picture.

    Attributes:
        fov: horizontal field of view in degrees.
        heading_known: whether the heading is known.
        scale, outside, ...: see `Parameters`.
    """

    fov: float
    heading_known: bool
    scale: float
    outside: float
    blur_m: float
    mass_68: float
    mass_95: float
    heading_factor: float
    tiles: float = 0.0
    growth: float = 0.0
    region: tuple[float, float, float]
    confidence: tuple[float, float, float]
    reliability: Reliability

    def parameters(self) -> Parameters:
        """Return what turns similarities into a fix."""
        return Parameters(**{name: getattr(self, name) for name in Parameters._fields})


class Calibration(Document):
    """The content of `calibration.json`."""

    ERROR: ClassVar[type[S2SError]] = RegistryError
    NOUN: ClassVar[str] = "calibration of a release"

    checkpoint: str = ""
    """Fingerprint (SHA-256 of the weights) of the checkpoint."""
    dataset: str = ""
    """URI of the data set."""
    dataset_digest: str = ""
    tiles: int = 0
    """Tiles in the gallery that was searched."""
    spacing_m: float | None = None
    """Metres between the tiles of a dense gallery; None if each picture stands at the centre of its tile."""
    kinds: tuple[Kind, ...] = Field(min_length=1)

    def parameters(self, fov: float, unknown: float = 0.0) -> Parameters:
        """Return the parameters for a picture, interpolated between the kinds.

        Args:
            fov: horizontal field of view in degrees; outside of the kinds' the nearest one counts.
            unknown: 0 if the heading is known, 1 if it is unknown, between them if it is known roughly.
        """
        known, open_ = (self._at(fov, heading_known) for heading_known in (True, False))
        if known is None or open_ is None:
            found = known or open_
            assert found is not None, "a calibration has at least one kind"
            return found
        return _between(known, open_, unknown)

    def require(self, checkpoint: str, what: str = "the calibration") -> None:
        """Refuse a calibration of another checkpoint. Raises RegistryError."""
        if self.checkpoint != checkpoint:
            raise RegistryError(
                f"{what} was made with checkpoint {self.checkpoint[:8] or 'unknown'}, not {checkpoint[:8]}: "
                "run `s2s checkpoint calibrate` with this one"
            )

    def lines(self) -> list[str]:
        """Return the figures of all kinds as a table."""
        table = [
            "fov  heading  right  within 68%  within 95%  median m  calibration error  risk-coverage  "
            "AUROC right  AUROC region"
        ]
        for kind in self.kinds:
            of = kind.reliability
            right, region = ("-" if area is None else f"{area:.2f}" for area in (of.auroc_right, of.auroc_region))
            table.append(
                f"{kind.fov:3.0f}  {'known  ' if kind.heading_known else 'unknown'}  {of.right:5.1%}  "
                f"{of.within_68:10.1%}  {of.within_95:10.1%}  {of.median_m:8.1f}  {of.calibration_error:17.3f}  "
                f"{of.risk_coverage:13.3f}  {right:>11}  {region:>12}"
            )
        return table

    @property
    def calibration_error(self) -> float:
        """The largest expected calibration error among the kinds with the whole horizon; of all, if there is none."""
        full = [kind for kind in self.kinds if kind.fov == 360] or list(self.kinds)
        return max(kind.reliability.calibration_error for kind in full)

    def _at(self, fov: float, heading_known: bool) -> Parameters | None:
        """Return the parameters for a field of view; None if there is no kind with such a heading."""
        kinds = sorted((kind for kind in self.kinds if kind.heading_known == heading_known), key=lambda kind: kind.fov)
        if not kinds:
            return None
        above = next((kind for kind in kinds if kind.fov >= fov), kinds[-1])
        below = next((kind for kind in reversed(kinds) if kind.fov <= fov), kinds[0])
        if above.fov == below.fov:
            return above.parameters()
        return _between(below.parameters(), above.parameters(), (fov - below.fov) / (above.fov - below.fov))


def _between(first: Parameters, second: Parameters, share: float) -> Parameters:
    """Return the mean of two sets of parameters with weights 1 - share and share."""
    weights = np.array([1 - share, share])
    numbers = (weights @ (first[:-2], second[:-2])).tolist()
    region, confidence = (
        tuple((weights @ pair).tolist())
        for pair in ((first.region, second.region), (first.confidence, second.confidence))
    )
    return Parameters._make([*numbers, region, confidence])


def mean_of(parameters: Sequence[Parameters]) -> Parameters:
    """Return the mean of the parameters of several pictures of one place."""
    found = parameters[0]
    for number, other in enumerate(parameters[1:], start=2):
        found = _between(found, other, 1 / number)
    return found

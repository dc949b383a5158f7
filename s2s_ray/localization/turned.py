"""A picture as it is searched: one descriptor for each heading that it may have."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from s2s_ray.geo.images import Descriptors
from s2s_ray.geo.query import Known

_WINDOW = 3.0  # spreads around a heading that are searched


class Turned(NamedTuple):
    """The descriptors of one picture, one for each heading that it may have.

    Attributes:
        descriptors: T D, unit length.
        headings: compass bearing of the picture's middle column that each of them supposes, in degrees, T; one if the
            heading is known.
        heading_spread: standard deviation in degrees of a heading that is known but not exactly.
        fov: horizontal field of view in degrees.
        heading: the heading that is known up to `heading_spread`; None if it is unknown, or the only one of `headings`.
    """

    descriptors: Descriptors
    headings: NDArray[np.float64]
    heading_spread: float = 0.0
    fov: float = 360.0
    heading: float | None = None

    @property
    def step(self) -> float:
        """Degrees between neighbouring headings; 0 for a single one."""
        return float(np.diff(np.sort(self.headings % 360)).min()) if len(self.headings) > 1 else 0.0

    @property
    def unknown(self) -> float:
        """How far the heading is from known: 0 if it is known, 1 if nothing is known of it."""
        if len(self.headings) == 1:
            return 0.0
        return 1.0 if self.heading is None else min(1.0, 2 * _WINDOW * self.heading_spread / 360)

    def weights(self) -> NDArray[np.float64]:
        """Return the probability of each heading before the search, T."""
        if self.heading is None or len(self.headings) == 1:
            return np.full(len(self.headings), 1 / len(self.headings))
        spread = max(self.heading_spread, self.step / 2)
        likely = np.exp(-0.5 * (angle(self.headings - self.heading) / spread) ** 2)
        return np.asarray(likely / likely.sum())

    def narrowed(self) -> Turned:
        """Return the picture without the headings that are too far from the known one."""
        if self.heading is None or len(self.headings) == 1:
            return self
        away = np.abs(angle(self.headings - self.heading))
        kept = away <= max(_WINDOW * self.heading_spread, self.step, away.min())
        return self._replace(descriptors=self.descriptors[kept], headings=self.headings[kept])


def turns(known: Known) -> bool:
    """Return true for a picture that may have one of several headings, which are searched."""
    return known.heading is None or known.heading_spread > 0


def searched(known: Known, descriptors: Descriptors, turned_by: NDArray[np.float64] | None = None) -> Turned:
    """Return a picture as it is searched.

    Args:
        known: what is known of the picture.
        descriptors: T D, of the view at the known heading, or at 0 if it is unknown, turned by so many degrees.
        turned_by: degrees, T; None if there is only the view as it is.
    """
    heading = known.heading or 0.0
    if turned_by is None:
        return Turned(descriptors, np.array([heading]), fov=known.fov)
    headings = (heading + turned_by) % 360
    return Turned(descriptors, headings, known.heading_spread, known.fov, known.heading).narrowed()


def angle(degrees: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return angles as -180 to 180 degrees."""
    return (degrees + 180) % 360 - 180

"""Cameras: the directions that a picture of a given projection shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Projection = Literal["equirectangular", "rectilinear", "cylindrical"]
"""How a picture shows directions: columns and rows at equal steps of azimuth and elevation (a panorama), a plane (a
photograph), or columns at equal steps of azimuth and rows at equal steps of the tangent (a phone's sweep)."""
PROJECTIONS: tuple[Projection, ...] = ("equirectangular", "rectilinear", "cylindrical")


class Crop(NamedTuple):
    """The edges of a picture in degrees: azimuths from the axis of the camera, and elevations in its middle column."""

    left: float
    right: float
    top: float
    bottom: float


@dataclass(frozen=True, slots=True)
class Camera:
    """The directions that a picture shows.

    Attributes:
        projection: how they are spread over the picture.
        edges: the directions of its edges, as seen by the camera. Those of `rectilinear` pictures are all less than 90
            degrees from the axis, and so are the elevations of `cylindrical` ones.
        heading: compass bearing of the camera's axis, in degrees.
        pitch: degrees by which the axis points above the horizon.
        roll: degrees by which the camera is turned clockwise around its axis; the horizon then is turned
            anticlockwise in the picture, as XMP GPano defines it.
    """

    projection: Projection
    edges: Crop
    heading: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0

    @property
    def closed(self) -> bool:
        """Whether the picture's ends meet: it shows all azimuths."""
        return self.projection != "rectilinear" and self.edges.right - self.edges.left >= 360

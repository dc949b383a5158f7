"""Regions of the globe: a box or polygons in WGS 84 degrees, as text or GeoJSON, and the grid of points inside."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from s2s_ray.errors import PriorError
from s2s_ray.geo.lattice import Cells, Lattice
from s2s_ray.geo.numbers import elements, finite
from s2s_ray.geo.prior import Box
from s2s_ray.geo.rings import Ring, is_straight, meeting, ring_m2, toggle

MAX_POINTS = 50_000_000
_KINDS = "expected a Polygon, a MultiPolygon, or a Feature or FeatureCollection of these"
_CHUNK = 2_000_000


@dataclass(frozen=True, slots=True)
class Region:
    """All points inside of at least one polygon.

    Attributes:
        polygons: the rings of each polygon: its outline, then its holes. The line between two neighbouring positions is
            straight in longitude and latitude (as in GeoJSON), the short way round.

    A point on an outline belongs to one of the two sides, so polygons that touch share no point.
    """

    polygons: tuple[tuple[Ring, ...], ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the region of `WEST,SOUTH,EAST,NORTH` in degrees, or of the text of a GeoJSON file.

        A box with `west` above `east` crosses the date line, and so does a polygon whose neighbouring longitudes are
        more than 180 degrees apart, or which has longitudes beyond 180.

        Raises:
            PriorError: neither of them, or a region without an area; the message says where it is wrong.
        """
        text = text.strip().removeprefix("\ufeff").strip()
        if text.startswith(("{", "[")):
            return cls.of_geojson(_tree(text))
        parts = text.split(",")
        if len(parts) != 4:
            raise PriorError(f"region={_shown(text)}: expected WEST,SOUTH,EAST,NORTH in degrees, or GeoJSON")
        try:
            west, south, east, north = (float(part) for part in parts)
        except ValueError:
            raise PriorError(f"region={_shown(text)}: expected four numbers, WEST,SOUTH,EAST,NORTH") from None
        return cls.of_box(Box(west, south, east, north))

    @classmethod
    def of_box(cls, box: Box) -> Self:
        """Return a box as a region. Raises PriorError if it has no area."""
        east = box.east if box.west <= box.east else box.east + 360
        if east == box.west or box.south == box.north:
            raise PriorError(f"region={box.west:g},{box.south:g},{east:g},{box.north:g}: the box has no area")
        # In steps below 180 degrees, so that the short way between neighbours is the right one.
        along = [box.west + (east - box.west) * third / 3 for third in (1, 2)] if east - box.west > 170 else []
        southern = [(longitude, box.south) for longitude in (box.west, *along, east)]
        northern = [(longitude, box.north) for longitude in (east, *reversed(along), box.west)]
        return cls((((*southern, *northern),),))

    @classmethod
    def of_geojson(cls, tree: object) -> Self:
        """Return the region of a GeoJSON object (RFC 7946). Raises PriorError."""
        polygons = tuple(_polygon(rings, where) for rings, where in _polygons(tree, "region"))
        if not polygons:
            raise PriorError(f"region: the GeoJSON has no polygon; {_KINDS}")
        return cls(polygons)

    def geojson(self) -> dict[str, Any]:
        """Return the region as a GeoJSON geometry that `of_geojson` reads, with longitudes continuous."""
        rings = [[[list(point) for point in (*ring, ring[0])] for ring in polygon] for polygon in self.polygons]
        return {"type": "MultiPolygon", "coordinates": rings}

    def joined(self, other: Region) -> Region:
        """Return the region of all points that are in this or in another one."""
        return Region(self.polygons + tuple(found for found in other.polygons if found not in self.polygons))

    @property
    def bounds(self) -> Box:
        """The smallest box around the region; its `west` is above its `east` if it crosses the date line."""
        latitudes = [latitude for rings in self.polygons for _, latitude in rings[0]]
        spans = sorted((_normal(west), east - west, east) for west, _, east, _ in map(_box, self.polygons))
        # The box leaves out the largest gap between the polygons' longitudes around the globe.
        reach, eastern = max((start + width - 360, east) for start, width, east in spans)
        gap, edges = 0.0, (-180.0, 180.0)
        for start, width, east in spans:
            if start - reach > gap:
                gap, edges = start - reach, (start, _normal_east(eastern))
            reach, eastern = max((reach, eastern), (start + width, east))
        return Box(edges[0], min(latitudes), edges[1], max(latitudes))

    @property
    def area_m2(self) -> float:
        """Square metres on the WGS 84 ellipsoid; where polygons overlap, each counts."""
        return sum(abs(ring_m2(rings[0])) - sum(abs(ring_m2(hole)) for hole in rings[1:]) for rings in self.polygons)

    def mask(self, latitudes: NDArray[np.float64], longitudes: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return a mask of the N points that lie inside; unknown points (NaN) do not."""
        inside = np.zeros(len(latitudes), np.bool_)
        order = np.argsort(latitudes, kind="stable")  # NaN last
        y, x = latitudes[order], longitudes[order]
        for rings in self.polygons:
            west, _, east, _ = _box(rings)
            # Degrees east of the polygon's western edge: -180 and 180 are one meridian.
            across = west + (x - west) % 360
            odd = np.zeros(len(y), np.bool_)
            for ring in rings:
                toggle(odd, across, y, ring)
            inside[order] |= odd & (across <= east)
        return inside

    def grid_cells(self, every_m: float) -> Cells:
        """Return the cells of the lattice of that spacing whose points lie inside, N 2, by row, then by column.

        Raises:
            PriorError: a spacing that is out of range, or so small that there would be more than `MAX_POINTS` points.
        """
        lattice = Lattice(every_m)
        expected = self.area_m2 / lattice.every_m**2
        if expected > MAX_POINTS:
            raise PriorError(
                f"every={lattice.every_m:g}: a region of {self.area_m2 / 1e6:,.0f} km2 would have {expected:,.0f} "
                f"points, more than {MAX_POINTS:,}; enlarge the spacing or make the region smaller"
            )
        found = [np.zeros((0, 2), np.int64)]
        for rings in self.polygons:
            west, south, east, north = _box(rings)
            part = Region((rings,))
            for low, high in _bands(lattice, west, south, east, north):
                cells = lattice.within(west, low, east, high)
                positions = lattice.positions(cells)
                found.append(cells[part.mask(positions[:, 0], positions[:, 1])])
        cells = np.concatenate(found)
        keys = np.unique((cells[:, 0] << 32) + cells[:, 1] + (1 << 31))
        return np.stack([keys >> 32, (keys & 0xFFFFFFFF) - (1 << 31)], axis=-1)

    def grid(self, every_m: float) -> NDArray[np.float64]:
        """Return latitudes and longitudes of the points of `grid_cells`, N 2, in its order. Raises PriorError."""
        return Lattice(every_m).positions(self.grid_cells(every_m))


def _tree(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PriorError(f"region={_shown(text)}: not JSON ({error})") from None


def _polygons(tree: object, where: str, depth: int = 0) -> list[tuple[object, str]]:
    """Return the coordinates of all polygons of a GeoJSON object, and where each is found."""
    if not isinstance(tree, dict) or depth > 3:
        raise PriorError(f"{where}={_shown(tree)}: {_KINDS}")
    kind = tree.get("type")
    if kind == "FeatureCollection":
        features = _list(tree.get("features"), f"{where}.features")
        return [
            found
            for number, feature in enumerate(features)
            for found in _polygons(feature, f"{where}.features[{number}]", depth + 1)
        ]
    if kind == "Feature":
        return _polygons(tree.get("geometry"), f"{where}.geometry", depth + 1)
    if kind == "Polygon":
        return [(tree.get("coordinates"), f"{where}.coordinates")]
    if kind == "MultiPolygon":
        parts = _list(tree.get("coordinates"), f"{where}.coordinates")
        return [(part, f"{where}.coordinates[{number}]") for number, part in enumerate(parts)]
    raise PriorError(f"{where}.type={_shown(kind)}: {_KINDS}")


def _polygon(rings: object, where: str) -> tuple[Ring, ...]:
    found = [_ring(ring, f"{where}[{number}]") for number, ring in enumerate(_list(rings, where))]
    if not found:
        raise PriorError(f"{where}=[]: expected a polygon's outline")
    middle = sum(longitude for longitude, _ in found[0]) / len(found[0])
    polygon = (found[0], *(_shifted(hole, middle) for hole in found[1:]))
    _require_simple(polygon, where)
    return polygon


def _require_simple(polygon: tuple[Ring, ...], where: str) -> None:
    """Raise PriorError if rings cross, if one touches itself, or if a hole lies outside of the outline."""
    found = meeting(polygon)
    if found is not None:
        (first, second), lines = found, []
        for ring, line in found:
            start, end = polygon[ring][line], polygon[ring][(line + 1) % len(polygon[ring])]
            lines.append(f"{where}[{ring}], {start[0]:.9g},{start[1]:.9g} to {end[0]:.9g},{end[1]:.9g}")
        what = "the ring crosses or touches itself" if first[0] == second[0] else "two rings of a polygon cross"
        raise PriorError(f"{where}[{first[0]}]: {what}: the line {lines[0]}, and the line {lines[1]}")
    for number, hole in enumerate(polygon[1:], start=1):
        corners = np.array(hole)
        x, y = np.concatenate([corners, (corners + np.roll(corners, -1, 0)) / 2]).T
        order = np.argsort(y)
        odd = np.zeros(len(y), np.bool_)
        toggle(odd, x[order], y[order], polygon[0])
        if not odd.any():
            raise PriorError(f"{where}[{number}]: the hole lies outside of its outline, {where}[0]")
    if sum(abs(ring_m2(hole)) for hole in polygon[1:]) >= abs(ring_m2(polygon[0])):
        raise PriorError(f"{where}: the holes leave nothing of the outline")


def _ring(positions: object, where: str) -> Ring:
    points = [_position(point, f"{where}[{number}]") for number, point in enumerate(_list(positions, where))]
    if len(points) < 4 or points[0] != points[-1]:
        raise PriorError(
            f"{where}: {len(points)} positions from {points[0] if points else None} to {points[-1] if points else None}"
            ": expected a closed ring of at least four, whose last position repeats the first"
        )
    ring = [points[0]]
    for longitude, latitude in points[1:]:
        ring.append((_near(longitude, ring[-1][0]), latitude))
    if ring[-1] != ring[0]:
        raise PriorError(f"{where}: the ring goes around a pole, which is not supported")
    closed = tuple(point for point, after in pairwise(ring) if point != after)
    if len(set(closed)) < 3:
        raise PriorError(f"{where}: the ring has no area: expected at least three different positions")
    if is_straight(closed):
        raise PriorError(f"{where}: the ring has no area: all of its positions lie on one line")
    return closed


def _position(point: object, where: str) -> tuple[float, float]:
    numbers = _list(point, where)
    if len(numbers) < 2:
        raise PriorError(f"{where}={_shown(point)}: expected longitude and latitude")
    longitude = finite(f"{where}[0]", numbers[0], PriorError, "a longitude in degrees")
    latitude = finite(f"{where}[1]", numbers[1], PriorError, "a latitude in degrees")
    if not -360 <= longitude <= 360:
        raise PriorError(f"{where}: longitude {longitude:g}: expected WGS 84 degrees, -180 to 180")
    if not -90 <= latitude <= 90:
        raise PriorError(f"{where}: latitude {latitude:g}: expected -90 to 90; GeoJSON has the longitude first")
    return longitude, latitude


def _list(value: object, where: str) -> list[object]:
    found = elements(value)
    if found is None:
        raise PriorError(f"{where}={_shown(value)}: expected a list")
    return found


def _near(longitude: float, other: float) -> float:
    """Return a longitude as the number within 180 degrees of another one."""
    return longitude - 360 * round((longitude - other) / 360) if abs(longitude - other) > 180 else longitude


def _shifted(ring: Ring, middle: float) -> Ring:
    turns = 360 * round((ring[0][0] - middle) / 360)
    return tuple((longitude - turns, latitude) for longitude, latitude in ring)


def _box(rings: tuple[Ring, ...]) -> tuple[float, float, float, float]:
    """Return west, south, east and north of a polygon; longitudes as they are in its outline."""
    longitudes, latitudes = zip(*rings[0], strict=True)
    return min(longitudes), min(latitudes), max(longitudes), max(latitudes)


def _normal(longitude: float) -> float:
    return longitude if -180 <= longitude < 180 else (longitude + 180) % 360 - 180


def _normal_east(longitude: float) -> float:
    """Return the longitude of an eastern edge, from above -180 to 180."""
    return longitude if -180 < longitude <= 180 else -((180 - longitude) % 360 - 180)


def _bands(lattice: Lattice, west: float, south: float, east: float, north: float) -> list[tuple[float, float]]:
    """Return ranges of latitude that contain about `_CHUNK` points of a box each."""
    width_m = max((east - west) * 111_320 * math.cos(math.radians(min(abs(south), abs(north)))), lattice.every_m)
    degrees = max(_CHUNK / (width_m / lattice.every_m) * lattice.every_m, lattice.every_m) / 111_320
    edges = np.linspace(south, north, max(1, math.ceil((north - south) / degrees)) + 1)
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

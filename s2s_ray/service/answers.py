"""Answers about pictures as plain trees: how each was understood, the matches, the fix and the surface.

The service sends them, and `s2s localize` shows the same of a checkpoint on this machine. Neither PyTorch nor FastAPI
is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from s2s_ray.geo.prior import distances_m
from s2s_ray.geo.query import Known
from s2s_ray.index import ReferenceIndex
from s2s_ray.localization import Found, Surface
from s2s_ray.localization.area import Position

Tree = dict[str, Any]


def found_tree(index: ReferenceIndex, found: Found, *, surface: bool) -> Tree:
    """Return what a search has found as plain values: `matches`, `fix`, `headings` and, if wanted, `surface`.

    `headings` has the heading and its spread of each picture; without calibration the spread is None.
    """
    fix = None if found.fix is None else {**found.fix._asdict(), "peaks": [peak._asdict() for peak in found.fix.peaks]}
    calibrated = found.fix is not None and found.fix.calibrated
    headings = [one and (one[0], one[1] if calibrated else None) for one in found.headings]
    tree: Tree = {"matches": [match._asdict() for match in found.matches], "fix": fix, "headings": headings}
    return {**tree, "surface": _surface(index, found.surface)} if surface else tree


def localization(found: Tree, true: Position | None) -> Tree:
    """Return the public form of a `found_tree`, with metres from the true position if it is known."""
    tree: Tree = {"fix": _fix(found["fix"], true), "matches": _matches(found["matches"], true)}
    return {**tree, "surface": found["surface"]} if "surface" in found else tree


def query(known: Known, warnings: Sequence[str] = (), estimated: tuple[float, float | None] | None = None) -> Tree:
    """Return a picture as it was understood.

    Args:
        known: what is known of the picture.
        warnings: further ones.
        estimated: the heading that the search has found and its spread, reported if none was known.
    """
    heading: tuple[float | None, float | None] = (known.heading, known.heading_spread)
    origin = known.heading_origin
    if known.heading is None:
        heading, origin = estimated or (None, None), "estimated" if estimated else None
    place = None if known.position is None else dict(zip(("latitude", "longitude"), known.position, strict=True))
    return {
        "heading": heading[0],
        "heading_origin": origin,
        "heading_spread": heading[1],
        "fov": known.fov,
        "fov_origin": known.fov_origin,
        "projection": known.projection,
        "projection_origin": known.projection_origin,
        "pitch": known.pitch,
        "roll": known.roll,
        "position": place,
        "warnings": [*known.warnings, *warnings],
    }


def _fix(fix: Tree | None, true: Position | None) -> Tree | None:
    if fix is None:
        return None
    position = {key: fix[key] for key in ("latitude", "longitude", "radius_m", "radius_95_m")}
    heading = None if fix["heading"] is None else {"degrees": fix["heading"], "spread": fix["heading_spread"]}
    kept = ("confidence", "confidence_m", "in_region", "in_region_probability", "peaks", "calibrated")
    [distance] = _metres(true, [position])
    return {"position": position, "heading": heading, **{key: fix[key] for key in kept}, "distance_m": distance}


def _matches(found: Sequence[Tree], true: Position | None) -> list[Tree]:
    kept = ("rank", "id", "latitude", "longitude", "descriptor_distance", "heading")
    return [
        {**{key: match[key] for key in kept}, "distance_m": metres}
        for match, metres in zip(found, _metres(true, found), strict=True)
    ]


def _surface(index: ReferenceIndex, surface: Surface) -> Tree:
    known = np.isfinite(surface.positions).all(axis=1)
    columns = np.column_stack([surface.positions, surface.probabilities])[known].tolist()
    points = [dict(zip(("latitude", "longitude", "probability"), values, strict=True)) for values in columns]
    region = index.info.region
    return {"points": points, "spacing_m": None if region is None else region.every_m}


def _metres(true: Position | None, places: Sequence[Tree]) -> list[float | None]:
    """Return the metres from the true position to each place; None if either is unknown."""
    if true is None:
        return [None] * len(places)
    positions = np.array([[one["latitude"], one["longitude"]] for one in places], np.float64).reshape(-1, 2)
    return [None if np.isnan(m) else float(m) for m in distances_m(*true, positions[:, 0], positions[:, 1])]

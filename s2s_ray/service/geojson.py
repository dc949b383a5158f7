"""Answers about pictures as GeoJSON (RFC 7946), for maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from s2s_ray.geo.offsets import circle_ring

Tree = dict[str, Any]


def collection(release: str | None, queries: Sequence[Tree], found: Sequence[tuple[str | None, Tree]]) -> Tree:
    """Return the matches and the fix of each place as features; a fix comes after its matches.

    Args:
        release: the release that made the answers; None if there is none.
        queries: the pictures as they were understood, by `name` and `query`.
        found: the name of the image, if there are several, and `answers.localization` of it.
    """
    features = [feature for name, place in found for feature in _place(name, place)]
    origin = {} if release is None else {"release": release}
    return {"type": "FeatureCollection", **origin, "queries": list(queries), "features": features}


def _place(name: str | None, place: Tree) -> list[Tree]:
    return [*(_match(name, match) for match in place["matches"]), *_fix(name, place["fix"])]


def _match(name: str | None, match: Tree) -> Tree:
    geometry = None
    if match["latitude"] is not None and match["longitude"] is not None:
        geometry = _point(match)
    return _feature(geometry, {"kind": "match", "query": name, **match})


def _fix(name: str | None, fix: Tree | None) -> list[Tree]:
    if fix is None:
        return []
    position, heading = fix["position"], fix["heading"] or {"degrees": None, "spread": None}
    kept = ("confidence", "confidence_m", "in_region", "in_region_probability", "calibrated", "distance_m")
    properties = {
        "query": name,
        **position,
        "heading": heading["degrees"],
        "heading_spread": heading["spread"],
        **{key: fix[key] for key in kept},
    }
    features = [_feature(_point(position), {"kind": "fix", **properties})]
    if position["radius_m"]:
        ring = circle_ring(position["latitude"], position["longitude"], position["radius_m"])
        features.append(_feature({"type": "Polygon", "coordinates": [ring]}, {"kind": "radius", **properties}))
    peaks = fix["peaks"] if len(fix["peaks"]) > 1 else []
    values = ("radius_m", "probability")
    return features + [
        _feature(_point(peak), {"kind": "peak", "query": name, **{key: peak[key] for key in values}}) for peak in peaks
    ]


def _point(place: Tree) -> Tree:
    return {"type": "Point", "coordinates": [place["longitude"], place["latitude"]]}


def _feature(geometry: Tree | None, properties: Tree) -> Tree:
    return {"type": "Feature", "geometry": geometry, "properties": properties}

"""Locations of pictures as `s2s localize` prints them: in words, as JSON or as GeoJSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from s2s_ray.client import ServedFix, ServedLocation, ServedMatch, ServedQuery


def in_words(images: Sequence[str], location: ServedLocation) -> str:
    """Return the pictures of one place, the position, how they were understood, and the most likely tiles."""
    return "\n".join(_lines(images, location))


def as_tree(images: Sequence[str], location: ServedLocation) -> dict[str, Any]:
    """Return a location as a tree with the names of its pictures."""
    if len(images) == 1:
        return {"image": images[0], "query": location.query.tree(), **location.tree()}
    return {"images": _named(images, location.queries), **location.tree()}


def as_features(images: Sequence[str], locations: Sequence[ServedLocation], *, together: bool) -> dict[str, Any]:
    """Return the locations of pictures, or of all of them together, as one GeoJSON FeatureCollection."""
    from s2s_ray.service import geojson

    names = [None] if together else images
    queries = [query for location in locations for query in location.queries]
    found = [(name, location.tree()) for name, location in zip(names, locations, strict=True)]
    return geojson.collection(None, _named(images, queries), found)


def _named(images: Sequence[str], queries: Sequence[ServedQuery]) -> list[dict[str, Any]]:
    return [{"name": image, "query": query.tree()} for image, query in zip(images, queries, strict=True)]


def _lines(images: Sequence[str], location: ServedLocation) -> Iterator[str]:
    yield ", ".join(images)
    if location.matches:
        yield from _fix(location.fix)
    else:
        yield "  no position: no tile of the index lies in the area"
    for image, query in zip(images, location.queries, strict=True):
        picture = f"{image}: " if len(images) > 1 else ""
        yield f"  {picture}{_understood(query)}"
        yield from (f"  warning: {picture}{warning}" for warning in query.warnings)
    yield from map(_match, location.matches)


def _fix(fix: ServedFix | None) -> Iterator[str]:
    if fix is None:
        yield "  no position: no tile with a known position was found"
        return
    place = f"{fix.latitude:.6f}, {fix.longitude:.6f}"
    if fix.in_region is False:
        yield "  probably not taken in this region; the most likely position in it:"
    if fix.radius_m is None:
        yield f"  {place}; the radius is unknown, because there is no calibration"
    else:
        yield f"  within {_metres(fix.radius_m)} of {place} (68%), within {_metres(fix.radius_95_m)} (95%)"
    if fix.heading is not None:
        spread = "" if not fix.heading_spread else f", give or take {fix.heading_spread:.0f}"
        yield f"  heading {fix.heading:.0f} degrees{spread}"
    if fix.confidence is not None and fix.in_region_probability is not None:
        yield (
            f"  right within {_metres(fix.confidence_m)}: {fix.confidence:.0%}; "
            f"taken in this region: {fix.in_region_probability:.0%}"
        )
    if len(fix.peaks) > 1:
        peaks = (
            f"{peak.latitude:.6f}, {peak.longitude:.6f}"
            + ("" if peak.probability is None else f" ({peak.probability:.0%})")
            for peak in fix.peaks[1:]
        )
        yield f"  also possible: {'; '.join(peaks)}"
    if fix.distance_m is not None:
        yield f"  {_metres(fix.distance_m)} from the known position"


def _understood(query: ServedQuery) -> str:
    heading = "heading unknown"
    if query.heading is not None:
        heading = f"heading {query.heading:.0f} ({query.heading_origin})"
    return (
        f"{heading}, field of view {query.fov:.0f} ({query.fov_origin}), {query.projection} ({query.projection_origin})"
    )


def _match(match: ServedMatch) -> str:
    place = "position unknown"
    if match.latitude is not None and match.longitude is not None:
        place = f"{match.latitude:.6f}, {match.longitude:.6f}"
    heading = "" if match.heading is None else f"  heading {match.heading:.0f}"
    away = "" if match.distance_m is None else f"  {match.distance_m:,.0f} m away"
    return f"  {match.rank:>3}  {match.id}  {place}  descriptor distance {match.descriptor_distance:.3f}{heading}{away}"


def _metres(metres: float | None) -> str:
    return "an unknown distance" if metres is None else f"{metres:,.0f} m"

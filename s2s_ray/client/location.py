"""The service's answers about pictures, typed: how each was understood, the fix, and the tiles that it matches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self, TypeVar

Tree = Mapping[str, Any]
N = TypeVar("N", bound=tuple[Any, ...])


class ServedMatch(NamedTuple):
    """A reference tile found for a picture (`s2s_ray.index.Match`); unknown values are None."""

    rank: int
    id: str
    latitude: float | None
    longitude: float | None
    descriptor_distance: float
    distance_m: float | None
    heading: float | None = None
    """The heading in degrees at which the picture matches this tile best."""


class ServedQuery(NamedTuple):
    """A picture as the service understood it, in degrees.

    Origins are `given`, `file` (its metadata), `release` (its default), `estimated` (by the search) or `assumed`.
    `position`, latitude and longitude, is that of the file's metadata.
    """

    heading: float | None
    heading_origin: str | None
    heading_spread: float | None
    fov: float
    fov_origin: str
    projection: str
    projection_origin: str
    pitch: float
    roll: float
    position: tuple[float, float] | None
    warnings: tuple[str, ...]

    def tree(self) -> dict[str, Any]:
        """Return the query as in a response."""
        place = None if self.position is None else dict(zip(("latitude", "longitude"), self.position, strict=True))
        return {**self._asdict(), "position": place, "warnings": list(self.warnings)}

    @classmethod
    def parse(cls, tree: Tree) -> Self:
        """Return the query of a response. Raises KeyError, TypeError, ValueError for anything else."""
        place = tree["position"]
        position = None if place is None else (float(place["latitude"]), float(place["longitude"]))
        return cls(**_fields(cls, tree) | {"position": position, "warnings": tuple(tree["warnings"])})


class ServedPeak(NamedTuple):
    """One of several separate places where a picture may have been taken."""

    latitude: float
    longitude: float
    radius_m: float | None
    probability: float | None


class ServedFix(NamedTuple):
    """The place where a picture was taken.

    `radius_m` holds the true position in 68 of 100 answers, `radius_95_m` in 95; `confidence` is the probability that
    it is within `confidence_m`, low for a picture from elsewhere. They are None if the release is not calibrated.
    `in_region` is false for a picture from outside the region of the index. `distance_m` counts from the true position,
    or else from the one in the file.
    """

    latitude: float
    longitude: float
    radius_m: float | None
    radius_95_m: float | None
    heading: float | None
    heading_spread: float | None
    confidence: float | None
    confidence_m: float
    in_region: bool | None
    in_region_probability: float | None
    peaks: tuple[ServedPeak, ...]
    calibrated: bool
    distance_m: float | None

    def tree(self) -> dict[str, Any]:
        """Return the fix as in a response."""
        fields = self._asdict()
        position = {name: fields.pop(name) for name in ("latitude", "longitude", "radius_m", "radius_95_m")}
        degrees, spread = fields.pop("heading"), fields.pop("heading_spread")
        heading = None if degrees is None else {"degrees": degrees, "spread": spread}
        return {"position": position, "heading": heading, **fields, "peaks": [peak._asdict() for peak in self.peaks]}

    @classmethod
    def parse(cls, tree: Tree) -> Self:
        """Return the fix of a response. Raises KeyError, TypeError, ValueError for anything else."""
        heading = tree["heading"] or {"degrees": None, "spread": None}
        peaks = tuple(ServedPeak(**_fields(ServedPeak, peak)) for peak in tree["peaks"])
        flat = {**tree, **tree["position"], "heading": heading["degrees"], "heading_spread": heading["spread"]}
        return cls(**_fields(cls, {**flat, "peaks": peaks}))


class ServedLocation(NamedTuple):
    """The answer to a picture, or to several pictures of one place.

    `fix` is None if no tile with a position was found. `matches` are the most likely tiles, best first.
    """

    queries: tuple[ServedQuery, ...]
    fix: ServedFix | None
    matches: list[ServedMatch]

    @property
    def query(self) -> ServedQuery:
        """The first picture as it was understood."""
        return self.queries[0]

    def tree(self) -> dict[str, Any]:
        """Return the fix and the matches as in a response."""
        fix = None if self.fix is None else self.fix.tree()
        return {"fix": fix, "matches": [match._asdict() for match in self.matches]}

    @classmethod
    def parse(cls, tree: Tree) -> Self:
        """Return the location in a response, or in its part about one image.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        several = [one["query"] for one in tree["images"]] if "images" in tree else [tree["query"]]
        fix = None if tree["fix"] is None else ServedFix.parse(tree["fix"])
        return cls(tuple(map(ServedQuery.parse, several)), fix, [served_match(one) for one in tree["matches"]])


def served_match(tree: Tree) -> ServedMatch:
    """Return a match; an earlier version of the service describes it without a heading."""
    return ServedMatch(**_fields(ServedMatch, {"heading": None, **tree}))


def _fields(kind: type[N], tree: Tree) -> dict[str, Any]:
    """Return the values of a tuple's fields; a later version of the service may have more of them."""
    return {name: tree[name] for name in kind._fields}  # type: ignore[attr-defined]  # a NamedTuple has it

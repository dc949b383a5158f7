"""The bodies of responses about pictures: how each was understood, where it was taken, and the tiles it matches."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from s2s_ray.geo.query import Origin, Projection

_NAME = Field(None, description="name of the image, if the request had several")

QUERY: dict[str, Any] = {
    "heading": 217.5,
    "heading_origin": "estimated",
    "heading_spread": 6.2,
    "fov": 73.7,
    "fov_origin": "file",
    "projection": "rectilinear",
    "projection_origin": "assumed",
    "pitch": 0.0,
    "roll": 0.0,
    "position": None,
    "warnings": [],
}
_FIX: dict[str, Any] = {
    "position": {"latitude": -35.314671, "longitude": 149.116735, "radius_m": 9.4, "radius_95_m": 24.0},
    "heading": {"degrees": 217.5, "spread": 6.2},
    "confidence": 0.71,
    "confidence_m": 25.0,
    "in_region": True,
    "in_region_probability": 0.96,
    "peaks": [{"latitude": -35.314671, "longitude": 149.116735, "radius_m": 9.4, "probability": 0.83}],
    "calibrated": True,
    "distance_m": 4.1,
}
_MATCH: dict[str, Any] = {
    "rank": 1,
    "id": "test-00001",
    "latitude": -35.314663,
    "longitude": 149.116713,
    "descriptor_distance": 0.7923,
    "heading": 217.5,
    "distance_m": 12.5,
}


class Place(BaseModel):
    """A position in WGS 84 degrees."""

    latitude: float
    longitude: float


class UsedQuery(BaseModel):
    """One picture as it was understood, and where each value comes from."""

    heading: float | None = Field(
        description="compass bearing of the middle column in degrees; null if it is unknown and no fix estimates it"
    )
    heading_origin: Origin | None
    heading_spread: float | None = Field(description="uncertainty of the heading, degrees; null if it is unknown")
    fov: float = Field(description="horizontal field of view in degrees")
    fov_origin: Origin
    projection: Projection
    projection_origin: Origin
    pitch: float = Field(description="degrees that the camera looks above the horizon")
    roll: float = Field(description="degrees that the camera is turned clockwise")
    position: Place | None = Field(None, description="position in the file's metadata; used only with prior=file")
    warnings: list[str] = Field(description="metadata that was ignored or widened, and other doubts, in words")


class NamedQuery(BaseModel):
    """One of several pictures of a place."""

    name: str | None = _NAME
    query: UsedQuery


class FixPosition(Place):
    """The position, and the radii that hold the truth at the stated rates; null without calibration."""

    radius_m: float | None = Field(description="metres that contain the true position in 68 of 100 answers")
    radius_95_m: float | None = Field(description="the same for 95 of 100")


class FixHeading(BaseModel):
    """The heading of the picture's middle column."""

    degrees: float
    spread: float | None


class Peak(Place):
    """One of several separate places where the picture may have been taken."""

    radius_m: float | None
    probability: float | None


class FoundFix(BaseModel):
    """The place where the picture was taken, as far as the index can tell."""

    position: FixPosition
    heading: FixHeading | None
    confidence: float | None = Field(
        description="probability that the true position is within confidence_m, low if the picture was probably taken "
        "outside the region; null without calibration"
    )
    confidence_m: float = Field(description="metres within which a position counts as right")
    in_region: bool | None = Field(description="false: taken outside the region of the index; null if unknown")
    in_region_probability: float | None
    peaks: list[Peak]
    calibrated: bool = Field(description="false: the release has no calibration, so radii and confidence are unknown")
    distance_m: float | None = Field(
        None, description="metres from the true position, or else from the position in the file; null without either"
    )


class FoundTile(BaseModel):
    """A reference tile; unknown values are null."""

    rank: int
    id: str
    latitude: float | None
    longitude: float | None
    descriptor_distance: float = Field(description="2 - 2 cos of the angle between the descriptors, from 0 to 4")
    heading: float | None = Field(None, description="heading at which the picture matches this tile best, degrees")
    distance_m: float | None = Field(
        None, description="metres from the true position, or else from the position in the file; null without either"
    )


class SurfacePoint(Place):
    """A tile of the index with a position, and the probability that the picture was taken there."""

    probability: float


class Surface(BaseModel):
    """The likelihood over the index, for a heat map: its most likely tiles, at most 500."""

    points: list[SurfacePoint]
    spacing_m: float | None = Field(description="metres between the tiles of an index over a region; null of others")


class Localization(BaseModel):
    """The fix and the most likely tiles, best first; fewer than k if the area contains fewer."""

    fix: FoundFix | None = Field(description="null if no tile with a position was found")
    matches: list[FoundTile]
    surface: Surface | None = Field(None, description="only with surface=true")


class NamedLocalization(Localization):
    """The answer to one of several pictures."""

    name: str | None = _NAME
    query: UsedQuery


class OneLocalization(Localization):
    """Response to one picture."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"release": "city-144-0262563c", "query": QUERY, "fix": _FIX, "matches": [_MATCH]}]
        }
    )

    release: str
    query: UsedQuery


class ManyLocalizations(BaseModel):
    """Response to a form of several pictures, in their order."""

    release: str
    images: list[NamedLocalization]


class PlaceLocalization(Localization):
    """Response to several pictures of one place (`together=true`)."""

    release: str
    images: list[NamedQuery]


class Point(BaseModel):
    """A GeoJSON position: longitude, latitude."""

    type: Literal["Point"] = "Point"
    coordinates: tuple[float, float]


class Polygon(BaseModel):
    """A GeoJSON polygon: rings of longitude, latitude; across the date line longitudes exceed 180 degrees."""

    type: Literal["Polygon"] = "Polygon"
    coordinates: list[list[tuple[float, float]]]


class TileProperties(BaseModel):
    """The properties of a match besides its position."""

    kind: Literal["match"] = "match"
    query: str | None = _NAME
    rank: int
    id: str
    latitude: float | None
    longitude: float | None
    descriptor_distance: float
    heading: float | None = None
    distance_m: float | None = None


class TileFeature(BaseModel):
    """A match as a GeoJSON feature; the geometry is null if the position of the tile is unknown."""

    type: Literal["Feature"] = "Feature"
    geometry: Point | None
    properties: TileProperties


class FixProperties(BaseModel):
    """The properties of a fix: of the position (`fix`), the circle that holds it in 68 of 100 answers (`radius`)."""

    kind: Literal["fix", "radius"]
    query: str | None = _NAME
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
    calibrated: bool
    distance_m: float | None = None


class FixFeature(BaseModel):
    """A fix as a GeoJSON feature."""

    type: Literal["Feature"] = "Feature"
    geometry: Point | Polygon
    properties: FixProperties


class PeakProperties(BaseModel):
    """The properties of one of several separate places where the picture may have been taken."""

    kind: Literal["peak"] = "peak"
    query: str | None = _NAME
    radius_m: float | None
    probability: float


class PeakFeature(BaseModel):
    """One of several peaks as a GeoJSON feature."""

    type: Literal["Feature"] = "Feature"
    geometry: Point
    properties: PeakProperties


class TileCollection(BaseModel):
    """The matches and fixes as GeoJSON (RFC 7946); the release and the queries are foreign members."""

    type: Literal["FeatureCollection"] = "FeatureCollection"
    release: str
    queries: list[NamedQuery]
    features: list[TileFeature | FixFeature | PeakFeature]

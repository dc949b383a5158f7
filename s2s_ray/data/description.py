"""`dataset.json`: what a data set holds. Written last, so that a data set without it is not complete."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from s2s_ray import storage
from s2s_ray.config import Contrast, Resize
from s2s_ray.data.schema import Split, Treatment
from s2s_ray.errors import DatasetError, NotFoundError
from s2s_ray.geo.images import Encoding
from s2s_ray.geo.views import PanoramaKind

SCHEMA_VERSION = 1
MANIFEST = "dataset.json"
CONVENTION = "column 0 looks south, azimuth clockwise, north in the middle column; bottom row: the tile's centre"


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Geometry(_Entry):
    """How a pair became two images of one shape: `height` x `width`, north in the middle column of both.

    The rest is the source's `Treatment`; data sets of before there were several kinds have its defaults.
    """

    height: int
    width: int
    panorama_rows: tuple[float, float] | None
    polar_size: tuple[int, int] | None = None
    polar_contrast: Contrast = "none"
    resize: Resize = "area"
    convention: str = CONVENTION

    @classmethod
    def of(cls, treatment: Treatment, height: int, width: int) -> Self:
        """That of a source at a resolution."""
        return cls(height=height, width=width, **asdict(treatment))


class FileInfo(_Entry):
    """One file of the data set with what it must hold: `count` pairs."""

    name: str
    count: int
    bytes: int
    sha256: str


class SplitInfo(_Entry):
    """One split: its shards in the order of their pairs, and the records of all pairs in one small file."""

    count: int
    records: FileInfo
    shards: tuple[FileInfo, ...]


class Quarantined(_Entry):
    """A pair that is not in the data set, and why."""

    id: str
    split: Split
    reason: str


class DatasetManifest(_Entry):
    """Everything in `dataset.json`."""

    schema_version: int
    created_by: str
    digest: str
    geometry: Geometry
    encoding: Encoding
    keep_tiles: bool
    source: dict[str, Any]
    validation: str
    splits: dict[Split, SplitInfo]
    quarantine: tuple[Quarantined, ...]
    panoramas: dict[PanoramaKind, int] = {}  # how many of each kind; not counted in older data sets

    def told_panoramas(self) -> list[str]:
        """What was done with the panoramas, a line for each kind."""
        rows = self.geometry.panorama_rows
        chosen = None if rows is None else f"rows from {rows[0]:g} to {rows[1]:g} of the height kept"
        done = {
            "sphere": ("full spheres", chosen or "the middle half of the rows kept"),
            "cropped": ("of all the horizon, wider than 2:1", chosen or "all rows kept"),
            "part": ("of a part of the horizon", f"laid on black at their bearing, {chosen or 'rows kept likewise'}"),
        }
        return [
            f"panoramas: {count} {done[kind][0]}, {done[kind][1]}" for kind, count in self.panoramas.items() if count
        ]

    def split(self, name: str) -> SplitInfo:
        """One split. Raises `DatasetError` where the data set has no such split."""
        for known, info in self.splits.items():
            if known == name:
                return info
        raise DatasetError(f"the data set has no {name!r} split; it has {', '.join(self.splits)}")


def read_manifest(uri: str) -> DatasetManifest:
    """The manifest of the data set at a URI.

    Raises:
        DatasetError: no complete data set there, or one of another version of the format.
    """
    place = storage.join(uri, MANIFEST)
    try:
        tree = storage.read_json(place)
    except NotFoundError:
        raise DatasetError(
            f"{uri} holds no complete data set ({MANIFEST} is missing): "
            "make one with `s2s prepare`, or correct data.uri"
        ) from None
    version = tree.get("schema_version") if isinstance(tree, dict) else None
    if version != SCHEMA_VERSION:
        raise DatasetError(
            f"{place} has schema_version {version!r}, this program reads {SCHEMA_VERSION}: prepare the data set again"
        )
    try:
        return DatasetManifest.model_validate(tree)
    except ValidationError as error:
        raise DatasetError(f"{place} is damaged: {error}") from None

"""`dataset.json`: the content of a data set. It is written last, so a data set without it is incomplete."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from s2s_ray import storage
from s2s_ray.data.schema import Split, TileSize
from s2s_ray.errors import DatasetError, NotFoundError, S2SError
from s2s_ray.geo.images import Encoding
from s2s_ray.geo.views import PanoramaKind, ViewGeometry, with_default_heading
from s2s_ray.storage.documents import Document, Tree

SCHEMA_VERSION = 1
DATASET_FILE = "dataset.json"
_LATER = ("tile_m", "tile_px", "margin_m", "masked")


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True)


class FileInfo(_Entry):
    """One file of the data set and what it must hold: `count` pairs."""

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
    """A pair that was left out of the data set, and the reason."""

    id: str
    split: Split
    reason: str


class DatasetInfo(Document):
    """The content of `dataset.json`, in which the key `schema_version` holds the format's version.

    Attributes:
        created_by: name and version of the program.
        digest: SHA-256 of the settings and records that the data set was made from.
        geometry: how each pair became two images of one shape.
        keep_tiles: whether the shards hold the raw satellite tiles as well.
        source: the configuration's section `source`.
        validation: how the validation split was chosen, in words.
        quarantine: pairs that were left out.
        panoramas: number of panoramas of each kind; empty in data sets that were made before they were counted.
        tile_m, tile_px: side of a satellite tile in metres and in pixels, without its margin; None where the source
            does not say it.
        margin_m: metres of imagery that are stored around each raw tile.
        masked: whether a column `seen` marks what panoramas with a part of the horizon show. Earlier versions left the
            remainder black and unmarked.
    """

    FORMAT: ClassVar[int] = SCHEMA_VERSION
    ERROR: ClassVar[type[S2SError]] = DatasetError
    NOUN: ClassVar[str] = "description of a data set"
    VERSION_KEY: ClassVar[str] = "schema_version"

    created_by: str
    digest: str
    geometry: ViewGeometry
    encoding: Encoding
    keep_tiles: bool
    source: dict[str, Any]
    validation: str
    splits: dict[Split, SplitInfo]
    quarantine: tuple[Quarantined, ...]
    panoramas: dict[PanoramaKind, int] = Field(default_factory=dict)
    tile_m: float | None = None
    tile_px: int | None = None
    margin_m: float = 0.0
    masked: bool = False

    @model_validator(mode="before")
    @classmethod
    def _read_geometry(cls, tree: Any) -> Any:
        if not isinstance(tree, dict) or not all(isinstance(tree.get(key), dict) for key in ("geometry", "source")):
            return tree
        return {**tree, "geometry": with_default_heading(tree["geometry"], tree["source"].get("kind"))}

    def tree(self) -> Tree:
        """Return the content of the file, without the keys that earlier versions did not write and that say nothing."""
        tree = {**super().tree(), "geometry": self.geometry.tree()}
        return {key: value for key, value in tree.items() if key not in _LATER or value}

    @property
    def margin_px(self) -> int:
        """Pixels that are stored on each side of a raw tile."""
        return margin_px(self.margin_m, self.tile_m, self.tile_px) if self.tile_m and self.tile_px else 0

    @property
    def tile_size(self) -> TileSize | None:
        """The size of a tile without its margin; of data sets that do not name it, by their source."""
        metres, px = self.tile_m, self.tile_px
        if metres is None and (
            self.source.get("kind") == "synthetic" or self.source.get("tiles") or self.source.get("geotiff")
        ):
            metres, px = self.source.get("tile_m"), self.source.get("tile_px")
        return None if metres is None or px is None else TileSize(metres, px)

    def panorama_lines(self) -> list[str]:
        """Describe what was done with the panoramas, in one line for each kind."""
        rows = self.geometry.panorama_rows
        chosen = None if rows is None else f"rows from {rows[0]:g} to {rows[1]:g} of the height kept"
        done = {
            "sphere": ("full spheres", chosen or "the middle half of the rows kept"),
            "cropped": ("with the whole horizon, wider than 2:1", chosen or "all rows kept"),
            "part": (
                "with a part of the horizon",
                f"{'the remainder unseen' if self.masked else 'placed on black at their bearing'}, "
                f"{chosen or 'rows kept as above'}",
            ),
        }
        return [
            f"panoramas: {count} {done[kind][0]}, {done[kind][1]}" for kind, count in self.panoramas.items() if count
        ]

    def split(self, name: str) -> SplitInfo:
        """Return one split. Raises `DatasetError` if the data set has no such split."""
        for known, info in self.splits.items():
            if known == name:
                return info
        raise DatasetError(f"the data set has no {name!r} split; it has {', '.join(self.splits)}")


def margin_px(margin_m: float, tile_m: float, tile_px: int) -> int:
    """Return the whole pixels that hold a margin of so many metres, for a tile of that size."""
    return math.ceil(margin_m * tile_px / tile_m - 1e-9)


def read_dataset_info(uri: str) -> DatasetInfo:
    """Read the description of the data set at a URI.

    Raises:
        DatasetError: there is no complete data set, or a newer version of the library wrote it.
        StorageError: the file cannot be read, or is damaged.
    """
    try:
        return DatasetInfo.read(storage.join(uri, DATASET_FILE))
    except NotFoundError:
        raise DatasetError(
            f"{uri} holds no complete data set ({DATASET_FILE} is missing): "
            "make one with `s2s prepare`, or correct data.uri"
        ) from None

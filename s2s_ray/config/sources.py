"""The section `source`: the images that a data set is prepared from, one class per kind."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, FiniteFloat, field_validator, model_validator

from s2s_ray.config.section import Fraction, NonNegative, Positive, Section
from s2s_ray.uri import Uri

Resize: TypeAlias = Literal["area", "cubic"]
Contrast: TypeAlias = Literal["none", "stretch"]
QueryHeading: TypeAlias = Annotated[
    FiniteFloat | None,
    Field(
        ge=-360,
        le=360,
        description="compass bearing that `auto` means for panoramas of the whole horizon without a heading in their "
        "file; default: unknown, so that it is searched",
    ),
]


class SyntheticSourceConfig(Section):
    """The procedural city."""

    kind: Literal["synthetic"] = "synthetic"
    seed: int = Field(0, ge=0, description="seed of the world")
    train_pairs: int = Field(1000, ge=2, description="pairs of the training region (validation is held out of them)")
    test_pairs: int = Field(300, ge=2, description="pairs of a region that training never sees")
    tile_px: int = Field(128, ge=32, description="side of a satellite tile in pixels")
    tile_m: Positive = Field(64.0, description="side of a satellite tile in metres")
    panorama_height: int = Field(64, ge=16, description="rows of a rendered panorama, elevation +45 to -45 degrees")
    panorama_width: int = Field(352, ge=32, description="columns of a rendered panorama, 360 degrees")
    panorama_rays: int = Field(
        1, ge=1, le=4, description="rays per panorama pixel and axis; 1 is enough if the model sees half the pixels"
    )
    spacing_m: Positive = Field(25.0, description="smallest distance between two positions; smaller is harder")
    jitter_m: NonNegative = Field(0.0, description="largest offset of the panorama from the tile's centre")
    occlusion: Fraction = Field(0.3, description="how much trees and vehicles hide along the street")
    panorama_heading: FiniteFloat = Field(0.0, description="compass bearing of the panorama's middle column, degrees")
    query_heading: QueryHeading = None

    @property
    def panorama_rows(self) -> tuple[float, float]:
        """Rows the model sees, as fractions from the top: all, as the renderer draws no others."""
        return (0.0, 1.0)


class ManifestSourceConfig(Section):
    """The user's own images, listed in a CSV or Parquet file, or imagery alone, for the index of a region."""

    kind: Literal["manifest"] = "manifest"
    uri: Uri | None = Field(
        None,
        description="CSV or Parquet with id, satellite, street, split and optional coordinates; "
        "not needed by `build-index --region`",
    )
    panorama_heading: FiniteFloat = Field(
        0.0, description="compass bearing of the middle column, degrees, for rows that have none"
    )
    query_heading: QueryHeading = None
    panorama_rows: tuple[Fraction, Fraction] | None = Field(
        None,
        description="rows kept, as fractions from the top; default: the middle half of 2:1 panoramas (full spheres), "
        "all of wider ones (cropped already)",
    )
    tiles: Uri | None = Field(
        None, description="folder of map tiles (z/x/y), or a template with {z}, {x} and {y} or {-y}, to cut tiles from"
    )
    zoom: int | None = Field(None, ge=0, le=24, description="zoom level of the map tiles")
    geotiff: Uri | None = Field(None, description="GeoTIFF to cut tiles from; needs rasterio (the extra `geotiff`)")
    tile_m: Positive | None = Field(
        None,
        description="side of the tiles that are cut, in metres; `build-index --region` takes the model's by default",
    )
    tile_px: int = Field(512, ge=32, description="side of the tiles that are cut, in pixels")

    @field_validator("panorama_rows")
    @classmethod
    def _rows(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError("the first fraction must be below the second")
        return value

    @model_validator(mode="after")
    def _imagery(self) -> Self:
        if self.tiles is not None and self.geotiff is not None:
            raise ValueError("tiles and geotiff: tiles are cut from one of them, not both")
        if self.uri is None and not self.cuts_tiles:
            raise ValueError("source.uri is missing: the CSV or Parquet file that lists the images")
        if self.uri is not None and self.cuts_tiles and self.tile_m is None:
            raise ValueError("tile_m is missing: the side in metres of the tiles cut around each row's position")
        if (self.tiles is None) != (self.zoom is None):
            raise ValueError("tiles and zoom go together: the map tiles and the zoom level to read")
        return self

    @property
    def cuts_tiles(self) -> bool:
        """True if satellite tiles are cut out of larger imagery around each row's coordinates."""
        return self.tiles is not None or self.geotiff is not None


class CvusaSourceConfig(Section):
    """CVUSA as its authors distribute it: a folder with splits/, bingmap/ and streetview/."""

    kind: Literal["cvusa"] = "cvusa"
    uri: Uri = Field(description="the extracted archive: a directory or an object-store URI")
    polar_contrast: Contrast = Field("none", description="stretch: each polar image to the full range, as floats saved")
    resize: Resize = Field("cubic", description="cubic (a = -0.75, no antialiasing) as released, or area")


class CvactSourceConfig(Section):
    """CVACT as its authors distribute it: a folder with ACT_data.mat, ANU_data_small/ and ANU_data_test/."""

    kind: Literal["cvact"] = "cvact"
    uri: Uri = Field(description="the extracted archives: a directory or an object-store URI")
    test: Literal["val", "test"] = Field("val", description="the test split: CVACT_val (8,884) or CVACT_test (92,802)")
    polar_contrast: Contrast = Field("stretch", description="stretch: each polar image to the full range, as released")


SourceConfig: TypeAlias = Annotated[
    SyntheticSourceConfig | ManifestSourceConfig | CvusaSourceConfig | CvactSourceConfig, Field(discriminator="kind")
]
SOURCE_KINDS: dict[str, type[Section]] = {
    "synthetic": SyntheticSourceConfig,
    "manifest": ManifestSourceConfig,
    "cvusa": CvusaSourceConfig,
    "cvact": CvactSourceConfig,
}

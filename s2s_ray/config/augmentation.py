"""The section `augmentation`: how training varies what is asked about a pair."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field, field_validator

from s2s_ray.config.section import Fraction, NonNegative, Section

FieldOfView: TypeAlias = Annotated[float, Field(gt=0.0, le=360.0)]


class AugmentationConfig(Section):
    """Variations of the pairs in training, for queries that are not an aligned panorama; by default there are none.

    They are drawn from `train.seed`, the epoch and the pair's id alone. The generator and the discriminator always see
    the aligned pair; the retrieval loss compares the varied panorama with the varied tile.
    """

    fov: tuple[FieldOfView, FieldOfView] | None = Field(
        None, description="smallest and largest field of view of a query in degrees, the rest unseen; default: all seen"
    )
    fov_probability: Fraction = Field(1.0, description="probability that a query shows a part of the horizon")
    fov_epochs: int = Field(
        0, ge=0, description="epochs in which the fields of view shrink from 360 degrees to `fov`; 0: from the start"
    )
    offcentre_m: NonNegative = Field(
        0.0, description="largest distance of the tile's centre from the camera; needs data with prepare.margin_m"
    )
    rotate: Fraction = Field(0.0, description="probability that both images of a pair are turned by a random angle")
    heading_noise: Annotated[float, Field(ge=0.0, le=180.0)] = Field(
        0.0, description="largest error of a query's heading in degrees"
    )

    @field_validator("fov", mode="before")
    @classmethod
    def _two_angles(cls, value: object) -> object:
        if value is not None and not (isinstance(value, list | tuple) and len(value) == 2):
            raise ValueError("expected the smallest and the largest field of view, such as [70, 360]")
        return value

    @field_validator("fov")
    @classmethod
    def _fov(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] > value[1]:
            raise ValueError("the smallest field of view must not be above the largest")
        return value

    @property
    def shows_parts(self) -> bool:
        """True if a query may show a part of the horizon only."""
        return self.fov is not None and self.fov_probability > 0

    @property
    def varies_query(self) -> bool:
        """True if the panorama that is asked may differ from the aligned one."""
        return self.shows_parts or self.heading_noise > 0

    @property
    def active(self) -> bool:
        """True if any pair may be varied."""
        return self.varies_query or self.offcentre_m > 0 or self.rotate > 0

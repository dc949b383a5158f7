"""The sections `loss` and `mining`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from s2s_ray.config.section import BelowOne, Fraction, NonNegative, Positive, Section


class LossConfig(Section):
    """Loss weights and the retrieval loss (supplement, section B)."""

    lambda_gan: NonNegative = 1.0
    lambda_ret: NonNegative = 1000.0
    lambda_l1: NonNegative = 100.0
    retrieval: Literal["triplet", "infonce"] = Field(
        "triplet", description="triplet: the paper's; infonce: symmetric InfoNCE, which needs mining.start=never"
    )
    turned: Fraction = Field(
        0.0,
        description="infonce: share of the loss in which the heading of the street view is searched as well as its "
        "tile; needs model.pooling=azimuth",
    )
    alpha: Positive = Field(10.0, description="sharpness of the soft-margin triplet loss")
    scale: Positive = Field(10.0, description="infonce: factor of the cosines, the inverse of the temperature")
    label_smoothing: BelowOne = Field(
        0.1, description="infonce: probability that all candidates share evenly; the right one has the rest"
    )
    real_label: Fraction = Field(0.9, description="one-sided label smoothing of the GAN loss")
    negative_min_distance_m: NonNegative | None = Field(
        None, description="pairs closer than this are not each other's negatives; needs coordinates"
    )


class MiningConfig(Section):
    """Hard-negative mining as a fine-tuning step (supplement, section B)."""

    start: Literal["never", "plateau"] | Annotated[int, Field(ge=0)] = Field(
        "plateau", description="never, once the loss has converged, or a 0-based epoch"
    )
    discard: tuple[Annotated[float, Field(ge=0.0, lt=100.0)], ...] = Field(
        (90.0, 95.0, 99.0), min_length=1, description="percentage of triplets discarded, stage by stage"
    )
    stage_epochs: int = Field(20, ge=1, description="epochs per stage; the last stage continues to the end")
    metric: Literal["triplet", "recall"] = Field("triplet", description="the metric that has to stop improving")
    patience: int = Field(5, ge=1, description="epochs without improvement that make a plateau")
    min_gain: NonNegative = Field(0.01, description="relative improvement that counts")

    @field_validator("start", mode="before")
    @classmethod
    def _start(cls, value: Any) -> Any:
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # 1e1
        if isinstance(value, bool) or (value not in ("never", "plateau") and (not isinstance(value, int) or value < 0)):
            raise ValueError("must be 'never', 'plateau' or an epoch from 0 on")
        return value

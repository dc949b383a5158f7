"""The section `model`: the three networks."""

from __future__ import annotations

from typing import Literal, Self, TypeAlias

from pydantic import Field, field_validator, model_validator

from s2s_ray.config.section import Section
from s2s_ray.uri import Uri

Ablation: TypeAlias = Literal["full", "retrieval_only", "no_gan", "separate_features"]


class StartingWeights(Uri):
    """The URI of a file of weights, or the name of weights that are made or downloaded."""

    __slots__ = ()

    @property
    def absolute(self) -> Self:
        """The same weights under a name that holds in a process with another working directory."""
        return self if self in ("random", "imagenet") else super().absolute


class ModelConfig(Section):
    """Shapes and widths of the three networks (supplement, tables 1 and 2)."""

    height: int = Field(112, description="rows of both images; a multiple of 8, at least 32")
    width: int = Field(616, description="columns of both images; a multiple of 8, at least 32")
    channels: int = Field(32, ge=4, multiple_of=4, description="generator stem; the bottleneck has 8 times as many")
    residual_blocks: int = Field(6, ge=1, description="residual blocks of the bottleneck")
    discriminator_channels: int = Field(64, ge=4, multiple_of=4, description="first convolution of D")
    discriminator_variant: Literal["paper", "released"] = Field(
        "paper", description="paper: table 2's shapes; released: padding and spectral norm of the public code"
    )
    street_blocks: tuple[int, int, int] = Field((3, 4, 6), description="ResNet blocks per stage; 3 4 6 is ResNet34")
    street_weights: StartingWeights = Field(
        StartingWeights("random"),
        description="'random', 'imagenet' (torchvision's ResNet34) or the URI of such a state dict",
    )
    street_batchnorm: Literal["live", "frozen"] = Field(
        "live", description="live: batch statistics over all workers; frozen: the running statistics"
    )
    pooling: Literal["attention", "azimuth"] = Field(
        "attention",
        description="attention: the paper's spatial attention; azimuth: keeps the columns apart, so that descriptors "
        "can be turned and partial views compare by what they show",
    )
    masks: int = Field(8, ge=1, description="attention: spatial attention masks per view")
    azimuth_channels: int = Field(24, ge=1, description="azimuth: numbers per column of local features")
    circular: bool = Field(
        False, description="convolutions continue at the other end of the horizon, which has no seam; false: the paper"
    )
    ablation: Ablation = Field(
        "full",
        description="full; retrieval_only: no synthesis; no_gan: no discriminator; separate_features: G without the "
        "retrieval loss. In retrieval_only and separate_features R has a separate encoder for the satellite image",
    )

    @field_validator("height", "width")
    @classmethod
    def _resolution(cls, value: int) -> int:
        if value < 32 or value % 8:
            raise ValueError("must be a multiple of 8 and at least 32")
        return value

    @field_validator("street_blocks")
    @classmethod
    def _blocks(cls, value: tuple[int, int, int]) -> tuple[int, int, int]:
        if min(value) < 1:
            raise ValueError("each stage needs at least one block")
        return value

    @model_validator(mode="after")
    def _imagenet_is_resnet34(self) -> Self:
        if self.street_weights != "random" and (self.street_blocks != (3, 4, 6) or self.channels != 32):
            raise ValueError(
                "street_weights other than 'random' need street_blocks [3, 4, 6] and channels 32 (ResNet34)"
            )
        return self

    @property
    def synthesizes(self) -> bool:
        """True if G is trained."""
        return self.ablation != "retrieval_only"

    @property
    def adversarial(self) -> bool:
        """True if D is trained, and G against it."""
        return self.ablation in ("full", "separate_features")

    @property
    def separate_encoder(self) -> bool:
        """True if R has its own satellite encoder and G no retrieval loss; otherwise R uses G's bottleneck."""
        return self.ablation in ("retrieval_only", "separate_features")

    @property
    def feature_channels(self) -> int:
        """Channels of the local features of both views."""
        return 8 * self.channels

    @property
    def descriptor_size(self) -> int:
        """Length of a descriptor: feature channels times masks, or numbers per column times columns."""
        if self.pooling == "azimuth":
            return self.azimuth_channels * (self.width // 8)
        return self.feature_channels * self.masks

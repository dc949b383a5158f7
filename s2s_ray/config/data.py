"""The sections `prepare` and `data`: how a data set is made, and where it is read from."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from s2s_ray.config.frozen import FrozenDict
from s2s_ray.config.section import Fraction, NonNegative, Positive, Section
from s2s_ray.uri import Uri


class PrepareConfig(Section):
    """Settings of `s2s prepare`, which turns a source into a data set."""

    encoding: Literal["png", "jpeg", "webp"] = Field(
        "webp", description="webp and png are lossless, webp the smaller and faster; jpeg is smallest"
    )
    splits: tuple[Literal["train", "val", "test"], ...] = Field(
        ("train", "val", "test"), min_length=1, description="splits to write; [test] for a data set to evaluate on only"
    )
    shard_mb: Positive = Field(64.0, description="target size of a shard, in 10^6 bytes of encoded images")
    keep_tiles: bool = Field(False, description="also store the raw satellite tiles (galleries show them)")
    margin_m: NonNegative = Field(
        0.0,
        description="metres of imagery stored around each raw tile, for queries off its centre; needs keep_tiles and a "
        "source that cuts or renders its tiles",
    )
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.1, description="part of the training split held out if the source names no validation pairs"
    )
    validation_block_m: Positive = Field(500.0, description="side of the blocks held out if there are coordinates")
    parallel: bool = Field(True, description="write shards as Ray Data tasks; false: in this process, without Ray")
    resources: FrozenDict[str, Positive] = Field(
        default_factory=FrozenDict,
        description="Ray resources of a shard's task; default: 1 CPU. A resource that only CPU nodes have keeps the "
        "tasks off GPU nodes",
    )

    @model_validator(mode="after")
    def _margin_is_stored_with_the_tiles(self) -> Self:
        if self.margin_m and not self.keep_tiles:
            raise ValueError(f"margin_m={self.margin_m:g} is stored with the raw tiles: set keep_tiles to true")
        return self


class DataConfig(Section):
    """Location of the data set, and how it is read."""

    uri: Uri = Field(Uri("data/synthetic"), description="the data set: a directory or an object-store URI")
    cache_dir: Uri | None = Field(None, description="node-local shard cache; default: a folder below the temp dir")
    cache_gb: Positive = Field(50.0, description="largest size of the cache, in 10^9 bytes")
    window: int = Field(8, ge=1, description="shards whose pairs are shuffled together")
    flip: Fraction = Field(0.5, description="probability that both images of a pair are mirrored, training only")

"""The section `evaluation`: measurements and figures of a checkpoint."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from s2s_ray.config.protocol import Protocol
from s2s_ray.config.section import NonNegative, Section
from s2s_ray.uri import Uri


class EvaluationConfig(Section):
    """Measurements and figures of `s2s evaluate`."""

    split: Literal["train", "val", "test"] = "test"
    batch: int = Field(64, ge=1)
    chunk: int = Field(4096, ge=1, description="queries compared with the gallery at a time")
    radius_m: NonNegative | None = Field(
        None, description="a match counts within this distance; default: only the pair's own tile"
    )
    lpips: Literal["alex", "vgg", "squeeze"] | None = Field(
        None, description="backbone of LPIPS; default: not measured"
    )
    fid: Literal["inception", "resnet18", "resnet34", "resnet50"] | None = Field(
        None, description="backbone of FID and KID; default: not measured"
    )
    weights: Uri | None = Field(
        None, description="directory or URI with those backbones' weight files; default: PyTorch's cache or the network"
    )
    gallery_rows: int = Field(8, ge=0, description="queries drawn in the galleries")
    protocols: tuple[str, ...] = Field(
        (),
        description="what is known of the panoramas asked, measured beside the paper's protocol, in training too: "
        "aligned, heading, fov=DEGREES, offcentre=METRES, or several joined by +",
    )
    seed: int = Field(0, ge=0, description="first seed of the headings, views and positions that protocols draw")
    seeds: int = Field(1, ge=1, le=100, description="seeds that `s2s evaluate` averages a protocol over")
    offcentre_step_m: NonNegative = Field(
        4.0, description="offcentre: metres between the positions searched within each tile; 0: its centre alone"
    )

    @field_validator("protocols", mode="before")
    @classmethod
    def _list(cls, given: object) -> object:
        if not isinstance(given, list | tuple):
            raise ValueError("expected a list of protocols, such as [heading, fov=90]")
        return given

    @field_validator("protocols")
    @classmethod
    def _known_protocols(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(Protocol.parse(text).name for text in given)
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"protocol {name} stands twice")
        return names

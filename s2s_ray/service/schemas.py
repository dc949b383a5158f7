"""The bodies of the responses, as the OpenAPI document describes them."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from s2s_ray.service.localizations import QUERY, UsedQuery


class Error(BaseModel):
    """The reason why a request failed, and what to fix."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"error": "The image is empty (0 bytes)."}]})

    error: str


class Embedding(BaseModel):
    """The unit descriptor of one image."""

    query: UsedQuery | None = Field(None, description="a street view as it was understood; absent for tiles")
    descriptor: list[float]


class NamedEmbedding(Embedding):
    """The unit descriptor of one of several images."""

    name: str


class OneEmbedding(Embedding):
    """Response to one image."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"release": "city-144-0262563c", "query": QUERY, "descriptor": [0.0125, -0.0383]}]
        }
    )

    release: str


class ManyEmbeddings(BaseModel):
    """Response to a form of several images, in their order."""

    release: str
    images: list[NamedEmbedding]


class SynthesizedView(BaseModel):
    """A street view and the polar image it was synthesised from, as base64 of image files."""

    name: str | None = Field(None, description="name of the image, if the request had several")
    content_type: str
    street: str
    polar: str


class Synthesis(BaseModel):
    """Response in JSON to one or several satellite images, in their order."""

    release: str
    images: list[SynthesizedView]


class IndexDescription(BaseModel):
    """The reference index behind `/v1/localize`."""

    kind: str
    count: int
    dataset: str
    split: str | None


class ModelInfo(BaseModel):
    """The served release, its origin, and the sizes that callers need."""

    release: str
    run: str | None
    step: int | None
    epoch: int | None
    metrics: dict[str, Any]
    height: int
    width: int
    descriptor_size: int
    synthesizes: bool = Field(True, description="false: trained without a generator, so there is no /v1/synthesize")
    panorama_rows: tuple[float, float] | None
    elevations: tuple[float, float] = Field(
        (45.0, -45.0), description="degrees above the horizon of the top and the bottom edge of the model's views"
    )
    default_heading: float | None = Field(
        None,
        description="the meaning of heading=auto for pictures of the whole horizon whose file names none; null: "
        "the heading is unknown",
    )
    calibrated: bool = Field(
        False, description="false: the release has no calibration, so fixes have neither a radius nor a confidence"
    )
    index: IndexDescription


class Health(BaseModel):
    """The ingress is alive."""

    status: Literal["ok"]
    release: str | None


class Readiness(BaseModel):
    """The readiness of the service, and the reason if it is not ready."""

    status: Literal["ready", "not ready"]
    release: str | None
    next: str | None = Field(None, description="release that is being loaded")
    fault: str | None = Field(None, description="why the requested release is not served")
    deployments: dict[str, int] = Field(description="number of replicas that hold the release, by deployment")


class ReleaseInfo(BaseModel):
    """One release of the registry."""

    release: str
    run: str
    step: int
    created: str
    indexed: bool
    current: bool


class Releases(BaseModel):
    """The releases of the served name, oldest first."""

    release: str
    releases: list[ReleaseInfo]


class Promotion(BaseModel):
    """The new current release, and the release that this response was still served from; null before one is loaded."""

    release: str | None
    current: str


class ExamplePlace(BaseModel):
    """A place of the data set to try the service with, and the addresses of its images, relative to this response."""

    id: str
    latitude: float | None
    longitude: float | None
    street: str
    tile: str


class Examples(BaseModel):
    """Places of the data set; empty if the index was built without pictures."""

    release: str
    examples: list[ExamplePlace]


def finite(tree: Any) -> Any:
    """Return the tree with null in place of numbers that JSON cannot represent, such as a metric that is NaN."""
    if isinstance(tree, dict):
        return {key: finite(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree

"""What goes into the service and what comes out: the arguments of `build` and the bodies of the answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from s2s_ray.data.views import ViewGeometry

LARGEST_K = 100
DEFAULT_K = 10
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Arguments(BaseModel):
    """Frozen settings that refuse keys they do not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Scaling(Arguments):
    """One deployment: what a replica takes, how many there are, how much waits."""

    num_cpus: NonNegative = Field(0.2, description="CPUs a replica reserves (it does not limit its threads)")
    num_gpus: NonNegative = Field(0.0, description="GPUs a replica reserves; a fraction shares one")
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(2, ge=1)
    target_ongoing_requests: Positive = Field(8.0, description="per replica; above it replicas are added")
    max_ongoing_requests: int = Field(32, ge=1, description="per replica; the rest waits")
    max_queued_requests: int = Field(64, ge=1, description="waiting per caller; the rest is answered 503 at once")

    @model_validator(mode="after")
    def _replicas_in_order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas={self.min_replicas} is above max_replicas={self.max_replicas}")
        return self


class ModelScaling(Scaling):
    """A deployment that runs a model, in batches of what waits."""

    max_batch: int = Field(16, ge=1, description="images in one call of the model")
    batch_wait_s: NonNegative = Field(0.005, description="longest wait for a batch to fill")

    @model_validator(mode="after")
    def _batches_can_fill(self) -> Self:
        if self.max_batch > self.max_ongoing_requests:
            raise ValueError(
                f"max_batch={self.max_batch} is above max_ongoing_requests={self.max_ongoing_requests}: "
                "batches would never fill"
            )
        return self


class ServeArgs(Arguments):
    """Arguments of `serve.app:build`: a release of a registry, or a checkpoint and its index by URI."""

    registry: str | None = Field(None, description="URI of the registry")
    name: str | None = Field(None, description="name in the registry")
    release: str | None = Field(None, description="release to serve; default: the current one")
    checkpoint: str | None = Field(None, description="URI of a checkpoint, instead of a registry")
    index: str | None = Field(None, description="URI of the index built with that checkpoint")
    device: str = Field("cpu", description="where the models run: cpu, cuda, cuda:0")
    threads: int = Field(1, ge=1, description="PyTorch and FAISS threads of a replica")
    street: ModelScaling = ModelScaling()
    satellite: ModelScaling = ModelScaling()
    synthesis: ModelScaling = ModelScaling()
    search: Scaling = Scaling()
    ingress: Scaling = Scaling(max_ongoing_requests=64)
    decode_threads: int = Field(2, ge=1, description="images an ingress replica decodes at a time")
    max_upload_mb: Positive = Field(32.0, description="largest body, in 10^6 bytes")
    max_megapixels: Positive = Field(36.0, description="largest image, in 10^6 pixels (8192 x 4096 fits)")
    retry_after_s: Positive = Field(1.0, description="Retry-After of a 503")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        by_registry = self.registry is not None and self.name is not None
        by_uri = self.checkpoint is not None and self.index is not None
        given = [self.registry, self.name, self.release, self.checkpoint, self.index]
        if by_registry == by_uri or (by_uri and any(given[:3])) or (by_registry and any(given[3:])):
            raise ValueError("give registry=URI and name=NAME, or checkpoint=URI and index=URI")
        return self


@dataclass(frozen=True, slots=True)
class ServedRelease:
    """What every deployment of one application serves, resolved once when the application is built."""

    id: str
    checkpoint_uri: str
    index_uri: str
    index_count: int
    geometry: ViewGeometry
    description: ModelInfo


@dataclass(frozen=True, slots=True)
class Limits:
    """What the ingress refuses, and how long it sends callers away for."""

    max_bytes: int
    max_pixels: int
    retry_after_s: float

    @classmethod
    def of(cls, args: ServeArgs) -> Self:
        return cls(round(args.max_upload_mb * 1e6), round(args.max_megapixels * 1e6), args.retry_after_s)


class ReleaseNotLoadedError(RuntimeError):
    """A call stamped with a release that this replica does not hold; the caller tries again later."""


class Error(BaseModel):
    """Why there is no answer, and what to mend."""

    error: str


class Embedding(BaseModel):
    """The unit descriptor of one image."""

    release: str
    descriptor: list[float]


class FoundTile(BaseModel):
    """A reference tile; positions that are not known are null. Distance: 2 - 2 cos, from 0 to 4."""

    rank: int
    id: str
    latitude: float | None
    longitude: float | None
    descriptor_distance: float


class Localization(BaseModel):
    """The most likely tiles of one panorama, best first."""

    release: str
    matches: list[FoundTile]


class IndexDescription(BaseModel):
    """The reference index behind `/v1/localize`."""

    kind: str
    count: int
    dataset: str
    split: str | None


class ModelInfo(BaseModel):
    """What is served: the release, where it comes from, and the sizes that callers need."""

    release: str
    run: str | None
    step: int | None
    epoch: int | None
    metrics: dict[str, Any]
    height: int
    width: int
    descriptor_size: int
    panorama_rows: tuple[float, float] | None
    index: IndexDescription


class Health(BaseModel):
    """The ingress is alive."""

    status: str
    release: str


def finite(tree: Any) -> Any:
    """The tree with null in place of numbers that JSON does not have (a metric that was not a number)."""
    if isinstance(tree, dict):
        return {key: finite(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree

"""The arguments of `s2s_ray.service.app:build`: everything that can be tuned, with its default and its meaning."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Precision = Literal["float32", "bfloat16"]


class Arguments(BaseModel):
    """Frozen settings that refuse keys they do not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Scaling(Arguments):
    """One deployment: what a replica takes, how many there are, how much waits."""

    num_cpus: NonNegative = Field(0.2, description="CPUs a replica reserves (it does not limit its threads)")
    num_gpus: NonNegative = Field(0.0, description="GPUs a replica reserves; a fraction shares one")
    min_replicas: int = Field(1, ge=0, description="0 lets the deployment stop when nobody asks; not for the ingress")
    max_replicas: int = Field(2, ge=1)
    target_ongoing_requests: Positive = Field(8.0, description="per replica; above it replicas are added")
    upscale_delay_s: NonNegative = Field(10.0, description="how long there must be more before replicas are added")
    downscale_delay_s: NonNegative = Field(300.0, description="how long there must be less before replicas are removed")
    look_back_s: float = Field(30.0, gt=10, description="time over which ongoing requests are averaged")
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
    batch_wait_s: NonNegative = Field(
        0.0, description="longest wait for a batch to fill; at 0 it takes what came while the one before was computed"
    )
    precision: Precision = Field("float32", description="of the model's arithmetic; descriptors stay float32")
    compile: bool = Field(
        False,
        description="torch.compile: faster networks, for minutes of compiling at a start or a new shape of model",
    )

    @model_validator(mode="after")
    def _batches_can_fill(self) -> Self:
        if self.max_batch > self.max_ongoing_requests:
            raise ValueError(
                f"max_batch={self.max_batch} is above max_ongoing_requests={self.max_ongoing_requests}: "
                "batches would never fill"
            )
        return self


class Token(Arguments):
    """A caller: the name that stands in the log, and the SHA-256 of its secret (`s2s token NAME` makes both)."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    admin: bool = Field(False, description="may promote and roll back releases")


class ServeArgs(Arguments):
    """Arguments of `s2s_ray.service.app:build`: a release of a registry, or a checkpoint and its index by URI."""

    registry: str | None = Field(None, description="URI of the registry")
    name: str | None = Field(None, description="name in the registry")
    release: str | None = Field(None, description="release to serve for good; default: whichever is current")
    checkpoint: str | None = Field(None, description="URI of a checkpoint, instead of a registry")
    index: str | None = Field(None, description="URI of the index built with that checkpoint")
    follow: Literal["promoted", "best"] = Field(
        "promoted", description="best: also promote any published release whose `best_metric` is higher"
    )
    best_metric: str = Field("recall_at_1", description="metric in the checkpoint's meta.json")
    poll_s: Positive = Field(2.0, description="how often the registry is asked for the current release")
    device: str = Field("cpu", description="where the models run: cpu, cuda, cuda:0")
    threads: int = Field(1, ge=1, description="PyTorch and FAISS threads of a replica")
    street: ModelScaling = ModelScaling()
    satellite: ModelScaling = ModelScaling()
    synthesis: ModelScaling = ModelScaling()
    search: Scaling = Scaling()
    ingress: Scaling = Scaling(max_ongoing_requests=64)
    decode_threads: int = Field(2, ge=1, description="images an ingress replica decodes at a time")
    max_upload_mb: Positive = Field(32.0, description="largest body, in 10^6 bytes")
    max_pending_mb: Positive = Field(256.0, description="bodies an ingress replica holds at a time, in 10^6 bytes")
    max_megapixels: Positive = Field(36.0, description="largest image, in 10^6 pixels (8192 x 4096 fits)")
    max_images: int = Field(16, ge=1, description="most images of one request")
    timeout_s: Positive = Field(30.0, description="longest time for one request; S2S-Timeout asks for less")
    retry_after_s: Positive = Field(1.0, description="Retry-After of a 503")
    tokens: tuple[Token, ...] = Field((), description="callers; none: everyone may ask, nobody may promote")
    cors_origins: tuple[str, ...] = Field((), description="web pages of other hosts that may ask; none by default")
    access_log: bool = Field(True, description="one JSON line per request")
    base_map_url: str | None = Field(None, description="tile server of the page's map, https://.../{z}/{x}/{y}.png")
    base_map_attribution: str = Field("", description="what that server wants said about it")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        by_registry = self.registry is not None and self.name is not None
        by_uri = self.checkpoint is not None and self.index is not None
        given = [self.registry, self.name, self.release, self.checkpoint, self.index]
        if by_registry == by_uri or (by_uri and any(given[:3])) or (by_registry and any(given[3:])):
            raise ValueError("give registry=URI and name=NAME, or checkpoint=URI and index=URI")
        if self.ingress.min_replicas < 1:
            raise ValueError("ingress.min_replicas=0: somebody has to answer; expected at least 1")
        names = [token.name for token in self.tokens]
        if len(set(names)) < len(names):
            raise ValueError(f"tokens: {', '.join(names)}: every token needs a name of its own")
        if self.follow == "best" and (self.release is not None or by_uri):
            raise ValueError("follow=best needs a registry and no fixed release")
        return self

    @property
    def follows(self) -> bool:
        """Whether the release may change while the service runs."""
        return self.registry is not None and self.release is None

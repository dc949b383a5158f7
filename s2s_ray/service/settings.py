"""The settings of the service: arguments of `s2s_ray.service.app:build`, each with its default and meaning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, FiniteFloat, ValidationError, field_validator, model_validator

from s2s_ray.config.explain import explain
from s2s_ray.config.section import NonNegative, Positive, Section
from s2s_ray.errors import ConfigError
from s2s_ray.uri import Uri

Precision = Literal["float32", "bfloat16"]


class Scaling(Section):
    """One deployment: the resources of a replica, the number of replicas, and the limits of their queues."""

    num_cpus: NonNegative = Field(0.2, description="CPUs that a replica reserves (this does not limit its threads)")
    num_gpus: NonNegative = Field(0.0, description="GPUs that a replica reserves; with a fraction, replicas share one")
    min_replicas: int = Field(
        1, ge=0, description="0 lets an idle deployment scale to zero; at least 1 for the ingress"
    )
    max_replicas: int = Field(2, ge=1, description="upper limit of autoscaling")
    target_ongoing_requests: Positive = Field(8.0, description="per replica; above it, replicas are added")
    upscale_delay_s: NonNegative = Field(
        10.0, description="how long the load must stay above the target before replicas are added"
    )
    downscale_delay_s: NonNegative = Field(
        300.0, description="how long the load must stay below the target before replicas are removed"
    )
    look_back_s: FiniteFloat = Field(30.0, gt=10, description="period over which ongoing requests are averaged")
    max_ongoing_requests: int = Field(32, ge=1, description="per replica; further requests wait")
    max_queued_requests: int = Field(
        64, ge=1, description="waiting requests per caller; further ones get a 503 at once"
    )

    @model_validator(mode="after")
    def _replicas_in_order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas={self.min_replicas} is above max_replicas={self.max_replicas}: expected at most that"
            )
        return self


class ModelScaling(Scaling):
    """A deployment that runs a model on batches of the waiting requests."""

    max_batch: int = Field(16, ge=1, description="largest number of images in one call of the model")
    batch_wait_s: NonNegative = Field(
        0.0,
        description="longest wait for a batch to fill; at 0 a batch is what arrived during the previous one",
    )
    precision: Precision = Field("float32", description="precision of the model's arithmetic; descriptors stay float32")
    compile: bool = Field(
        False,
        description="torch.compile: faster networks, but minutes of compiling at start-up or for a new model shape",
    )

    @model_validator(mode="after")
    def _batches_can_fill(self) -> Self:
        if self.max_batch > self.max_ongoing_requests:
            raise ValueError(
                f"max_batch={self.max_batch} is above max_ongoing_requests={self.max_ongoing_requests}: "
                "batches would never fill"
            )
        return self


class Token(Section):
    """A caller: its name in the log, and the SHA-256 of its secret (`s2s token NAME` generates both)."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$", description="name of the caller, as logged")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the secret, in hexadecimal")
    admin: bool = Field(False, description="the caller may promote and roll back releases")


class ServeArgs(Section):
    """The settings of the service: a release of a registry, or a checkpoint and its index by URI."""

    PUBLIC = frozenset({"base_map_url"})  # browsers receive it, with a map provider's key if it has one

    registry: Uri | None = Field(None, description="URI of the registry")
    name: str | None = Field(None, description="name of the model in the registry")
    release: str | None = Field(
        None, description="release to pin the service to; by default it follows the current one"
    )
    checkpoint: Uri | None = Field(None, description="URI of a checkpoint, instead of a registry")
    index: Uri | None = Field(None, description="URI of the index built with that checkpoint")
    calibration: Uri | None = Field(
        None, description="URI of the calibration of that checkpoint; without it fixes have no radius"
    )
    default_heading: Annotated[FiniteFloat, Field(ge=-360, le=360)] | Literal["unknown"] | None = Field(
        None,
        description="compass bearing that heading=auto means for panoramas of the whole horizon without a heading in "
        "their file, instead of the release's; unknown: it is searched",
    )
    follow: Literal["promoted", "best"] = Field(
        "promoted",
        description="best: also promote any published release with a higher `best_metric` than the current one",
    )
    best_metric: str = Field("recall_at_1", description="name of a metric in the checkpoint's meta.json")
    poll_s: Positive = Field(2.0, description="interval at which the registry is checked for a new current release")
    device: str = Field(
        "cpu",
        description="device of the models: cpu, cuda, cuda:0. On cpu a replica keeps freed memory for the next "
        "request, so it is faster and its process never shrinks",
    )
    threads: int = Field(1, ge=1, description="PyTorch and FAISS threads per replica")
    street: ModelScaling = ModelScaling()
    satellite: ModelScaling = ModelScaling()
    synthesis: ModelScaling = ModelScaling()
    search: Scaling = Scaling()
    ingress: Scaling = Scaling(max_ongoing_requests=64)
    decode_threads: int = Field(2, ge=1, description="images that an ingress replica decodes concurrently")
    max_upload_mb: Positive = Field(32.0, description="largest request body, in 10^6 bytes")
    max_pending_mb: Positive = Field(
        256.0, description="total size of the bodies that an ingress replica holds, in 10^6 bytes"
    )
    max_megapixels: Positive = Field(36.0, description="largest image, in 10^6 pixels (8192 x 4096 fits)")
    max_images: int = Field(16, ge=1, description="largest number of images in one request")
    timeout_s: Positive = Field(30.0, description="time limit of a request; the header S2S-Timeout can shorten it")
    retry_after_s: Positive = Field(1.0, description="Retry-After header of a 503")
    tokens: tuple[Token, ...] = Field(
        (), description="API tokens. If empty, inference is open to everyone and promotion is disabled."
    )
    cors_origins: tuple[str, ...] = Field(
        (), description="origins of other web pages that may call the service; none by default"
    )
    access_log: bool = Field(True, description="log one JSON line per request")
    base_map_url: str | None = Field(
        None, description="tile server for the map of the page, https://.../{z}/{x}/{y}.png"
    )
    base_map_attribution: str = Field("", description="attribution text required by the tile server")

    @field_validator("base_map_url")
    @classmethod
    def _is_url(cls, url: str | None) -> str | None:
        if url is not None and (urlsplit(url).scheme not in ("", "http", "https") or set(url) & set(" ;,'\"\n")):
            raise ValueError("expected a URL such as https://tiles.example/{z}/{x}/{y}.png")
        return url

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        by_registry = self.registry is not None and self.name is not None
        by_uri = self.checkpoint is not None and self.index is not None
        given = [self.registry, self.name, self.release, self.checkpoint, self.index, self.calibration]
        if by_registry == by_uri or (by_uri and any(given[:3])) or (by_registry and any(given[3:])):
            raise ValueError(
                "give registry=URI and name=NAME, or checkpoint=URI and index=URI (and perhaps calibration=URI)"
            )
        if self.ingress.min_replicas < 1:
            raise ValueError("ingress.min_replicas=0: expected at least 1, since the ingress receives every request")
        if self.max_upload_mb > self.max_pending_mb:
            raise ValueError(
                f"max_upload_mb={self.max_upload_mb:g} is above max_pending_mb={self.max_pending_mb:g}: expected at "
                "most that, or the largest bodies could never be held"
            )
        names = [token.name for token in self.tokens]
        if len(set(names)) < len(names):
            raise ValueError(f"tokens: {', '.join(names)}: every token needs a different name")
        if self.follow == "best" and (self.release is not None or by_uri):
            raise ValueError("follow=best needs a registry, and no `release` to pin the service to")
        return self

    @classmethod
    def parse(cls, tree: Mapping[str, Any]) -> Self:
        """Return the settings of a tree of plain values, such as a YAML file holds.

        Raises:
            ConfigError: an unknown key, or a value that is not allowed; one line for each.
        """
        try:
            return cls.model_validate(dict(tree))
        except ValidationError as error:
            raise ConfigError(explain(error, cls)) from None

    @property
    def follows(self) -> bool:
        """True if the release may change while the service runs."""
        return self.registry is not None and self.release is None

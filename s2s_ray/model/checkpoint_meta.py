"""The metadata of a checkpoint, `meta.json`; read without PyTorch, which takes seconds to import."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from s2s_ray import storage
from s2s_ray.config import ModelConfig
from s2s_ray.config.section import STORED
from s2s_ray.errors import CheckpointError, S2SError, faults_of
from s2s_ray.storage.documents import Document
from s2s_ray.storage.files import parse_json

MODEL_FILE = "model.safetensors"
META_FILE = "meta.json"


class DatasetMeta(BaseModel):
    """The data set that a checkpoint was trained on: its URI, its digest, and how it treats images."""

    model_config = ConfigDict(frozen=True)

    uri: str = ""
    digest: str = ""
    geometry: dict[str, Any] | None = None
    metres: Literal["geodesic", "utm"] = "utm"
    """How the run measures distances between pairs (`s2s_ray.data.schema.Metres`)."""
    tile_m: float | None = None
    tile_px: int | None = None
    """The side of its tiles in metres and pixels; None: unknown."""


class CheckpointMeta(Document):
    """The content of `meta.json`. A checkpoint that was imported lacks what a run knows."""

    ERROR: ClassVar[type[S2SError]] = CheckpointError
    NOUN: ClassVar[str] = "metadata file of a checkpoint"

    model: dict[str, Any]
    """The model's configuration; `model_config` validates it."""
    version: str = ""
    """Version of the code that wrote the checkpoint."""
    run: str | None = None
    step: int | None = None
    epoch: int | None = None
    workers: int | None = None
    source: str | None = None
    """Name of the file that an imported checkpoint was read from."""
    metrics: dict[str, Any] | None = None
    """Metrics of the epoch that the checkpoint was saved after; empty in the middle of an epoch."""
    config: dict[str, Any] | None = None
    """The configuration of the run."""
    dataset: DatasetMeta | None = None


def read_meta(uri: str | Path) -> dict[str, Any]:
    """Return the keys of `meta.json` that a checkpoint has, migrated to this version (see `CheckpointMeta`).

    Raises:
        CheckpointError: a newer version that this one cannot read wrote it.
        DamagedError: it is not the metadata of a checkpoint.
        StorageError: it cannot be read.
    """
    content = storage.read_published(str(uri), META_FILE)
    return parse_meta(parse_json(content, storage.join(str(uri), META_FILE)), str(uri))


def parse_meta(tree: Any, uri: str) -> dict[str, Any]:
    """Return the content of the `meta.json` of a checkpoint like `read_meta`. Raises CheckpointError, DamagedError."""
    return CheckpointMeta.parse(tree, storage.join(uri, META_FILE)).model_dump(exclude_unset=True)


def fingerprint(uri: str) -> str:
    """Return what identifies a checkpoint: the SHA-256 of its weights, as its manifest records it.

    Raises:
        CheckpointError: there is no complete checkpoint at the URI.
        StorageError: the manifest cannot be read.
    """
    if not storage.is_complete(uri):
        raise CheckpointError(f"{uri} holds no complete checkpoint (no {storage.MANIFEST})")
    files = storage.read_manifest(uri).files
    if MODEL_FILE not in files:
        raise CheckpointError(f"{uri} is not a checkpoint: it has {', '.join(sorted(files))}")
    return files[MODEL_FILE].sha256


def model_config(meta: dict[str, Any], uri: str) -> ModelConfig:
    """Return the model configuration in a checkpoint's `meta`. Raises CheckpointError."""
    try:
        return ModelConfig.model_validate(meta.get("model"), context=STORED)
    except ValidationError as error:
        raise CheckpointError(
            f"checkpoint {uri}: model configuration in {META_FILE} is not valid ({faults_of(error)})"
        ) from None


def check_fits(uri: str, found: ModelConfig, wanted: ModelConfig) -> None:
    """Raise CheckpointError if the model of a checkpoint is not the configured one; name each difference.

    The origin of the starting weights (`street_weights`) is not part of a model's shape.
    """
    stored, configured = found.model_dump(exclude={"street_weights"}), wanted.model_dump(exclude={"street_weights"})
    differences = [
        f"model.{key} is {stored[key]} in the checkpoint, {value} in the configuration"
        for key, value in configured.items()
        if stored[key] != value
    ]
    if differences:
        raise CheckpointError(f"checkpoint {uri} holds another model: {'; '.join(differences)}")

"""Publication of a checkpoint as a release, with the calibration that is made for it."""

from __future__ import annotations

import logging

import torch

from s2s_ray import registry, storage
from s2s_ray.errors import DatasetError, InputError, NotFoundError, RegistryError, StateError, StorageError
from s2s_ray.inference import Embedder
from s2s_ray.localization import CALIBRATION_FILE, Calibration
from s2s_ray.localization.calibrate import calibrate_checkpoint
from s2s_ray.model.checkpoint_meta import read_meta

log = logging.getLogger(__name__)


def publish_calibrated(
    registry_uri: str,
    name: str,
    checkpoint: str,
    index: str | None = None,
    *,
    device: str | torch.device = "cpu",
) -> registry.Release:
    """Publish a checkpoint with a calibration on the data set that it was trained on, if that can be had.

    A release that has a calibration keeps it, and so does one whose publication was cut short after it.
    Without the data set, or with too few pictures in it, the release is published without a calibration, and a warning
    says why; one can be added later.

    Args:
        registry_uri, name, checkpoint, index: as in `registry.publish`.
        device: of the model.

    Raises:
        RegistryError, CheckpointError, ReferenceIndexError, StorageError: as in `registry.publish`.
    """
    registry.require_publishable(registry_uri, name, checkpoint, index)
    digest = registry.fingerprint(checkpoint)
    id = registry.release_id(read_meta(checkpoint), digest)
    if _has_calibration(registry_uri, name, id, digest):
        return registry.publish(registry_uri, name, checkpoint, index)
    calibration = None
    try:
        embedder = Embedder.load(checkpoint, device)
        calibration = calibrate_checkpoint(embedder, checkpoint)
    except (DatasetError, InputError, StorageError, StateError) as error:
        log.warning(
            "release %s is published without a calibration, so its fixes have neither a radius nor a confidence: %s",
            id,
            error,
        )
    return registry.publish(registry_uri, name, checkpoint, index, calibration=calibration)


def _has_calibration(registry_uri: str, name: str, id: str, digest: str) -> bool:
    """Return whether there is a calibration of such a release, which need not be complete yet."""
    try:
        Calibration.read(storage.join(registry_uri, name, "releases", id, CALIBRATION_FILE)).require(digest)
    except (NotFoundError, RegistryError):
        return False
    return True

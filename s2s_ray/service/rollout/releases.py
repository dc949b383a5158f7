"""Releases as the service identifies and finds them: a checkpoint and its index, which change together.

Every request is stamped with one release on arrival, and every call made for it carries that stamp. A replica that
does not hold the release yet loads it before it responds, so that no response mixes two releases; the rollout stamps
requests with a release only after all replicas have loaded it, so that requests do not wait for that.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from s2s_ray import registry, storage
from s2s_ray.config import ModelConfig
from s2s_ray.errors import NoIndexError
from s2s_ray.index import IndexInfo, read_info
from s2s_ray.localization.calibration import Calibration
from s2s_ray.model.checkpoint_meta import model_config, read_meta
from s2s_ray.service.settings import ServeArgs


class ReleaseKey(NamedTuple):
    """The stamp of a call: all that a replica needs to load the release. `calibration_uri` is None if there is none."""

    id: str
    checkpoint_uri: str
    index_uri: str
    calibration_uri: str | None = None

    def uncalibrated(self) -> ReleaseKey:
        """Return the key without the calibration: all that a model or an index depends on."""
        return self._replace(calibration_uri=None)


class Located(NamedTuple):
    """A release and the metadata of its checkpoint and its index."""

    key: ReleaseKey
    meta: dict[str, Any]
    config: ModelConfig
    info: IndexInfo


def locate(args: ServeArgs, release: str | None = None) -> Located:
    """Find the release that the settings name, or another release of the same name.

    Raises:
        RegistryError, StorageError, CheckpointError, ReferenceIndexError: the release does not exist or cannot be
            read, or its index or calibration was made with another checkpoint.
    """
    if args.registry is not None and args.name is not None:
        found = registry.resolve(storage.absolute(args.registry), args.name, release or args.release)
        if found.index_uri is None:
            raise NoIndexError(
                f"registry {args.registry}: release {found.id!r} of {args.name!r} has no index; attach one first"
            )
        calibration = None if registry.read_calibration(found) is None else found.calibration_uri
        key = ReleaseKey(found.id, found.checkpoint_uri, found.index_uri, calibration)
        fingerprint = found.fingerprint
    else:
        assert args.checkpoint is not None
        assert args.index is not None, "ServeArgs has one or the other"
        checkpoint, index = storage.absolute(args.checkpoint), storage.absolute(args.index)
        fingerprint = registry.fingerprint(checkpoint)
        calibration = None if args.calibration is None else storage.absolute(args.calibration)
        if calibration is not None:
            Calibration.read(calibration).require(fingerprint, f"calibration {calibration}")
        key = ReleaseKey(registry.release_id(read_meta(checkpoint), fingerprint), checkpoint, index, calibration)
    meta, info = read_meta(key.checkpoint_uri), read_info(key.index_uri)
    config = model_config(meta, key.checkpoint_uri)
    info.require(config.descriptor_size, fingerprint)
    return Located(key, meta, config, info)


def calibrated_since(args: ServeArgs, key: ReleaseKey) -> bool:
    """Return whether a release of the registry that had no calibration has one now; one that it has never changes.

    Raises:
        RegistryError, StorageError: the release cannot be read.
    """
    if key.calibration_uri is not None or args.registry is None or args.name is None:
        return False
    return storage.exists(registry.resolve(storage.absolute(args.registry), args.name, key.id).calibration_uri)


def candidates(args: ServeArgs) -> list[str | None]:
    """Return the releases to try at start-up, the current one first; None stands for the one that the settings name.

    There are several so that a damaged release does not keep the service down.
    """
    if not args.follows:
        return [None]
    assert args.registry is not None
    assert args.name is not None
    return list(registry.lineage(storage.absolute(args.registry), args.name)) or [None]

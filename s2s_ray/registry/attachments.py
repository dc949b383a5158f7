"""What a release may have beside its checkpoint: the index and the calibration, each added once and never changed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from s2s_ray import storage
from s2s_ray.errors import ConflictError, NotFoundError, RegistryError
from s2s_ray.index import read_info
from s2s_ray.index.info import INFO_FILE
from s2s_ray.localization.calibration import Calibration
from s2s_ray.secrets import masked_tree
from s2s_ray.storage import conditional

if TYPE_CHECKING:
    from s2s_ray.registry.releases import Release


def read_calibration(release: Release) -> Calibration | None:
    """Return the calibration of a release; None if it has none.

    Raises:
        RegistryError: a newer version wrote it, or it was made with another checkpoint.
        StorageError: it cannot be read or is damaged.
    """
    try:
        found = Calibration.read(release.calibration_uri)
    except NotFoundError:
        return None
    found.require(release.fingerprint, release.calibration_uri)
    return found


def require_index_of(index_uri: str, digest: str, copy: Path | None = None) -> None:
    """Refuse an index of another checkpoint; `copy` is a local copy to look at."""
    built_with = read_info(index_uri if copy is None else str(copy)).checkpoint
    if built_with != digest:
        raise RegistryError(
            f"index {index_uri} was built with checkpoint {built_with[:8]}, not {digest[:8]}: build it with this one"
        )


def copy_index(registry: str, release: Release, index_uri: str) -> None:
    """Copy an index into a release that has none, or the same one, and verify its checksums on the way."""
    with tempfile.TemporaryDirectory() as folder:
        local = storage.fetch(index_uri, Path(folder))
        unmasked = storage.read_manifest(str(local)).files
        require_index_of(index_uri, release.fingerprint, local)  # it may have been replaced since the first look
        mask(local / INFO_FILE)
        target = storage.join(release.uri, "index")
        try:
            storage.publish(local, target)
        except ConflictError as error:
            if storage.is_complete(target) and storage.read_manifest(target).files == unmasked:
                return  # an earlier version released the same index
            raise RegistryError(
                f"registry {registry}: release {release.id!r} of {release.name!r} already has another index, or one is "
                "being attached, and a release does not change: publish the checkpoint under another release id with "
                f"this index ({error})"
            ) from None


def write_calibration(registry: str, release: Release, calibration: Calibration) -> None:
    """Write the calibration of a release that has none, or the same one."""
    content = calibration.to_bytes()
    if conditional.write_once(release.calibration_uri, content) != content:
        raise RegistryError(
            f"registry {registry}: release {release.id!r} of {release.name!r} already has another calibration, and a "
            "release does not change: publish the checkpoint under another release id with this one"
        )


def mask(path: Path) -> None:
    """Mask the passwords that earlier versions stored in the metadata of a checkpoint or of an index."""
    tree = storage.read_json(str(path))
    if (shown := masked_tree(tree)) != tree:
        storage.write_json(str(path), shown)

"""The releases of a model: each a checkpoint, with the index built from it, under one id.

    REGISTRY/NAME/releases/RELEASE/checkpoint/    the model, without the trainer's state
                                  /index/         the reference index built with it, once there is one
                                  /calibration.json    what turns its similarities into probabilities, once there is one
                                  /release.json   written last: without it the release does not exist
    REGISTRY/NAME/current.json                    the current release, see `s2s_ray.registry.pointer`
    REGISTRY/NAME/floor.json                      what a release must reach, see `s2s_ray.registry.floor`

A complete release never changes, except that an index or a calibration may be added to one that has none. Checkpoint
and index are published folders (`s2s_ray.storage.publication`): of several processes that publish different things
under one id, one claims the folder before it writes, and the others are refused before they have written anything.
Those that publish the same help each other, so the next one after a publisher that was killed completes its release.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from s2s_ray import storage
from s2s_ray.errors import CheckpointError, ConflictError, DamagedError, NotFoundError, RegistryError, S2SError
from s2s_ray.localization.calibration import CALIBRATION_FILE, Calibration
from s2s_ray.model.checkpoint_meta import META_FILE, MODEL_FILE, fingerprint, read_meta
from s2s_ray.registry.attachments import copy_index, mask, require_index_of, write_calibration
from s2s_ray.storage import conditional
from s2s_ray.storage.documents import Document
from s2s_ray.storage.files import parse_json

log = logging.getLogger(__name__)

RELEASE_FILE = "release.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Release(Document):
    """A checkpoint with the index built from it, under one id; `release.json` holds all fields but the URIs."""

    ERROR: ClassVar[type[S2SError]] = RegistryError
    NOUN: ClassVar[str] = "record of a release"

    id: str
    name: str
    fingerprint: str
    """SHA-256 of the checkpoint's weights."""
    run: str
    step: int
    created: datetime
    source: str
    """URI of the checkpoint that the release was published from."""
    uri: str = Field(exclude=True)
    index_uri: str | None = Field(None, exclude=True)

    @property
    def checkpoint_uri(self) -> str:
        """URI of the release's copy of the checkpoint."""
        return storage.join(self.uri, "checkpoint")

    @property
    def calibration_uri(self) -> str:
        """URI of the release's calibration; a release may have none (`read_calibration`)."""
        return storage.join(self.uri, CALIBRATION_FILE)


def publish(
    registry: str,
    name: str,
    checkpoint_uri: str,
    index_uri: str | None = None,
    *,
    release: str | None = None,
    calibration: Calibration | None = None,
) -> Release:
    """Copy a checkpoint, and its index, into the registry as a release. It is not served before `promote`.

    Publishing the same again changes nothing and returns the same release; files that were damaged since are repaired.

    Args:
        registry: URI of the registry.
        name: name of the model in the registry.
        checkpoint_uri: the checkpoint.
        index_uri: the index built with this checkpoint; `attach_index` adds it later.
        release: id of the release; default RUN-STEP-FINGERPRINT. Another id releases the same checkpoint with another
            index.
        calibration: the calibration of this checkpoint; `attach_calibration` adds it later.

    Raises:
        RegistryError: a name or id that is not letters, digits, `.`, `_` and `-`; an id that another checkpoint has
            or that is being published with another one; an index or a calibration of another checkpoint; an id that
            has another index or calibration.
        CheckpointError: there is no complete checkpoint at the URI, or it is replaced at the same time.
        StorageError: the checkpoint cannot be read or the registry not written.
    """
    digest, meta = fingerprint(checkpoint_uri), read_meta(checkpoint_uri)
    run, step = _run_and_step(meta)
    release = release or release_id(meta, digest)
    uri = _release_uri(registry, name, release)
    if index_uri is not None:
        require_index_of(index_uri, digest)
    if calibration is not None:
        calibration.require(digest)
    record = Release(
        id=release, name=name, fingerprint=digest, run=run, step=step, created=datetime.now(UTC),
        source=checkpoint_uri, uri=uri,
    )  # fmt: skip
    known = _read_record(uri)
    _require_same(registry, known or record, digest)
    try:
        _copy_checkpoint(checkpoint_uri, record)
    except ConflictError as error:
        existing = _read_record(uri)
        if existing is None:
            raise RegistryError(
                f"registry {registry}: another checkpoint is being published as release {release!r} of {name!r}, or "
                f"its publication was cut short: choose another id ({error})"
            ) from None
        # If it has the same weights with other metadata, the release keeps what it was published with.
        _require_same(registry, existing, digest)
    place = storage.join(uri, "index")
    if index_uri is not None:
        copy_index(registry, record, index_uri)
    if calibration is not None:
        write_calibration(registry, record, calibration)
    index = place if index_uri is not None or storage.is_complete(place) else None
    # Nothing is read after the last write: a read that fails would report the failure of what was done.
    if known is None:
        known = _parse_record(conditional.write_once(storage.join(uri, RELEASE_FILE), record.to_bytes()), uri, index)
        _require_same(registry, known, digest)
    return known.model_copy(update={"index_uri": index})


def require_publishable(registry: str, name: str, checkpoint_uri: str, index_uri: str | None = None) -> None:
    """Refuse, before long work for a release, what `publish` would refuse of its name, checkpoint and index.

    Raises:
        RegistryError: a name that is not letters, digits, `.`, `_` and `-`, or an index of another checkpoint.
        CheckpointError: there is no complete checkpoint at the URI.
        ReferenceIndexError: there is no complete index at the URI.
        StorageError: they cannot be read.
    """
    name_uri(registry, name)
    digest = fingerprint(checkpoint_uri)
    if index_uri is not None:
        require_index_of(index_uri, digest)


def release_id(meta: Mapping[str, Any], digest: str) -> str:
    """Return the default id of a checkpoint's release: RUN-STEP and the first digits of its fingerprint."""
    return "{}-{}-{}".format(*_run_and_step(meta), digest[:8])


def attach_index(registry: str, name: str, release: str, index_uri: str) -> Release:
    """Add the index to a release that has none; adding the same index again changes nothing.

    Raises:
        RegistryError: no such release, an index of another checkpoint, a release that has another index.
        StorageError: the index cannot be read or the registry not written.
    """
    existing = read_release(registry, name, release)
    require_index_of(index_uri, existing.fingerprint)
    copy_index(registry, existing, index_uri)
    return existing.model_copy(update={"index_uri": storage.join(existing.uri, "index")})


def attach_calibration(registry: str, name: str, release: str, calibration: Calibration) -> Release:
    """Add the calibration to a release that has none; adding the same one again changes nothing.

    Raises:
        RegistryError: no such release, a calibration of another checkpoint, a release that has another calibration.
        StorageError: the registry cannot be read or written.
    """
    existing = read_release(registry, name, release)
    calibration.require(existing.fingerprint)
    write_calibration(registry, existing, calibration)
    return existing


def list_releases(registry: str, name: str) -> list[Release]:
    """Return the complete releases, oldest first; [] for a name that the registry does not have.

    A release whose `release.json` is damaged, or written by a newer version, is logged and left out.
    """
    folder = storage.join(name_uri(registry, name), "releases")
    found = []
    for release in storage.list_folders(folder):
        try:
            record = _read_record(storage.join(folder, release))
        except (DamagedError, RegistryError) as error:
            warn_once(f"the release {release} of {name} is left out: {error}")
            continue
        if record is not None:
            found.append(record)
    return sorted(found, key=lambda item: (item.created, item.id))


@lru_cache(maxsize=1024)
def warn_once(message: str) -> None:
    """Log a warning, which a service would repeat whenever it looks at the registry."""
    log.warning("%s", message)


def read_release(registry: str, name: str, release: str) -> Release:
    """Return one release.

    Raises:
        RegistryError: no such name or release, or one that a newer version wrote.
        DamagedError: its `release.json` is not valid.
        StorageError: it cannot be read.
    """
    found = _read_record(_release_uri(registry, name, release))
    if found is None:
        known = ", ".join(item.id for item in list_releases(registry, name))
        raise RegistryError(
            f"registry {registry}: {name!r} has no release {release!r}; it has: {known}"
            if known
            else no_such_name(registry, name)
        )
    return found


def _read_record(uri: str) -> Release | None:
    """Return the release at a URI; None if there is no `release.json`. Raises the errors of `read_release`."""
    try:
        content = storage.read_bytes(storage.join(uri, RELEASE_FILE))
    except NotFoundError:
        return None
    index = storage.join(uri, "index")
    return _parse_record(content, uri, index if storage.is_complete(index) else None)


def _parse_record(content: bytes, uri: str, index_uri: str | None) -> Release:
    """Return the release at a URI, given the content of its `release.json` and the URI of its index, if it has one."""
    path = storage.join(uri, RELEASE_FILE)
    tree = parse_json(content, path)
    if isinstance(tree, dict):
        tree = {**tree, "uri": uri, "index_uri": index_uri}
    return Release.parse(tree, path)


def name_uri(registry: str, name: str) -> str:
    """Return the URI of a name in the registry. Raises RegistryError if it cannot be a name."""
    if not _NAME.fullmatch(name):
        raise RegistryError(f"name {name!r}: expected letters, digits, '.', '_' and '-'")
    return storage.join(registry, name)


def no_such_name(registry: str, name: str) -> str:
    """Return the message for a name without releases."""
    names = ", ".join(storage.list_names(registry)) or "nothing"
    return f"registry {registry} has no releases of {name!r}; it holds: {names}"


def _release_uri(registry: str, name: str, release: str) -> str:
    if not _NAME.fullmatch(release):
        raise RegistryError(f"release {release!r}: expected letters, digits, '.', '_' and '-'")
    return storage.join(name_uri(registry, name), "releases", release)


def _run_and_step(meta: Mapping[str, Any]) -> tuple[str, int]:
    return str(meta.get("run") or "model"), int(meta.get("step") or 0)


def _require_same(registry: str, found: Release, digest: str) -> None:
    """Refuse an id that belongs to another checkpoint."""
    if found.fingerprint != digest:
        raise RegistryError(
            f"registry {registry}: release {found.id!r} of {found.name!r} holds checkpoint {found.fingerprint[:8]}, "
            f"not {digest[:8]}: choose another id"
        )


def _copy_checkpoint(source: str, release: Release) -> None:
    """Copy the model of a checkpoint into a release, and verify its checksums on the way."""
    with tempfile.TemporaryDirectory() as folder:
        local = storage.fetch(source, Path(folder), only=(MODEL_FILE, META_FILE))
        if storage.sha256(local / MODEL_FILE) != release.fingerprint:
            raise CheckpointError(f"checkpoint {source} was replaced while it was published: try again")
        mask(local / META_FILE)
        storage.publish(local, release.checkpoint_uri)

"""Which checkpoint is served: releases below one URI, and a pointer to the current one.

    REGISTRY/NAME/releases/RELEASE/checkpoint/    the model, without the trainer's state
                                  /index/         the reference index built with it, once there is one
                                  /release.json   written last: without it the release does not exist
    REGISTRY/NAME/current.json                    {"release": ..., "history": [...]}

A release never changes once it is complete, save that an index may be added to one that has none.
"""

from __future__ import annotations

import math
import random
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from s2s_ray import storage
from s2s_ray.errors import ConflictError, RegistryError
from s2s_ray.index import read_info
from s2s_ray.model.checkpoint_meta import META_FILE, MODEL_FILE, fingerprint, read_meta
from s2s_ray.storage import conditional

RELEASE_FILE = "release.json"
POINTER_FILE = "current.json"
_TURNS = 50
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Release(BaseModel):
    """A checkpoint with the index built from it, under one id."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    fingerprint: str
    """Of the checkpoint: sha256 of its weights."""
    run: str
    step: int
    created: datetime
    source: str
    """URI of the checkpoint it was published from."""
    uri: str = Field(exclude=True)
    index_uri: str | None = Field(None, exclude=True)

    @property
    def checkpoint_uri(self) -> str:
        return storage.join(self.uri, "checkpoint")


class _Pointer(BaseModel):
    model_config = ConfigDict(frozen=True)

    release: str | None = None
    history: tuple[str, ...] = ()

    def moved_to(self, release: str) -> Self:
        if release == self.release:
            return self
        before = (*self.history, self.release) if self.release else self.history
        return self.model_copy(update={"release": release, "history": before})


def publish(
    registry: str, name: str, checkpoint_uri: str, index_uri: str | None = None, *, release: str | None = None
) -> Release:
    """Copy a checkpoint, and its index, into the registry as a release. It is not served before `promote`.

    Publishing the same again changes nothing and gives the same release.

    Args:
        index_uri: the index built with this checkpoint; `attach_index` adds it later.
        release: the release's id; default RUN-STEP-FINGERPRINT. Another id is how the same checkpoint is
            released with another index.

    Raises:
        RegistryError: a name or id that is not letters, digits, `.`, `_` and `-`; an id taken by another
            checkpoint; an index of another checkpoint.
        StorageError: the checkpoint cannot be read or the registry not written.
    """
    mark, meta = fingerprint(checkpoint_uri), read_meta(checkpoint_uri)
    run, step = _run_and_step(meta)
    release = release or release_id(meta, mark)
    uri = _release_uri(registry, name, release)
    if storage.exists(storage.join(uri, RELEASE_FILE)):
        existing = _read_release(registry, name, release)
        if existing.fingerprint != mark:
            raise RegistryError(
                f"registry {registry}: release {release!r} of {name!r} holds checkpoint "
                f"{existing.fingerprint[:8]}, not {mark[:8]}: choose another id"
            )
        return existing if index_uri is None else attach_index(registry, name, release, index_uri)
    if index_uri is not None:
        _require_index_of(index_uri, mark)
    record = Release(
        id=release, name=name, fingerprint=mark, run=run, step=step, created=datetime.now(UTC),
        source=checkpoint_uri, uri=uri,
    )  # fmt: skip
    _copy(checkpoint_uri, record.checkpoint_uri, (MODEL_FILE, META_FILE))
    if index_uri is not None:
        _copy(index_uri, storage.join(uri, "index"))
    storage.write_json(storage.join(uri, RELEASE_FILE), record.model_dump(mode="json"))
    return _read_release(registry, name, release)


def release_id(meta: Mapping[str, Any], mark: str) -> str:
    """The id of a checkpoint's release: RUN-STEP and the start of its fingerprint."""
    return "{}-{}-{}".format(*_run_and_step(meta), mark[:8])


def attach_index(registry: str, name: str, release: str, index_uri: str) -> Release:
    """Add the index to a release that has none; the same index again changes nothing.

    Raises:
        RegistryError: no such release, an index of another checkpoint, a release that has another index.
    """
    existing = _read_release(registry, name, release)
    _require_index_of(index_uri, existing.fingerprint)
    if existing.index_uri is None:
        _copy(index_uri, storage.join(existing.uri, "index"))
    elif _manifest(index_uri) != _manifest(existing.index_uri):
        raise RegistryError(
            f"registry {registry}: release {release!r} of {name!r} already has another index, and a release "
            "does not change: publish the checkpoint under another release id with this index"
        )
    return _read_release(registry, name, release)


def promote(registry: str, name: str, release: str) -> Release:
    """Make a release the current one; the one before is remembered for `rollback`.

    Raises:
        RegistryError: no such release, or one without an index.
    """
    chosen = _read_release(registry, name, release)
    if chosen.index_uri is None:
        raise RegistryError(
            f"registry {registry}: release {release!r} of {name!r} has no index, so it cannot localise. Build "
            f"one with `s2s build-index --checkpoint {chosen.checkpoint_uri}` and publish the checkpoint with it"
        )
    _change_pointer(registry, name, lambda pointer: pointer.moved_to(release))
    return chosen


def promote_best(registry: str, name: str, metric: str) -> str | None:
    """Promote the release with the highest value of a metric, where that is above the current one's.

    Releases without an index or without that number do not count, nor does any where the current one lacks it.

    Returns: the id of the release that is current then.
    """
    standing = current(registry, name)
    scores = {
        release.id: score
        for release in list_releases(registry, name)
        if release.index_uri is not None and (score := _score(release, metric)) is not None
    }
    best = max(scores, key=lambda release: scores[release], default=None)
    if best is None or standing == best or (standing is not None and scores.get(standing, math.inf) >= scores[best]):
        return standing
    return promote(registry, name, best).id


def rollback(registry: str, name: str) -> Release:
    """Go back to the release that was current before, and forget the present one.

    Raises:
        RegistryError: there was none before.
    """

    def back(pointer: _Pointer) -> _Pointer:
        if not pointer.history:
            raise RegistryError(
                f"registry {registry}: {name!r} has no earlier release to go back to (current: {pointer.release})"
            )
        chosen = _read_release(registry, name, pointer.history[-1])
        return _Pointer(release=chosen.id, history=pointer.history[:-1])

    return _read_release(registry, name, str(_change_pointer(registry, name, back).release))


def resolve(registry: str, name: str, release: str | None = None) -> Release:
    """The current release, or the one asked for.

    Raises:
        RegistryError: no such name or release, or none promoted yet.
    """
    if release is None:
        release = current(registry, name)
        if release is None:
            there = ", ".join(item.id for item in list_releases(registry, name))
            raise RegistryError(
                f"registry {registry}: {name!r} has no current release; promote one of: {there}"
                if there
                else _no_such_name(registry, name)
            )
    return _read_release(registry, name, release)


def current(registry: str, name: str) -> str | None:
    """The id of the current release; None where none was promoted. Raises RegistryError for a damaged pointer."""
    return _read_pointer(registry, name).release


def lineage(registry: str, name: str) -> tuple[str, ...]:
    """Ids of the current release and of those before it, the current one first; () where none was promoted."""
    pointer = _read_pointer(registry, name)
    return () if pointer.release is None else (pointer.release, *reversed(pointer.history))


def list_releases(registry: str, name: str) -> list[Release]:
    """Complete releases, oldest first; [] for a name the registry does not have."""
    folder = storage.join(_name_uri(registry, name), "releases")
    found = [
        _read_release(registry, name, release)
        for release in storage.list_names(folder)
        if storage.exists(storage.join(folder, release, RELEASE_FILE))
    ]
    return sorted(found, key=lambda item: (item.created, item.id))


def _run_and_step(meta: Mapping[str, Any]) -> tuple[str, int]:
    return str(meta.get("run") or "model"), int(meta.get("step") or 0)


def _name_uri(registry: str, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise RegistryError(f"name {name!r}: expected letters, digits, '.', '_' and '-'")
    return storage.join(registry, name)


def _release_uri(registry: str, name: str, release: str) -> str:
    if not _NAME.fullmatch(release):
        raise RegistryError(f"release {release!r}: expected letters, digits, '.', '_' and '-'")
    return storage.join(_name_uri(registry, name), "releases", release)


def _read_release(registry: str, name: str, release: str) -> Release:
    uri = _release_uri(registry, name, release)
    path, index = storage.join(uri, RELEASE_FILE), storage.join(uri, "index")
    if not storage.exists(path):
        there = ", ".join(item.id for item in list_releases(registry, name))
        raise RegistryError(
            f"registry {registry}: {name!r} has no release {release!r}; it has: {there}"
            if there
            else _no_such_name(registry, name)
        )
    index_uri = index if storage.is_complete(index) else None
    try:
        return Release(**storage.read_json(path), uri=uri, index_uri=index_uri)
    except (ValidationError, TypeError) as error:
        raise RegistryError(f"{path} does not describe a release: {error}") from None


def _no_such_name(registry: str, name: str) -> str:
    names = ", ".join(storage.list_names(registry)) or "nothing"
    return f"registry {registry} has no releases of {name!r}; it holds: {names}"


def _read_pointer(registry: str, name: str) -> _Pointer:
    return _read_versioned_pointer(registry, name)[0]


def _read_versioned_pointer(registry: str, name: str) -> tuple[_Pointer, str | None]:
    path = storage.join(_name_uri(registry, name), POINTER_FILE)
    content, version = conditional.read(path)
    if content is None:
        return _Pointer(), None
    try:
        return _Pointer.model_validate_json(content), version
    except ValidationError as error:
        raise RegistryError(f"{path} does not point to a release: {error}") from None


def _change_pointer(registry: str, name: str, change: Callable[[_Pointer], _Pointer]) -> _Pointer:
    """Two promoters at once take their turns: whoever comes second changes what the first has written."""
    path = storage.join(_name_uri(registry, name), POINTER_FILE)
    for _ in range(_TURNS):
        pointer, version = _read_versioned_pointer(registry, name)
        changed = change(pointer)
        if changed == pointer:
            return pointer
        try:
            conditional.write(path, changed.model_dump_json(indent=2).encode() + b"\n", version)
        except ConflictError:
            time.sleep(random.uniform(0, 0.2))
            continue
        return changed
    raise RegistryError(f"{path} is changed by others all the time; try again")


def _score(release: Release, metric: str) -> float | None:
    value = (read_meta(release.checkpoint_uri).get("metrics") or {}).get(metric)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _require_index_of(index_uri: str, mark: str) -> None:
    built_with = read_info(index_uri).checkpoint
    if built_with != mark:
        raise RegistryError(
            f"index {index_uri} was built with checkpoint {built_with[:8]}, not {mark[:8]}: build it with this one"
        )


def _manifest(uri: str) -> Any:
    return storage.read_json(storage.join(uri, storage.MANIFEST))


def _copy(source: str, target: str, files: tuple[str, ...] | None = None) -> None:
    """Copy some files, or all, of a published directory, their checksums verified on the way."""
    with tempfile.TemporaryDirectory() as folder:
        storage.publish(storage.fetch(source, Path(folder), only=files), target)

"""The current release of a name: `current.json` points to it and remembers the ones before.

Each change leaves a random mark in the file, so that a process whose write got no response finds out whether it took
place, even if others have changed the file since. A change is therefore made once, however many responses are lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Self
from uuid import uuid4

from s2s_ray import storage
from s2s_ray.errors import (
    CheckpointError,
    ConflictError,
    DamagedError,
    NoIndexError,
    NotFoundError,
    RegistryError,
    S2SError,
)
from s2s_ray.model.checkpoint_meta import read_meta
from s2s_ray.registry.floor import Floor, read_floor, require_floor
from s2s_ray.registry.releases import Release, list_releases, name_uri, no_such_name, read_release, warn_once
from s2s_ray.storage import conditional
from s2s_ray.storage.documents import Document

POINTER_FILE = "current.json"
_MARKS = 64  # the number of changes whose marks are kept


class Pointer(Document):
    """The content of `current.json`."""

    ERROR: ClassVar[type[S2SError]] = RegistryError
    NOUN: ClassVar[str] = "pointer to a release"

    release: str | None = None
    """Id of the current release."""
    history: tuple[str, ...] = ()
    """Ids of the releases that were current before, oldest first."""
    writes: tuple[str, ...] = ()
    """Marks of the latest changes, newest last."""

    def promote(self, release: str) -> Self:
        """Return the pointer with another current release."""
        if release == self.release:
            return self
        before = (*self.history, self.release) if self.release else self.history
        return self.model_copy(update={"release": release, "history": before})

    def marked(self, mark: str) -> Self:
        """Return the pointer with the mark of a change."""
        return self.model_copy(update={"writes": (*self.writes, mark)[-_MARKS:]})


def promote(registry: str, name: str, release: str, *, force: bool = False) -> Release:
    """Make a release the current one; `rollback` returns to the one before.

    Args:
        registry: URI of the registry.
        name: name of the model in the registry.
        release: id of the release.
        force: promote it although it does not reach the floor of the name.

    Raises:
        RegistryError: no such release, one without an index (NoIndexError), or one below the floor (BelowFloorError).
        ConflictError: other processes keep changing the pointer.
        StorageError: the registry cannot be read or written.
    """
    chosen = read_release(registry, name, release)
    if chosen.index_uri is None:
        raise NoIndexError(
            f"registry {registry}: release {release!r} of {name!r} has no index, so it cannot localise. Build "
            f"one with `s2s build-index --checkpoint {chosen.checkpoint_uri}` and publish the checkpoint with it"
        )
    if not force:
        require_floor(registry, chosen)
    _change_pointer(registry, name, lambda pointer: pointer.promote(release))
    return chosen


def promote_best(registry: str, name: str, metric: str) -> str | None:
    """Promote the release with the highest value of a metric if it is above that of the current release.

    Releases without an index, without that metric or below the floor of the name are ignored. If the current release
    lacks the metric, nothing is promoted.

    Returns:
        The id of the current release afterwards.
    """
    listed = {release.id: release for release in list_releases(registry, name) if release.index_uri is not None}
    scores = {id: score for id, release in listed.items() if (score := _score(release, metric)) is not None}
    floor = read_floor(registry, name)
    ranked = sorted(scores, key=lambda release: scores[release], reverse=True)
    best = next((release for release in ranked if _reaches(floor, listed[release])), None)

    def improve(pointer: Pointer) -> Pointer:
        active = pointer.release
        if best is None or (active is not None and scores.get(active, math.inf) >= scores[best]):
            return pointer
        return pointer.promote(best)

    return _change_pointer(registry, name, improve).release


def rollback(registry: str, name: str) -> Release:
    """Make the release current that was current before, and forget the present one.

    Raises:
        RegistryError: there is no earlier release.
        ConflictError: other processes keep changing the pointer.
        StorageError: the registry cannot be read or written.
    """
    chosen: list[Release] = []

    def revert(pointer: Pointer) -> Pointer:
        if not pointer.history:
            raise RegistryError(
                f"registry {registry}: {name!r} has no earlier release to go back to (current: {pointer.release})"
            )
        chosen.append(read_release(registry, name, pointer.history[-1]))
        return pointer.model_copy(update={"release": chosen[-1].id, "history": pointer.history[:-1]})

    _change_pointer(registry, name, revert)
    return chosen[-1]  # nothing is read after the change, so that a call that made it does not fail


def resolve(registry: str, name: str, release: str | None = None) -> Release:
    """Return the current release, or the one with the given id.

    Raises:
        RegistryError: no such name or release, or none promoted yet.
        StorageError: the registry cannot be read.
    """
    if release is None:
        release = current(registry, name)
        if release is None:
            known = ", ".join(item.id for item in list_releases(registry, name))
            raise RegistryError(
                f"registry {registry}: {name!r} has no current release; promote one of: {known}"
                if known
                else no_such_name(registry, name)
            )
    return read_release(registry, name, release)


def current(registry: str, name: str) -> str | None:
    """Return the id of the current release; None if none was promoted. Raises StorageError for a damaged pointer."""
    return _read(registry, name).release


def lineage(registry: str, name: str) -> tuple[str, ...]:
    """Return the ids of the current release and of those before it, newest first; () if none was promoted."""
    pointer = _read(registry, name)
    return () if pointer.release is None else (pointer.release, *reversed(pointer.history))


def _uri(registry: str, name: str) -> str:
    return storage.join(name_uri(registry, name), POINTER_FILE)


def _read(registry: str, name: str) -> Pointer:
    """Return the pointer of a name."""
    uri = _uri(registry, name)
    content, _ = conditional.read(uri)
    return Pointer() if content is None else Pointer.from_bytes(content, uri)


def _change_pointer(registry: str, name: str, change: Callable[[Pointer], Pointer]) -> Pointer:
    """Change the pointer of a name; concurrent changes are applied one after the other.

    Returns:
        The pointer as this change made it.

    Raises:
        ConflictError: other processes keep changing it.
        UnreachableError: the storage does not respond; the message says if the change may have been made.
    """
    uri, mark = _uri(registry, name), uuid4().hex
    before, after = Pointer(), Pointer()

    def edit(content: bytes | None) -> bytes | None:
        nonlocal before, after
        before = Pointer() if content is None else Pointer.from_bytes(content, uri)
        changed = change(before)
        after = before if changed == before else changed.marked(mark)
        return None if after == before else after.to_bytes()

    def made(content: bytes) -> bool:
        marks = Pointer.from_bytes(content, uri).writes
        if mark not in marks and before.writes and before.writes[-1] not in marks:
            raise ConflictError(
                f"{uri}: whether this change was made is unknown, because more than {_MARKS} others came after it, or "
                "an earlier version of this program changed the file: look at it before you try again"
            )
        return mark in marks

    conditional.change(uri, edit, made)
    return after


def _reaches(floor: Floor, release: Release) -> bool:
    """Return whether a release reaches a floor; one that does not, or cannot be read, is logged."""
    try:
        missed = floor.missed(release)
    except (DamagedError, NotFoundError, CheckpointError, RegistryError) as error:
        missed = str(error)
    if missed is not None:
        warn_once(f"release {release.id} of {release.name} is not promoted: {missed}")
    return missed is None


def _score(release: Release, metric: str) -> float | None:
    """Return the metric of a release; None if it has none, or if its metadata is damaged, which is logged."""
    try:
        value = (read_meta(release.checkpoint_uri).get("metrics") or {}).get(metric)
    except (DamagedError, NotFoundError, CheckpointError) as error:
        warn_once(f"release {release.id} cannot be compared with the others: {error}")
        return None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

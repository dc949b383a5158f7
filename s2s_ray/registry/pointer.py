"""The current release of a name: `current.json` points to it and remembers the ones before."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import ClassVar, Self

from s2s_ray import storage
from s2s_ray.errors import ConflictError, RegistryError, S2SError
from s2s_ray.model.checkpoint_meta import read_meta
from s2s_ray.registry.releases import Release, list_releases, name_uri, no_such_name, read_release
from s2s_ray.storage import conditional
from s2s_ray.storage.documents import Document

POINTER_FILE = "current.json"
_MAX_RETRIES = 50


class Pointer(Document):
    """The content of `current.json`."""

    ERROR: ClassVar[type[S2SError]] = RegistryError
    NOUN: ClassVar[str] = "pointer to a release"

    release: str | None = None
    """Id of the current release."""
    history: tuple[str, ...] = ()
    """Ids of the releases that were current before, oldest first."""

    def promote(self, release: str) -> Self:
        """Return the pointer with another current release."""
        if release == self.release:
            return self
        before = (*self.history, self.release) if self.release else self.history
        return self.model_copy(update={"release": release, "history": before})


def promote(registry: str, name: str, release: str) -> Release:
    """Make a release the current one; `rollback` returns to the one before.

    Raises:
        RegistryError: no such release, or one without an index.
        StorageError: the registry cannot be read or written.
    """
    chosen = read_release(registry, name, release)
    if chosen.index_uri is None:
        raise RegistryError(
            f"registry {registry}: release {release!r} of {name!r} has no index, so it cannot localise. Build "
            f"one with `s2s build-index --checkpoint {chosen.checkpoint_uri}` and publish the checkpoint with it"
        )
    _change_pointer(registry, name, lambda pointer: pointer.promote(release))
    return chosen


def promote_best(registry: str, name: str, metric: str) -> str | None:
    """Promote the release with the highest value of a metric if it is above that of the current release.

    Releases without an index or without that metric are ignored. If the current release lacks the metric, nothing is
    promoted.

    Returns:
        The id of the current release afterwards.
    """
    active = current(registry, name)
    scores = {
        release.id: score
        for release in list_releases(registry, name)
        if release.index_uri is not None and (score := _score(release, metric)) is not None
    }
    best = max(scores, key=lambda release: scores[release], default=None)
    if best is None or active == best or (active is not None and scores.get(active, math.inf) >= scores[best]):
        return active
    return promote(registry, name, best).id


def rollback(registry: str, name: str) -> Release:
    """Make the release current that was current before, and forget the present one.

    Raises:
        RegistryError: there is no earlier release.
        StorageError: the registry cannot be read or written.
    """

    def revert(pointer: Pointer) -> Pointer:
        if not pointer.history:
            raise RegistryError(
                f"registry {registry}: {name!r} has no earlier release to go back to (current: {pointer.release})"
            )
        chosen = read_release(registry, name, pointer.history[-1])
        return pointer.model_copy(update={"release": chosen.id, "history": pointer.history[:-1]})

    return read_release(registry, name, str(_change_pointer(registry, name, revert).release))


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
    return _read(registry, name)[0].release


def lineage(registry: str, name: str) -> tuple[str, ...]:
    """Return the ids of the current release and of those before it, newest first; () if none was promoted."""
    pointer = _read(registry, name)[0]
    return () if pointer.release is None else (pointer.release, *reversed(pointer.history))


def _uri(registry: str, name: str) -> str:
    return storage.join(name_uri(registry, name), POINTER_FILE)


def _read(registry: str, name: str) -> tuple[Pointer, str | None]:
    """Return the pointer of a name and its version for a conditional write."""
    uri = _uri(registry, name)
    content, version = conditional.read(uri)
    return (Pointer(), None) if content is None else (Pointer.from_bytes(content, uri), version)


def _change_pointer(registry: str, name: str, change: Callable[[Pointer], Pointer]) -> Pointer:
    """Change the pointer of a name; retries on conflict, so concurrent changes are applied one after the other."""
    uri = _uri(registry, name)
    for _ in range(_MAX_RETRIES):
        pointer, version = _read(registry, name)
        changed = change(pointer)
        if changed == pointer:
            return pointer
        try:
            conditional.write(uri, changed.to_bytes(), version)
        except ConflictError:
            time.sleep(random.uniform(0, 0.2))
            continue
        return changed
    raise RegistryError(f"{uri} was changed by other processes {_MAX_RETRIES} times in a row; try again")


def _score(release: Release, metric: str) -> float | None:
    value = (read_meta(release.checkpoint_uri).get("metrics") or {}).get(metric)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

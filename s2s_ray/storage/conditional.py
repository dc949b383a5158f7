"""Files that several processes may change: written only if nobody else has written them since they were read."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable

from s2s_ray.errors import ConflictError, DamagedError, NotFoundError, StorageError, UnreachableError
from s2s_ray.storage.retries import FIRST_PAUSE_S, LONGEST_PAUSE_S, PATIENT_ATTEMPTS
from s2s_ray.storage.store import Create, Replace, store_of
from s2s_ray.uri import Uri

log = logging.getLogger(__name__)

_CONFLICTS = 50  # in a row, after which a change is given up
_CONFLICT_PAUSE_S = 0.2


def read(uri: str) -> tuple[bytes | None, str | None]:
    """Return the content and the version of a file; `(None, None)` if it does not exist. Raises StorageError."""
    try:
        stored = store_of(uri).get(Uri(uri))
    except NotFoundError:
        return None, None
    return stored.content, stored.version


def write(uri: str, content: bytes, version: str | None) -> None:
    """Write the file only if its version has not changed since it was read.

    Exact on local file systems (a lock beside the file) and on S3 (`If-Match`). Elsewhere the version is compared
    before the write, which leaves a moment between the two, and a warning says so. It is attempted once.

    Args:
        uri: the file.
        content: what to write.
        version: the version that `read` returned; None: write only if the file still does not exist.

    Raises:
        ConflictError: another process has changed or deleted the file.
        UnreachableError: the storage did not respond, so it is unknown whether the file was written.
        StorageError: it cannot be written.
    """
    store_of(uri).put(Uri(uri), content, Create() if version is None else Replace(version))


def change(
    uri: str, edit: Callable[[bytes | None], bytes | None], made: Callable[[bytes], bool] = lambda content: False
) -> bytes | None:
    """Read a file, edit it, and write it if nobody has changed it since; otherwise begin again.

    If the response to the write is lost, the file is read back as soon as the storage responds. `made` says whether it
    includes this very change, because an edit that is made twice may go too far. Equal content does not prove that: the
    change needs a mark of its own, which stays in the file when others change it.

    Args:
        uri: the file.
        edit: returns the new content for the present one, None for a file that does not exist; or None if there is
            nothing to write. It may be called more than once, and what it raises ends the change.
        made: returns whether a content includes this change. Without it an edit must be safe to make again.

    Returns:
        The content that was written, or that includes the change; if there was nothing to write, the content as it is.

    Raises:
        ConflictError: others have changed the file each time.
        UnreachableError: the storage does not respond.
        StorageError: the file cannot be read or written; the message says if the change may have been made.
    """
    conflicts = lost = 0
    while True:
        try:
            content, version = read(uri)
        except StorageError as error:
            raise _unknown(uri, error) if lost else error from None
        if content is not None and (conflicts or lost) and made(content):
            return content
        if lost >= PATIENT_ATTEMPTS:
            raise _unknown(uri, UnreachableError("the responses to all attempts were lost"))
        if conflicts >= _CONFLICTS:
            raise ConflictError(f"{uri} was changed by other processes {conflicts} times in a row: try again")
        changed = edit(content)
        if changed is None:
            return content
        try:
            write(uri, changed, version)
            return changed
        except ConflictError:
            conflicts += 1
            pause = random.uniform(0, _CONFLICT_PAUSE_S)
        except (UnreachableError, DamagedError) as error:
            lost += 1
            pause = min(FIRST_PAUSE_S * 2 ** (lost - 1), LONGEST_PAUSE_S) * random.uniform(0.75, 1.25)
            log.warning("perhaps not written, reading it back in %.1f s: %s", pause, error)
        except StorageError as error:
            raise _unknown(uri, error) if lost else error from None
        time.sleep(pause)


def write_once(uri: str, content: bytes) -> bytes:
    """Write a file that is never changed again, unless it exists.

    Returns:
        The content of the file: `content`, or what another process has written before.

    Raises:
        StorageError: it can be neither written nor read.
    """
    stored = change(uri, lambda present: content if present is None else None)
    return content if stored is None else stored


def _unknown(uri: str, error: StorageError) -> StorageError:
    return type(error)(f"{error}. Whether {uri} was changed is unknown: look at it before you try again")

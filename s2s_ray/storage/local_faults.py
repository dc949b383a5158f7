"""The errors of the operating system for a local file, translated into those of this library."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from s2s_ray.errors import DiskFullError, NotFoundError, RefusedError, StorageError, UnreachableError
from s2s_ray.uri import Uri

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = {
    errno.EACCES: "check its permissions and those of its directories",
    errno.EPERM: "check its permissions and those of its directories",
    errno.EROFS: "choose a place on a disk that is not mounted read-only",
}
_AWAY = (errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN, errno.EREMOTEIO)
_ADVICE = {
    errno.ENOSPC: "free some space or choose another disk",
    errno.EDQUOT: "free some space or have the quota raised",
    errno.EFBIG: "the file system or the limit of this process does not allow files of this size",
    errno.EISDIR: "expected a file",
    errno.ENOTDIR: "a file stands where one of its directories should be",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "its symbolic links lead back to themselves",
    errno.EIO: "the disk or its connection fails; see the system's log",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "this machine has too many open files",
    errno.ENOLCK: "this file system has no locks; mount it with locking, or use another one",
    errno.ENOSYS: "this file system has no locks; mount it with them (Lustre: -o flock), or use another one",
    errno.EOPNOTSUPP: "this file system cannot do it (locks, perhaps); use another one",
}


@contextmanager
def local_faults(uri: str) -> Iterator[None]:
    """Turn an operating system's error about a local file into a `StorageError` that names the URI."""
    try:
        yield
    except FileNotFoundError:
        missing = "" if os.path.lexists(Uri(uri).path.parent) else "; neither does its directory"
        raise NotFoundError(f"{uri} does not exist{missing}") from None
    except OSError as error:
        raise _typed(uri, error) from error


def is_full(error: OSError) -> bool:
    """Return whether an error says that there was no room for a local file."""
    return error.errno in _FULL


def _typed(uri: str, error: OSError) -> StorageError:
    number = error.errno or 0
    text = error.strerror or str(error)
    if number in _FULL:
        return DiskFullError(f"{uri}: {text}; {_ADVICE[number]}")
    if number in _REFUSED:
        return RefusedError(f"{uri}: {text}; {_REFUSED[number]}")
    if number in _AWAY:
        return UnreachableError(f"{uri}: {text}; the network file system does not respond, try again")
    return StorageError(f"{uri}: {text}" + (f"; {_ADVICE[number]}" if number in _ADVICE else ""))

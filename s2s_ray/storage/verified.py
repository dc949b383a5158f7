"""The memory of the shards whose checksums were verified, shared by a process and the processes that it forks."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence

_MARK = struct.Struct("=Q")  # 0: nothing was verified


class Verified:
    """The files that were verified, by the names of their shards.

    The workers of a data loader are forked anew for every epoch and end with it. So what they have verified is kept in
    memory that they share with the process that forks them. A pickled object remembers nothing, like a new one.

    Args:
        names: of all shards.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._offsets = {name: _MARK.size * row for row, name in enumerate(self._names)}
        self._marks = mmap.mmap(-1, max(_MARK.size * len(self._names), 1))  # anonymous and shared over forks

    def __reduce__(self) -> tuple[type[Verified], tuple[Sequence[str]]]:
        return type(self), (self._names,)

    def holds(self, name: str, mark: int) -> bool:
        """Return whether this very file was verified."""
        found: int = _MARK.unpack_from(self._marks, self._offsets[name])[0]
        return found == mark

    def add(self, name: str, mark: int) -> None:
        """Remember that a file was verified."""
        _MARK.pack_into(self._marks, self._offsets[name], mark)


def mark_of(info: os.stat_result) -> int:
    """Return a mark of a file, which another file of the same name does not have, nor the file once it is changed."""
    return (hash((info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)) & (2**64 - 1)) or 1

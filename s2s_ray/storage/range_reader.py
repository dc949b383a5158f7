"""Reading a remote file as a seekable one."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any


class RangeReader(io.RawIOBase):
    """A seekable file that is read with one request per range; all of them are of one version.

    Args:
        fetch: returns the bytes from a start to a stop, which is at most `size`.
        size: the length of the file.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        super().__init__()
        self._fetch, self._size, self._position = fetch, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative seek position {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        stop = min(self._position + len(buffer), self._size)
        if stop <= self._position:
            return 0
        content = self._fetch(self._position, stop)
        buffer[: len(content)] = content
        self._position = stop
        return len(content)

    def readall(self) -> bytes:
        if self._position >= self._size:
            return b""
        content = self._fetch(self._position, self._size)
        self._position = self._size
        return content

"""The images that requests hold in memory, kept once and counted as they are held."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class Image:
    """One uploaded file; it has a name if it came in a form. Its content is empty once the request has ended."""

    name: str | None
    content: bytes


class Buffer:
    """Bytes that arrive in chunks.

    Args:
        hold: called with the number of bytes that the buffer has grown by; negative if it has shrunk.
    """

    def __init__(self, hold: Callable[[int], None]) -> None:
        self._hold = hold
        self._file = io.BytesIO()
        self._counted = 0

    def write(self, chunk: bytes | memoryview) -> None:
        """Add a chunk. Raises what `hold` raises."""
        self._file.write(chunk)
        self._count(self._file.__sizeof__())  # it grows by more than it needs

    def content(self) -> bytes:
        """Return all bytes, without a copy of them."""
        content = self._file.getvalue()  # the file's own memory, cut to the length
        self._file = io.BytesIO()
        self._count(len(content))
        return content

    def _count(self, size: int) -> None:
        grown, self._counted = size - self._counted, size
        self._hold(grown)

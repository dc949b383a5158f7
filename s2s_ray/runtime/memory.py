"""The C library's memory, for processes that compute the same thing again and again."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # malloc.h


def keep_memory() -> None:
    """Let this process keep what its networks' images took, for the next ones.

    By default glibc gives each large tensor back to the kernel, which then clears every page of the next one. The
    process stays as large as it once was. Elsewhere than on Linux with glibc nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_ARENA_MAX, 1)

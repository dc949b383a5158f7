"""Memory of the C library, for processes that repeat the same computation."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # malloc.h


def keep_memory() -> None:
    """Keep freed memory in this process for the next tensors.

    By default glibc returns each large tensor to the kernel, which then clears every page of the next one. The price
    is that the process never shrinks. Do nothing on systems other than Linux with glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_ARENA_MAX, 1)

"""Failures of a replica's accelerator, recognised by what PyTorch raises; this module does not import PyTorch.

A CUDA context that has failed fails every later call of its process, so only a new process can continue. Memory that
has run out is different: the next, smaller or later batch may fit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_LOST = re.compile(
    r"(CUDA|CUDA driver|HIP) error|device-side assert|the accelerator failed"
    r"|(CUDNN|CUBLAS|CUSOLVER)_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR|MAPPING_ERROR|NOT_INITIALIZED)"
)
_FULL = re.compile(r"out of memory|STATUS_ALLOC_FAILED|can't allocate memory")


def is_lost(error: BaseException) -> bool:
    """Return true if an error, or one that caused it, says that the accelerator of its process has failed."""
    return any(
        not _is_full(one) and (_is_a(one, "AcceleratorError") or _LOST.search(str(one)) is not None)
        for one in _runtime_errors(error)
    )


def is_full(error: BaseException) -> bool:
    """Return true if an error, or one that caused it, says that memory has run out, of the accelerator or not."""
    return any(isinstance(one, MemoryError) or _is_full(one) for one in _runtime_errors(error))


def _is_full(error: BaseException) -> bool:
    return _is_a(error, "OutOfMemoryError") or _FULL.search(str(error)) is not None


def _is_a(error: BaseException, kind: str) -> bool:
    return any(one.__name__ == kind and one.__module__.startswith("torch") for one in type(error).__mro__)


def _runtime_errors(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors that PyTorch may have raised: an error and its causes, without Ray's wrappers."""
    one: BaseException | None = error
    for _ in range(10):  # a chain of causes may be a circle
        if one is None:
            return
        inner = getattr(one, "cause", None)  # Ray's wrapper is a subclass of the cause; its text is a traceback
        if isinstance(inner, BaseException):
            one = inner
            continue
        if isinstance(one, RuntimeError | MemoryError):
            yield one
        one = one.__cause__

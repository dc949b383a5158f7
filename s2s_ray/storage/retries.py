"""Retries of operations on a store that does not respond: one set of time-outs and retries for every remote storage."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from s2s_ray.errors import ConflictError, DamagedError, NotFoundError, RefusedError, UnreachableError

log = logging.getLogger(__name__)

T = TypeVar("T")
ATTEMPTS = 5
"""Retry limit before the store has ever responded: the URL may be wrong, so fail quickly."""
PATIENT_ATTEMPTS = 16
"""Retry limit once the store has responded: assume an outage and wait several minutes rather than lose a long run."""
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 20.0
CONNECT_TIMEOUT_S = 5
STALL_TIMEOUT_S = 20
"""A transfer that makes no progress for this long is aborted and retried."""
_responded: set[str] = set()  # the servers that have responded to this process
_attempt_once: ContextVar[bool] = ContextVar("attempt_once", default=False)


@contextmanager
def without_patience() -> Iterator[None]:
    """Attempt every operation of this thread only once inside the block."""
    before = _attempt_once.set(True)
    try:
        yield
    finally:
        _attempt_once.reset(before)


def patiently(uri: str, server: str, operation: Callable[[], T]) -> T:
    """Call an operation on a store, and repeat it with growing pauses while it fails in passing.

    Args:
        uri: what it is about, for the log.
        server: the store's address.
        operation: raises `UnreachableError`, or `DamagedError` for content that was changed on its way, if it may
            succeed when it is repeated. It must be safe to repeat.

    Raises:
        StorageError: as the operation raises it; the last of several that may pass.
    """
    attempt = 0
    while True:
        attempt += 1
        try:
            result = operation()
            _responded.add(server)
            return result
        except (NotFoundError, ConflictError, RefusedError):
            _responded.add(server)
            raise
        except (UnreachableError, DamagedError) as error:
            patient = server in _responded and isinstance(error, UnreachableError)
            attempts = 1 if _attempt_once.get() else PATIENT_ATTEMPTS if patient else ATTEMPTS
            if attempt >= attempts:
                raise
            pause = min(FIRST_PAUSE_S * 2 ** (attempt - 1), LONGEST_PAUSE_S) * random.uniform(0.75, 1.25)
            reason = str(error).removeprefix(f"{uri}: ").removeprefix(f"{uri} ")
            log.warning("%s: attempt %d of %d failed, retrying in %.1f s (%s)", uri, attempt, attempts, pause, reason)
            time.sleep(pause)

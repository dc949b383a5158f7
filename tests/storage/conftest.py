"""Fixtures of the tests of storage."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator

import pytest


@pytest.fixture
def inherited(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The copies of the locked descriptors that a process has which is forked after each locking."""
    copies: list[int] = []
    flock = fcntl.flock

    def lock(descriptor: int, how: int) -> None:
        flock(descriptor, how)
        if how & fcntl.LOCK_EX:
            copies.append(os.dup(descriptor))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", lock)
        yield copies
    for descriptor in copies:
        os.close(descriptor)

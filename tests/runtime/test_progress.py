"""Progress without a terminal."""

from __future__ import annotations

import logging

import pytest

from s2s_ray.runtime import progress as module
from s2s_ray.runtime.progress import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which changes only when the test changes it."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: False, raising=False)
    return now


def test_a_line_every_ten_seconds_and_at_the_end(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with progress(100, "prepare", "pairs") as advance:
        for _ in range(30):
            clock[0] += 1
            advance(2)
    assert caplog.messages == [
        "prepare: 20 of 100 pairs, 2.0/s, 40 s left",
        "prepare: 40 of 100 pairs, 2.0/s, 30 s left",
        "prepare: 60 of 100 pairs, 2.0/s, 20 s left",
        "prepare: 60 of 100 pairs, 2.0/s, 20 s left",
    ]


def test_no_final_line_after_an_error(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(KeyboardInterrupt), progress(2, "prepare", "pairs"):
        raise KeyboardInterrupt
    assert caplog.messages == []

"""What stops long work on a cluster; without one."""

from __future__ import annotations

import os
import signal
import time

import pytest

from s2s_ray.runtime.cluster import in_thread


def test_a_stopped_job_is_an_interrupted_one() -> None:
    """`ray job stop` sends SIGTERM; afterwards it means what it meant before."""
    before = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        in_thread(work)
    assert signal.getsignal(signal.SIGTERM) is before
    assert in_thread(lambda: 7) == 7

"""Gauges take every figure there is, and what stops long work; without a cluster."""

from __future__ import annotations

import os
import signal
import time

import pytest

from s2s_ray.cluster import in_thread
from s2s_ray.monitoring.gauges import RayGauges
from s2s_ray.monitoring.metrics import TRAINING


@pytest.mark.parametrize("name", TRAINING)
def test_ray_takes_every_gauge_with_its_labels(name: str) -> None:
    own = "sweep" if "sweep" in TRAINING[name].labels else "run"
    others = {label: "x" for label in TRAINING[name].labels if label != own}
    gauges = RayGauges(**{own: "first"})
    for value in (1, 0.5):
        gauges(name, value, **others)


def test_a_gauge_that_is_not_listed_is_refused() -> None:
    with pytest.raises(KeyError):
        RayGauges(run="first")("s2s_train_mood", 1.0)


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

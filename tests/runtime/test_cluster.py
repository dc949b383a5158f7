"""Interruption of work on a cluster and the errors of its tasks, without a cluster."""

from __future__ import annotations

import os
import signal
import time

import pytest
from ray.exceptions import RayTaskError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from s2s_ray.errors import DatasetError, RequestError, S2SError, ServiceError
from s2s_ray.runtime.cluster import in_thread, original_error


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


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("write", "Traceback (most recent call last): ...", cause, "ray::write", 1, "127.0.0.1")


@pytest.mark.parametrize(
    "raised",
    [DatasetError("no such split"), RequestError(413, "too large", {"a": "b"}), ServiceError("gone", 503)],
)
def test_the_original_error_is_found_in_what_ray_raises(raised: S2SError) -> None:
    wrapped = task_error(raised)
    both = wrapped.as_instanceof_cause()
    assert isinstance(both, type(raised))
    assert str(both) != str(raised)
    for error in (
        raised,
        wrapped,
        both,
        task_error(wrapped),
        WorkerGroupError("failed", {0: OSError("connection reset"), 1: both}),
        ControllerError(both),
    ):
        found = original_error(error)
        assert found is raised, error
    chained = RuntimeError("the run failed")
    chained.__cause__ = both
    assert original_error(chained) is raised


def test_an_error_without_an_original_stays_as_it_is() -> None:
    """A bug in a task keeps Ray's traceback of it."""
    for error in (task_error(KeyError("x")), WorkerGroupError("failed", {0: OSError("reset")}), KeyError("y")):
        assert original_error(error) is error

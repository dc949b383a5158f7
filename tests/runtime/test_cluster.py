"""Interruption of work on a cluster and the errors of its tasks, without a cluster."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import ray
from ray.exceptions import RayTaskError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from s2s_ray.errors import ClusterError, DatasetError, RequestError, RunError, S2SError, ServiceError
from s2s_ray.runtime.cluster import auth_token, in_thread, log_plainly, original_error, ray_cluster


@pytest.mark.parametrize(
    ("given", "level", "warned"),
    [
        (None, 20, False), ("", 20, False), ("debug", 10, False), ("Warning", 30, False), (" ERROR ", 40, False),
        ("15", 15, False), ("verbose", 20, True), ("1e3", 20, True), ("²", 20, True), ("-1", 20, True),
    ],
)  # fmt: skip
def test_any_log_level_can_be_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: str | None, level: int, warned: bool
) -> None:
    logger = logging.Logger("s2s_ray")
    if given is None:
        monkeypatch.delenv("S2S_LOG_LEVEL", raising=False)
    else:
        monkeypatch.setenv("S2S_LOG_LEVEL", given)
    with monkeypatch.context() as patch:
        patch.setattr(logging, "getLogger", lambda _name: logger)
        log_plainly()
        log_plainly()
    assert logger.level == level
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == warned
    assert all(line.startswith(f"S2S_LOG_LEVEL={given!r}: expected one of CRITICAL, ") for line in lines)


def test_a_stopped_job_is_an_interrupted_one() -> None:
    """`ray job stop` sends SIGTERM; its handler is restored afterwards."""
    before = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        in_thread(work)
    assert signal.getsignal(signal.SIGTERM) is before
    assert in_thread(lambda: 7) == 7


def test_work_that_is_watched_ends_with_the_error_of_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s2s_ray.runtime.cluster._WATCH_S", 0.01)
    over, looks = threading.Event(), list[int]()

    def watch() -> None:
        looks.append(1)
        if len(looks) == 3:
            raise RunError("another process took it over")

    with pytest.raises(RunError, match="took it over"):
        in_thread(over.wait, watch)
    over.set()
    assert in_thread(lambda: 7, watch) == 7


def test_work_ends_with_the_error_as_it_was_raised_in_a_task() -> None:
    def fail() -> None:
        raise task_error(DatasetError("no such split"))

    with pytest.raises(DatasetError, match=r"^no such split$") as caught:
        in_thread(fail)
    assert isinstance(caught.value.__cause__, RayTaskError)

    def time_out() -> None:
        raise TimeoutError("a library's own")

    with pytest.raises(TimeoutError, match="a library's own"):
        in_thread(time_out, lambda: None)


def test_work_that_goes_on_after_the_cluster_is_closed_starts_no_other() -> None:
    """As a sweep's thread does after Ctrl-C: Ray would connect by itself. Its switch is read when it is imported."""
    program = """
import os
from s2s_ray.errors import ClusterError
from s2s_ray.runtime.cluster import ray_cluster
os.environ["RAY_ADDRESS"] = "no address"
try:
    with ray_cluster():
        raise AssertionError
except ClusterError:
    pass
import ray
ray.init = lambda *_, **__: print("a second cluster")
try:
    ray.put(1)
except ray.exceptions.RaySystemError as error:
    print(error)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert "Ray has not been started yet" in done.stdout
    assert "a second cluster" not in done.stdout


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


@pytest.mark.parametrize("fault", [ConnectionError("timed out"), ValueError("Invalid address format: x")])
def test_a_cluster_that_cannot_be_reached_is_named(fault: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise fault

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    with (
        pytest.raises(
            ClusterError, match=rf"cannot connect to the Ray cluster at RAY_ADDRESS='10.0.0.1:6379': {fault}"
        ),
        ray_cluster(),
    ):
        raise AssertionError("connected")


def test_the_dashboards_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("home\n")
    assert auth_token() is None, "the token was sent outside token mode"
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert auth_token() == "home"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "missing"))
    assert auth_token() is None
    monkeypatch.setenv("RAY_AUTH_TOKEN", "own")
    assert auth_token() == "own"


def test_a_cluster_that_cannot_start_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with (
        pytest.raises(ClusterError, match=r"^cannot start Ray on this machine: The current node timed out"),
        ray_cluster(),
    ):
        pass

"""The Ray cluster a command runs on: the one it was submitted to, or a private one on this machine."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from s2s_ray.errors import S2SError

T = TypeVar("T")


@contextmanager
def ray_cluster(cpus: int | None = None) -> Iterator[None]:
    """Ray, connected, for the length of the block.

    Inside a job, or where `RAY_ADDRESS` is set, it is that cluster; where Ray is connected already, nothing is
    done. Otherwise a cluster is started on this machine, closed to others by a token of its own (Ray would write
    one to the home directory), and stopped at the end.

    Args:
        cpus: CPUs of a cluster started here; default: all.
    """
    private = not os.environ.get("RAY_ADDRESS")
    if private:
        _close_to_others()
    import ray  # after the environment is set: Ray reads RAY_AUTH_MODE once, when it is imported

    if ray.is_initialized():
        yield
        return
    runtime_env = {"worker_process_setup_hook": log_plainly}
    if private:
        # Ray Train's watcher asks every node whether it is to go: this one is not told
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # "local": else one that somebody else runs on this machine would be taken
        ray.init("local", num_cpus=cpus, include_dashboard=False, configure_logging=False, runtime_env=runtime_env)
    else:
        ray.init(configure_logging=False, runtime_env=runtime_env)
    try:
        yield
    finally:
        ray.shutdown()


def in_thread(work: Callable[[], T]) -> T:
    """The result of `work`, done in a thread: in the main one Ray's libraries take Ctrl-C over and end the process.

    Raises: what `work` raises; KeyboardInterrupt at Ctrl-C or SIGTERM (`ray job stop`), while the work goes on until
        Ray is shut down.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # whatever it is, it is raised by `result` below
            outcome.set_exception(error)

    with _termination_as_interrupt():
        threading.Thread(target=run, name="ray-work", daemon=True).start()
        return outcome.result()


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """SIGTERM is Ctrl-C inside the block; in other threads than the main one nothing can be set, and nothing is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def original_error(error: BaseException) -> BaseException:
    """Return the `S2SError` that a task or a worker raised, as it was raised there, or `error` if there is none.

    Ray wraps it: in a `RayTaskError`, which is a subclass of the original's class but whose text is the task's
    traceback, in Ray Train's `WorkerGroupError` with one error for each worker, or in several of these.
    """
    if isinstance(error, S2SError) and not hasattr(error, "cause"):
        return error
    failures = getattr(error, "worker_failures", {})
    inner = [getattr(error, "cause", None), getattr(error, "controller_failure", None), *failures.values()]
    for candidate in (*inner, error.__cause__):
        if isinstance(candidate, BaseException) and isinstance(found := original_error(candidate), S2SError):
            return found
    return error


def log_plainly() -> None:
    """Send this library's log lines to standard error as they are; Ray's worker processes run it when they start."""
    logger = logging.getLogger("s2s_ray")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(os.environ.get("S2S_LOG_LEVEL", "INFO"))
        logger.propagate = False


def _close_to_others() -> None:
    """Token authentication with a token of this process, unless the environment says otherwise."""
    if "ray" not in sys.modules:  # else `ray.init` turns it on by itself where the mode is not set
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ.get("RAY_AUTH_MODE", "token") == "token" and not _has_token():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _has_token() -> bool:
    default = Path.home() / ".ray" / "auth_token"
    return bool(os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")) or default.exists()

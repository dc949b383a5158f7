"""The Ray cluster that a command runs on: the one it was submitted to, or a private one on this machine."""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from s2s_ray.errors import ClusterError, S2SError
from s2s_ray.runtime.ray_settings import forbid_auto_start, set_private_defaults
from s2s_ray.secrets import masked

T = TypeVar("T")
_WATCH_S = 1.0


@contextmanager
def ray_cluster(cpus: int | None = None) -> Iterator[None]:
    """Connect to Ray for the duration of the block.

    Inside a job, or if `RAY_ADDRESS` is set, connect to that cluster; if Ray is connected already, do nothing.
    Otherwise start a cluster on this machine and stop it at the end. It is closed to other users by a new token, which
    is kept in this process (Ray would write one to the home directory).

    Args:
        cpus: CPUs of a cluster that is started here; all by default.

    Raises:
        ClusterError: the cluster at `RAY_ADDRESS` cannot be reached or refuses the token, or Ray cannot start here.
    """
    private = not os.environ.get("RAY_ADDRESS")
    if private:
        _require_token()
    forbid_auto_start()
    import ray  # after the environment is set: Ray reads these variables once, when it is imported

    if ray.is_initialized():
        yield
        return
    runtime_env = {"worker_process_setup_hook": log_plainly}
    if private:
        set_private_defaults()
        # "local": otherwise Ray connects to a cluster that somebody else runs on this machine.
        try:
            ray.init("local", num_cpus=cpus, include_dashboard=False, configure_logging=False, runtime_env=runtime_env)
        except Exception as error:  # Ray raises plain exceptions, as on a machine too busy to start within 30 s
            raise ClusterError(f"cannot start Ray on this machine: {error}") from error
    else:
        address = os.environ["RAY_ADDRESS"]
        try:
            ray.init(configure_logging=False, runtime_env=runtime_env)
        except (ValueError, RuntimeError, ConnectionError, ray.exceptions.AuthenticationError) as error:
            raise ClusterError(f"cannot connect to the Ray cluster at RAY_ADDRESS={address!r}: {error}") from None
    try:
        yield
    finally:
        ray.shutdown()


def in_thread(work: Callable[[], T], watch: Callable[[], None] | None = None) -> T:
    """Return the result of `work`, which runs in a thread.

    In the main thread Ray's libraries handle Ctrl-C themselves and end the process.

    Args:
        work: something that a library of Ray does.
        watch: called every second while the work lasts; what it raises is raised here.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM (`ray job stop`); the work continues until Ray is shut down, and then
            fails at its next call of Ray (`ray_settings.forbid_auto_start`).
        S2SError: what a task or a worker raised, as it was raised there.
        BaseException: whatever else `work` or `watch` raises; in the second case the work continues.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # raised by `_result` below
            outcome.set_exception(error)

    with _termination_as_interrupt():
        threading.Thread(target=run, name="ray-work", daemon=True).start()
        while watch is not None and not wait([outcome], timeout=_WATCH_S).done:
            watch()
        try:
            return outcome.result()
        except Exception as error:
            original = original_error(error)
            if original is not error:
                raise original from error
            raise


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C inside the block; do nothing in other threads, which cannot set signal handlers."""
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


class MaskingFormatter(logging.Formatter):
    """The message of a record, and the traceback with it, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        return masked(super().format(record))


def log_plainly() -> None:
    """Write this library's log lines to standard error without a prefix; Ray's workers call this when they start.

    `S2S_LOG_LEVEL` is the lowest level that is written, a name in any case or a number; INFO by default.
    """
    logger = logging.getLogger("s2s_ray")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(MaskingFormatter("%(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
        given = os.environ.get("S2S_LOG_LEVEL", "").strip()
        levels = logging.getLevelNamesMapping()
        level = int(given) if re.fullmatch(r"[0-9]{1,3}", given) else levels.get(given.upper() or "INFO")
        logger.setLevel(logging.INFO if level is None else level)
        if level is None:
            logger.warning("S2S_LOG_LEVEL=%r: expected one of %s; INFO is used", given, ", ".join(levels))


def auth_token() -> str | None:
    """Return the token for Ray's dashboard, from the same sources as Ray's commands, or None outside token mode.

    Ray's sources are `RAY_AUTH_TOKEN`, `RAY_AUTH_TOKEN_PATH` and `~/.ray/auth_token`, if `RAY_AUTH_MODE` is `token`.
    """
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return None
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or _default_token_path())
    return path.read_text().strip() if path.is_file() else None


def _require_token() -> None:
    """Turn on token authentication with a token of this process, unless the environment configures it."""
    if "ray" not in sys.modules:  # otherwise `ray.init` turns it on by itself if the mode is not set
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ.get("RAY_AUTH_MODE", "token") == "token" and not _has_token():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _has_token() -> bool:
    configured = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(configured) or _default_token_path().exists()


def _default_token_path() -> Path:
    return Path.home() / ".ray" / "auth_token"

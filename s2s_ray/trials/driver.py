"""Who drives trials: one process at a time, told in `driver.json` at their place while it lasts."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from s2s_ray import storage
from s2s_ray.errors import ConflictError, S2SError, StorageError
from s2s_ray.storage import conditional

logger = logging.getLogger(__name__)

DRIVER_FILE = "driver.json"
BEAT_S = 15.0
SILENT_S = 60.0
"""A driver on another machine that has told nothing for so long is taken for gone."""


@contextmanager
def driving(root: str, what: str, fault: type[S2SError]) -> Iterator[None]:
    """Be the only driver of what is at `root` for the length of the block.

    Args:
        what: in words, for the message.

    Raises:
        fault: another process drives it, or began to at the same moment.
        StorageError: the place cannot be read or written.
    """
    uri = storage.join(root, DRIVER_FILE)
    content, version = conditional.read(uri)
    if content is not None:
        told = json.loads(content)
        silent = time.time() - told["told"]
        if _lives(told, silent):
            raise fault(
                f"{what} at {root} is driven by process {told['pid']} on {told['host']}, which told so {silent:.0f} s "
                f"ago: one at a time. Where it is gone, its own machine knows at once, others after {SILENT_S:.0f} s"
            )
    try:
        conditional.write(uri, _told(), version)
    except ConflictError:
        raise fault(f"{what} at {root}: another driver began at the same moment; one at a time") from None
    over = threading.Event()
    beat = threading.Thread(target=_keep_telling, args=(uri, over), name="driver", daemon=True)
    beat.start()
    try:
        yield
    finally:
        over.set()
        beat.join()
        try:
            storage.delete(uri)
        except StorageError as error:
            logger.warning("it could not be told that nobody drives what is there any more: %s", error)


def _keep_telling(uri: str, over: threading.Event) -> None:
    while not over.wait(BEAT_S):
        try:
            storage.write_bytes(uri, _told())
        except StorageError as error:  # the storage may be away for a while; the trials go on
            logger.warning("it could not be told that this process drives what is there: %s", error)


def _told() -> bytes:
    who = {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "born": _born(os.getpid())}
    return json.dumps({**who, "told": time.time()}).encode()


def _lives(told: dict[str, Any], silent: float) -> bool:
    if told["machine"] == _machine() and told["host"] == socket.gethostname():
        return told["born"] is not None and _born(told["pid"]) == told["born"]
    return silent < SILENT_S


def _machine() -> str:
    """Changes with every start of the machine, where there is a /proc."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def _born(pid: int) -> int | None:
    """When a living process began, in ticks of its machine's clock (0 without a /proc); None where there is none."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # it lives, and is somebody else's
    if not Path("/proc/self/stat").exists():
        return 0
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])

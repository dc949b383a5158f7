"""The process that runs the trials of a folder: one at a time, with a heartbeat in `driver.json` while it runs."""

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
from typing import ClassVar, Self

from pydantic import ConfigDict, Field

from s2s_ray import storage
from s2s_ray.errors import ConflictError, DamagedError, S2SError, StorageError
from s2s_ray.storage import conditional
from s2s_ray.storage.documents import Document

logger = logging.getLogger(__name__)

DRIVER_FILE = "driver.json"
HEARTBEAT_EVERY_S = 15.0
SILENT_S = 60.0
"""A driver on another machine whose last heartbeat is older counts as dead."""


class Driver(Document):
    """The process that runs the trials; the content of `driver.json`."""

    NOUN: ClassVar[str] = "record of a driver"

    model_config = ConfigDict(frozen=True, extra="ignore", validate_by_name=True, serialize_by_alias=True)

    host: str
    machine: str
    """Id of the machine's current boot; empty without a `/proc`."""
    pid: int
    process_start: int | None = Field(alias="born")
    """Start of the process, see `_process_start`: a later process with the same PID has another one."""
    heartbeat: float = Field(alias="told")
    """When the process last wrote the file, in seconds since 1970."""

    @classmethod
    def this_process(cls) -> Self:
        """Return this process, with a heartbeat now."""
        return cls(
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            process_start=_process_start(os.getpid()),
            heartbeat=time.time(),
        )

    @property
    def silent_s(self) -> float:
        """Seconds since the last heartbeat."""
        return time.time() - self.heartbeat

    def is_alive(self) -> bool:
        """Return true if the process still runs; on another machine, if its heartbeat is recent."""
        if self.machine == _machine() and self.host == socket.gethostname():
            return self.process_start is not None and _process_start(self.pid) == self.process_start
        return self.silent_s < SILENT_S

    def content(self) -> bytes:
        """Return the content of the file."""
        return json.dumps(self.tree()).encode()


@contextmanager
def driving(root: str, what: str, fault: type[S2SError]) -> Iterator[None]:
    """Make this process the only driver of the trials at `root` for the duration of the block.

    Args:
        root: URI of the sweep or study.
        what: its name, for messages.
        fault: the error to raise if another process drives it.

    Raises:
        S2SError: `fault`, if another process drives it or started to at the same moment.
        DamagedError: `driver.json` cannot be parsed.
        StorageError: `driver.json` cannot be read or written.
    """
    uri = storage.join(root, DRIVER_FILE)
    content, version = conditional.read(uri)
    if content is not None:
        other = _parse(content, uri)
        if other.is_alive():
            raise fault(
                f"{what} at {root} is already run by PID {other.pid} on {other.host} (heartbeat {other.silent_s:.0f} s "
                f"ago). If that process is dead, retry on {other.host} now, or elsewhere after {SILENT_S:.0f} s"
            )
    try:
        conditional.write(uri, Driver.this_process().content(), version)
    except ConflictError:
        raise fault(f"{what} at {root}: another process started it at the same moment") from None
    over = threading.Event()
    heartbeat = threading.Thread(target=_refresh, args=(uri, over), name="driver", daemon=True)
    heartbeat.start()
    try:
        yield
    finally:
        over.set()
        heartbeat.join()
        try:
            storage.delete(uri)
        except StorageError as error:
            logger.warning("could not remove %s: %s", DRIVER_FILE, error)


def _refresh(uri: str, over: threading.Event) -> None:
    while not over.wait(HEARTBEAT_EVERY_S):
        try:
            storage.write_bytes(uri, Driver.this_process().content())
        except StorageError as error:  # the storage may be unavailable for a while; the trials continue
            logger.warning("could not refresh %s: %s", DRIVER_FILE, error)


def _parse(content: bytes, uri: str) -> Driver:
    try:
        return Driver.parse(json.loads(content), uri)
    except (ValueError, RecursionError, DamagedError) as error:
        raise DamagedError(f"{uri} cannot be read ({error}): delete it if no process runs these trials") from None


def _machine() -> str:
    """Return an id that changes with every boot of the machine; empty without a `/proc`."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def _process_start(pid: int) -> int | None:
    """Return when a live process started, in clock ticks since boot (0 without a `/proc`); None if it is dead."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # it is alive, and another user's
    if not Path("/proc/self/stat").exists():
        return 0
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])

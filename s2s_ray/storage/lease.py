"""Leases: one process at a time drives a sweep, a study or a training, and one that lost its lease stops writing.

The lease is the file `driver.json`, which is changed by conditional writes alone. Its holder renews it every
`HEARTBEAT_S`. Another process that wants it watches the file: if nothing changes for `SILENT_S`, it takes the lease
over, with the next epoch. Only times that one process measured are compared, so clocks of machines do not matter.
A holder whose process has ended is replaced immediately by a process of the same machine.

The holder calls `check` before it writes anything. It raises an error if the lease was lost, as it is after the process
or its machine was suspended for long enough. A worker of the holder calls `Fence.check`, which reads the file.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from s2s_ray.errors import ConflictError, DamagedError, S2SError, StateError, UnreachableError
from s2s_ray.storage import conditional, files
from s2s_ray.storage.holder import Holder
from s2s_ray.storage.retries import without_patience

logger = logging.getLogger(__name__)

DRIVER_FILE = "driver.json"
HEARTBEAT_S = 15.0
SILENT_S = 60.0
"""A holder whose file has not changed for so long counts as dead."""
POLL_S = 1.0
_held: set[str] = set()  # owners of the leases of this process that are in use
_END_S = 5.0  # how long the end of the work waits for a renewal that is under way
_ATTEMPTS = 5  # at a write whose outcome is not known, or that another process came before


def clock() -> float:
    """Return seconds by a clock of this machine that, where there is one, goes on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def pause(seconds: float) -> None:
    """Wait between two looks at the file."""
    time.sleep(seconds)


@dataclass(frozen=True)
class Fence:
    """The lease as a worker of its holder sees it: a value that can be sent to another process."""

    root: str
    owner: str
    what: str
    error: type[S2SError]

    def check(self) -> None:
        """Do nothing while the holder has the lease.

        Raises:
            S2SError: `error`, if the lease has another holder or was given back.
            StorageError: the file cannot be read.
        """
        found = _read(files.join(self.root, DRIVER_FILE))[0]
        if found is None or found.owner != self.owner or found.ended:
            raise self.error(_lost(self.what, self.root, self.owner, found))


class Lease:
    """The right to drive what is stored at `root`; use it through `driving`.

    Args:
        root: URI of the run, sweep or study.
        what: its name, for messages.
        error: the class of the error to raise if another process has the lease.
    """

    def __init__(self, root: str, what: str, error: type[S2SError]) -> None:
        self._root, self._what, self._error = root, what, error
        self._uri = files.join(root, DRIVER_FILE)
        self._owner = uuid4().hex
        self._renewed = 0.0
        self._lost: str | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: Ray Tune pickles the callbacks that check the lease, and never loads them."""
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    @property
    def is_lost(self) -> bool:
        """True if it is known that another process took the lease over."""
        return self._lost is not None

    @property
    def fence(self) -> Fence:
        """The same lease for the workers of this process."""
        return Fence(self._root, self._owner, self._what, self._error)

    def acquire(self, *, wait: bool = False) -> None:
        """Take the lease.

        Args:
            wait: wait for the end of another driver that is alive, instead of refusing.

        Raises:
            S2SError: `error`, if another process has the lease and is alive.
            DamagedError: the file cannot be parsed.
            StorageError: it cannot be read or written.
        """
        _held.add(self._owner)
        try:
            self._acquire(wait)
        except BaseException:
            _held.discard(self._owner)
            raise

    def _acquire(self, wait: bool) -> None:
        seen, silent, logged, attempts = None, 0.0, False, 0
        while True:
            before = clock()
            other, version = _read(self._uri)
            if other is not None and other.owner == self._owner:  # a write whose outcome was not known
                self._renewed = before
                return
            if other is None or other.ended or _is_over(other) or (silent >= SILENT_S and version == seen):
                attempts += 1
                try:
                    conditional.write(self._uri, Holder.this_process(self._owner, other).to_bytes(), version)
                    self._renewed = before
                    return
                except ConflictError:
                    pass  # another process was faster
                except UnreachableError:  # perhaps written: the file says so
                    if attempts == _ATTEMPTS:
                        raise
                    pause(POLL_S)
                continue
            if not wait and (other.is_running or seen not in (None, version)):
                raise self._error(
                    f"{self._what} at {self._root} is already run by {other.name}, which is alive: wait until it has "
                    "finished, or stop it first"
                )
            if version != seen:
                seen, silent = version, 0.0
            if not logged:
                logged = True
                logger.info(_WAITING, SILENT_S, other.name, self._what, self._root)
            pause(POLL_S)
            silent += min(clock() - before, 2 * POLL_S)  # the time that this process was suspended does not count

    def renew(self) -> None:
        """Tell the others that this process is alive. Raises StorageError."""
        with self._lock:
            for attempt in range(1, _ATTEMPTS + 1):
                if self._lost is not None:
                    return
                try:
                    found, version = _read(self._uri)
                except StateError as fault:  # only another process can have written the file of a newer version
                    self._lost = f"{self._what} at {self._root}: {fault}; this process stops and writes nothing more"
                    return
                if found is None or found.owner != self._owner or found.ended:
                    self._lost = _lost(self._what, self._root, self._owner, found)
                    return
                before = clock()
                try:
                    conditional.write(self._uri, found.renewed().to_bytes(), version)
                except ConflictError:
                    continue  # of another process, or of an earlier write of this one that arrived late
                except UnreachableError:  # perhaps written: either way the next attempt may write
                    if attempt == _ATTEMPTS:
                        raise
                    pause(POLL_S)
                    continue
                self._renewed = before
                return
            raise ConflictError(f"{self._uri} keeps being changed by other processes")

    def check(self) -> None:
        """Make sure that this process has the lease; call it before every write of what the lease guards.

        Raises:
            S2SError: `error`, if another process took the lease over.
            StorageError: the lease had to be renewed before a write, and the storage cannot be reached.
        """
        if self._lost is None and clock() - self._renewed > 2 * HEARTBEAT_S:  # suspended, or the storage was away
            self.renew()
        self.raise_if_lost()

    def raise_if_lost(self) -> None:
        """Raise the class `error` if it is known that another process took the lease over."""
        if self._lost is not None:
            raise self._error(self._lost)

    def release(self) -> None:
        """Give the lease back, if this process still has it.

        It is attempted once: after an outage the others find out by themselves that this process has ended.

        Raises:
            StateError: a newer version wrote the file.
            StorageError: it cannot be read or written.
        """
        _held.discard(self._owner)
        with self._lock, without_patience():
            found, version = _read(self._uri)
            if found is None or found.owner != self._owner:
                return
            ended = found.renewed().model_copy(update={"ended": True})
            with suppress(ConflictError):  # another process took it over just now
                conditional.write(self._uri, ended.to_bytes(), version)


@contextmanager
def driving(root: str, what: str, error: type[S2SError], *, wait: bool = False) -> Iterator[Lease]:
    """Make this process the only driver of what is stored at `root` for the duration of the block.

    Args:
        root: URI of the run, sweep or study.
        what: its name, for messages.
        error: the class of the error to raise if another process drives it.
        wait: wait for the end of another driver that is alive, instead of refusing.

    Yields:
        The lease, which is renewed in a thread.

    Raises:
        S2SError: `error`, if another process drives it.
        DamagedError: `driver.json` cannot be parsed.
        StorageError: `driver.json` cannot be read or written.
    """
    lease = Lease(root, what, error)
    lease.acquire(wait=wait)
    over = threading.Event()
    thread = threading.Thread(target=_keep, args=(lease, over), name="lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        over.set()
        thread.join(_END_S)
        _give_back(lease, root, renewing=thread.is_alive())


_LEFT = "could not give the lease %s back: %s; a process on another machine can take it over after %.0f s"
_WAITING = "waiting %.0f s to see whether %s, which runs %s at %s, is alive"


def _is_over(holder: Holder) -> bool:
    """Return whether a holder is known to write nothing more: it could not give its lease back when it ended."""
    return holder.is_gone or (holder.is_this_process and holder.owner not in _held)


def _give_back(lease: Lease, root: str, *, renewing: bool) -> None:
    """Release a lease at the end of the work; log it if the storage does not allow it.

    Args:
        renewing: a renewal still waits for the storage. It may take minutes, and so could the release.
    """
    uri = files.join(root, DRIVER_FILE)
    if renewing:
        logger.warning(_LEFT, uri, "the storage does not respond", SILENT_S)
        return
    try:
        lease.release()
    except S2SError as fault:
        logger.warning(_LEFT, uri, fault, SILENT_S)


def _keep(lease: Lease, over: threading.Event) -> None:
    """Renew a lease until it is over."""
    while not over.wait(HEARTBEAT_S):
        try:
            lease.renew()
        except S2SError as fault:  # the storage may be away for a while; the work continues
            logger.warning("could not renew %s: %s", DRIVER_FILE, fault)


def _read(uri: str) -> tuple[Holder | None, str | None]:
    """Return the holder that a file names, if there is one, and the file's version."""
    content, version = conditional.read(uri)
    if content is None:
        return None, version
    try:
        return Holder.parse(json.loads(content), uri), version
    except (ValueError, RecursionError, DamagedError) as fault:
        raise DamagedError(
            f"{uri} cannot be read ({fault}): delete it if no process runs what is stored there"
        ) from None


def _lost(what: str, root: str, owner: str, found: Holder | None) -> str:
    if found is None:
        reason = f"its {DRIVER_FILE} was deleted"
    elif found.owner == owner:
        reason = "its driver has ended"
    else:
        reason = f"{found.name} took it over, because this process had shown no sign of life for {SILENT_S:.0f} s"
    return f"{what} at {root}: {reason}; this process stops and writes nothing more"

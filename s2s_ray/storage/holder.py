"""The holder of a lease: the process that drives a sweep, a study or a training, as `driver.json` names it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Self

from s2s_ray.storage.documents import Document, Tree


def _plain_names(tree: Tree) -> Tree:
    """Rename the keys of version 1, whose driver has neither an owner nor an epoch."""
    tree = dict(tree)
    return {"heartbeat": tree.pop("told"), "process_start": tree.pop("born"), **tree}


_HIDDEN = "?"  # the state of another user's process that this one may not look at


class Holder(Document):
    """The content of `driver.json`. Every version that is written differs from all others in owner or beat."""

    FORMAT: ClassVar[int] = 2
    MIGRATIONS: ClassVar[Mapping[int, Callable[[Tree], Tree]]] = {1: _plain_names}
    NOUN: ClassVar[str] = "record of a driver"

    owner: str = ""
    """Random name of the lease; empty for a driver of version 1."""
    epoch: int = 0
    """How many owners there have been."""
    beat: int = 0
    """How often the owner has renewed the lease."""
    ended: bool = False
    """True once the owner has given the lease back."""
    host: str
    machine: str
    """Id of the machine's current boot; empty without a `/proc`."""
    namespace: str = ""
    """The namespace of the process's PID, so that a container is not taken for its host."""
    pid: int
    process_start: int | None
    """Start of the process, see `_process`: a later process with the same PID has another one."""
    heartbeat: float
    """When the lease was last renewed by the owner's clock, in seconds since 1970, for people to read."""

    @classmethod
    def this_process(cls, owner: str, after: Holder | None) -> Self:
        """Return this process as the holder that follows `after`, under the name of its lease."""
        found = _process(os.getpid())
        return cls(
            owner=owner,
            epoch=(0 if after is None else after.epoch) + 1,
            host=socket.gethostname(),
            machine=_machine(),
            namespace=_namespace(),
            pid=os.getpid(),
            process_start=None if found is None else found[0],
            heartbeat=time.time(),
        )

    def renewed(self) -> Self:
        """Return the next version of the same holder."""
        return self.model_copy(update={"beat": self.beat + 1, "heartbeat": time.time()})

    @property
    def name(self) -> str:
        """The process and its machine, for messages."""
        return f"PID {self.pid} on {self.host}"

    @property
    def is_here(self) -> bool:
        """True if the process can be looked at: it is one of this machine since its last boot."""
        here = self.machine == _machine() and self.host == socket.gethostname()
        return here and self.namespace in ("", _namespace())

    @property
    def is_gone(self) -> bool:
        """True if the process is known to have ended."""
        found = _process(self.pid) if self.is_here else None
        return self.is_here and (found is None or (found[1] != _HIDDEN and found[0] != self.process_start))

    @property
    def is_this_process(self) -> bool:
        """True for the process that asks."""
        return self.pid == os.getpid() and self.is_here and not self.is_gone

    @property
    def is_running(self) -> bool:
        """True if the process is known to exist and not to be suspended."""
        found = _process(self.pid) if self.is_here else None
        return found is not None and found[0] == self.process_start and found[1] not in ("T", "t", _HIDDEN)


def _machine() -> str:
    """Return an id that changes with every boot of the machine; empty without a `/proc`."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def _namespace() -> str:
    path = Path("/proc/self/ns/pid")
    try:
        return str(path.readlink())
    except OSError:
        return ""


def _process(pid: int) -> tuple[int | None, str] | None:
    """Return when a process started, in clock ticks since boot, and its state; None if it has ended.

    Without a `/proc` every living process has started at 0 and is in state R. A `/proc` may be mounted so that it hides
    the processes of other users: whether such a process is the one that is meant is unknown.
    """
    is_others = False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # it is alive, and another user's
        is_others = True
    if not Path("/proc/self/stat").exists():
        return 0, "R"
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return (None, _HIDDEN) if is_others else None
    except PermissionError:
        return None, _HIDDEN
    return None if fields[0] == "Z" else (int(fields[19]), fields[0])

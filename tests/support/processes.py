"""The processes that a command under test started: all of its session, whoever their parents are by now."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress

import psutil


def processes_of(session: int, title: str = "") -> list[psutil.Process]:
    """The living processes of a session whose command line begins with `title`."""
    return [process for process, command in _commands(session) if command.startswith(title)]


def commands_of(session: int) -> list[str]:
    """The command lines of the living processes of a session."""
    return [command for _, command in _commands(session)]


def _commands(session: int) -> Iterator[tuple[psutil.Process, str]]:
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):  # it ended meanwhile
            if os.getsid(process.pid) != session:
                continue
            command = " ".join(process.cmdline())
            if command:  # what is about to end has none
                yield process, command


def kill(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL; those that ended by themselves are none the worse."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def wait_for_the_end_of(session: int) -> None:
    """Where their driver is gone tasks and trials end by themselves (two of Ray's own agents take a minute)."""
    deadline = time.monotonic() + 60
    while left := [command for command in commands_of(session) if "Agent" not in command]:
        assert time.monotonic() < deadline, f"the killed job leaves processes running: {left}"
        time.sleep(0.5)

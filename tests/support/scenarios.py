"""Processes that work on one store at once, tried under every order of their operations and under random ones."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from s2s_ray.errors import S2SError, UnreachableError
from tests.support.memory_store import MemoryStore, memory_store
from tests.support.scheduler import (
    DIE,
    LOSE,
    REFUSE,
    Fault,
    Outcome,
    Scheduler,
    VirtualTime,
    follow,
    interleavings,
    random_schedules,
)
from tests.support.small_releases import Guard

RANDOM = int(os.environ.get("S2S_SCHEDULES", "1000"))
"""Random schedules of each scenario."""


@dataclass
class Ended:
    """What came of one schedule."""

    outcomes: list[Outcome]
    scheduler: Scheduler
    store: MemoryStore

    def effects(self) -> tuple[list[int], list[int]]:
        """Return the numbers of the calls that took effect, and of those of which nobody can know.

        A call that failed changed nothing, unless it says that the answer was lost.
        """
        done = [number for number, outcome in enumerate(self.outcomes) if outcome.ok]
        unknown = [n for n, outcome in enumerate(self.outcomes) if outcome.killed or unanswered(outcome.error)]
        return done, unknown

    def in_order(self, early: int, late: int) -> bool:
        """Return whether one call had ended before the other began."""
        return self.outcomes[early].ended <= self.outcomes[late].began

    def faulty(self, number: int) -> bool:
        """Return whether something went wrong with an actor's operations."""
        return any(actor == number for actor, _, _ in self.scheduler.faults)


def unanswered(error: BaseException | None) -> bool:
    """Return whether an error says that nobody knows whether a write took place."""
    return isinstance(error, UnreachableError)


@dataclass
class Scenario:
    """Actors, what is in the store before, and what must hold after.

    `prepare` fills the store once. `check` is called after each schedule, when operations are no longer scheduled.
    `shared` are the beginnings of the URIs that more than one actor sees.
    """

    prepare: Callable[[], None]
    actors: Sequence[Callable[[], Any]]
    check: Callable[[Ended], None]
    shared: tuple[str, ...]
    kinds: tuple[Fault, ...] = (LOSE, REFUSE, DIE)
    guarded: bool = True
    again: Callable[[], None] = field(default=lambda: None)
    """Resets what is not in the store before each schedule."""


class Trial:
    """Runs scenarios on one store, and counts the schedules."""

    def __init__(self, store: MemoryStore, clock: VirtualTime) -> None:
        self.store, self.clock = store, clock

    def run(
        self, scenario: Scenario, *, preemptions: int = 2, with_fault: int = 1, random: int = RANDOM // 5
    ) -> dict[str, int]:
        """Try every schedule with so many preemptions, every one with a fault, and random ones.

        Args:
            scenario: the actors.
            preemptions: of the schedules without a fault.
            with_fault: preemptions of the schedules with one fault.
            random: random schedules, with up to two faults each.

        Returns:
            How many of each were tried.
        """
        self.store.objects.clear()
        self.store.shared = lambda uri: True
        scenario.prepare()
        before = dict(self.store.objects)
        self.store.shared = lambda uri: uri.startswith(scenario.shared)

        def once(scheduler: Scheduler) -> None:
            self.store.objects = dict(before)
            self.store.watch = guard = Guard()
            self.store.scheduler = self.clock.scheduler = scheduler
            scenario.again()
            outcomes = scheduler.run(scenario.actors)
            self.store.scheduler = follow({})
            if scenario.guarded:
                guard.assert_none()
            for outcome in outcomes:
                if not outcome.ok and not outcome.killed and not isinstance(outcome.error, S2SError):
                    raise AssertionError("a traceback for the user") from outcome.error
            scenario.check(Ended(outcomes, scheduler, self.store))

        began = time.monotonic()
        counts = {"preempted": interleavings(once, preemptions=preemptions)}
        counts["faulty"] = interleavings(once, preemptions=with_fault, faults=1, kinds=scenario.kinds)
        counts["random"] = random_schedules(once, range(random), kinds=scenario.kinds)
        counts["milliseconds"] = round(1000 * (time.monotonic() - began))
        return counts


@contextmanager
def trial() -> Iterator[Trial]:
    """Serve `memory://` with virtual time, and without waiting for the local disk."""
    with memory_store() as store, pytest.MonkeyPatch.context() as patch:
        clock = VirtualTime()
        patch.setattr("time.sleep", clock.sleep)
        patch.setattr("os.fsync", lambda descriptor: None)
        patch.setattr(logging.getLogger("s2s_ray"), "disabled", True)
        for name in [name for name in logging.root.manager.loggerDict if name.startswith("s2s_ray.")]:
            patch.setattr(logging.getLogger(name), "disabled", True)
        memory = Path("/dev/shm")
        folder = tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None)
        patch.setattr(tempfile, "tempdir", folder)
        yield Trial(store, clock)
        shutil.rmtree(folder)

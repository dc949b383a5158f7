"""Two drivers of one run under every order of their storage operations, and one that stands still for too long.

In every schedule

- a driver writes only after a check at which no other had taken the lease since it took it itself;
- a driver that ends gives back its own lease and nobody else's;
- the lease of a driver that died or stands still is taken over, and its epoch counts up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from s2s_ray import storage
from s2s_ray.errors import RunError
from s2s_ray.storage import holder, lease
from s2s_ray.storage.lease import DRIVER_FILE, HEARTBEAT_S, Lease
from tests.support.scenarios import RANDOM, Ended, Scenario, Trial, trial
from tests.support.scheduler import DIE, LOSE, REFUSE, SUSPEND

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = "memory://runs/run"


@pytest.fixture(scope="module")
def world() -> Iterator[Trial]:
    with trial() as world, pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease, "clock", world.clock.clock)
        patch.setattr(lease, "POLL_S", 25.0)
        # each actor is a process on a machine of its own, whose process the others cannot look at
        patch.setattr(holder, "_machine", lambda: f"machine of {world.clock.scheduler.actor}")
        yield world


class Log:
    """What the drivers did, in the order in which they did it."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self.leases: dict[int, Lease] = {}

    def clear(self) -> None:
        self.events.clear()
        self.leases.clear()

    def driver(self, number: int, *, wait: bool) -> Callable[[], None]:
        def drive() -> None:
            mine = self.leases[number] = Lease(ROOT, "run 'run'", RunError)
            mine.acquire(wait=wait)
            self.events.append(("acquired", number))
            for turn in range(2):
                mine.check()
                self.events.append(("checked", number))
                storage.write_bytes(f"{ROOT}/work-{number}-{turn}", b"")
                self.events.append(("wrote", number))
                lease.pause(HEARTBEAT_S)
                mine.renew()
            mine.release()
            self.events.append(("released", number))

        return drive

    def check(self, ended: Ended) -> None:
        holders: list[int] = []
        checked: dict[int, int] = {}
        for event, number in self.events:
            if event == "acquired":
                holders.append(number)
            elif event == "checked":
                checked[number] = holders[-1]
            elif event == "wrote":
                assert checked[number] == number, f"driver {number} wrote after another took over: {self.events}"
        for number, outcome in enumerate(ended.outcomes):
            lost = isinstance(outcome.error, RunError)
            assert outcome.ok or lost or ended.faulty(number), f"driver {number} {outcome}"
        if not ended.scheduler.faults:
            assert any(outcome.ok for outcome in ended.outcomes), "nobody drives"
        content = json.loads(storage.read_bytes(f"{ROOT}/{DRIVER_FILE}"))
        if holders and not ended.scheduler.faults:
            assert content["owner"] == self.leases[holders[-1]].fence.owner
            assert content["ended"] == ended.outcomes[holders[-1]].ok
            assert content["epoch"] == len(holders)
        for number, outcome in enumerate(ended.outcomes):
            if content["owner"] == self.leases[number].fence.owner and not ended.faulty(number):
                assert content["ended"] == outcome.ok, f"driver {number} {outcome}, and its lease is ended by another"
        # whatever happened, the next driver gets the lease in the end
        after = Lease(ROOT, "run 'run'", RunError)
        after.acquire(wait=True)
        after.check()


@pytest.mark.parametrize("wait", [False, True], ids=["refused", "waiting"])
def test_two_drivers(world: Trial, wait: bool, record_property: Callable[[str, object], None]) -> None:
    log = Log()
    scenario = Scenario(
        lambda: None,
        [log.driver(0, wait=wait), log.driver(1, wait=wait)],
        log.check,
        (ROOT,),
        kinds=(LOSE, REFUSE, DIE, SUSPEND),
        again=log.clear,
    )
    counts = world.run(scenario, preemptions=4, with_fault=2, random=RANDOM)
    record_property("schedules", sum(count for kind, count in counts.items() if kind != "milliseconds"))
    print(counts)
    assert counts["preempted"] > 10, counts
    assert counts["faulty"] > 300, counts

"""The scheduler of the interleaving tests: it finds races, tries every schedule once, and repeats itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.scheduler import (
    DIE,
    LOSE,
    REFUSE,
    SUSPEND,
    SUSPENDED_S,
    Killed,
    Scheduler,
    follow,
    interleavings,
    random_schedules,
    serial_orders,
)


def steps(scheduler: Scheduler, count: int, name: str = "", order: list[str] | None = None) -> Callable[[], None]:
    def act() -> None:
        for number in range(count):
            scheduler.before(f"step {number}", writes=True)
            if order is not None:
                order.append(name)

    return act


@pytest.mark.parametrize(("first", "second"), [(1, 1), (3, 3), (5, 4)])
def test_every_schedule_with_two_preemptions_is_tried_once(first: int, second: int) -> None:
    seen = []

    def run(scheduler: Scheduler) -> None:
        order: list[str] = []
        scheduler.run([steps(scheduler, first, "a", order), steps(scheduler, second, "b", order)])
        seen.append(tuple(order))

    one_switch = (first - 1) + (second - 1)
    assert interleavings(run) == 2 + one_switch + 2 * (first - 1) * (second - 1)
    assert len(seen) == len(set(seen))


def counter(scheduler: Scheduler, *, atomic: bool) -> list[int]:
    """Two actors that each add one."""
    value = [0]

    def add() -> None:
        scheduler.before("read", writes=False)
        read = value[0]
        if not atomic:
            scheduler.before("write", writes=True)
        value[0] = read + 1

    scheduler.run([add, add])
    return value


def test_a_lost_update_is_found_and_its_schedule_shown() -> None:
    def run(scheduler: Scheduler) -> None:
        assert counter(scheduler, atomic=False) == [2]

    with pytest.raises(AssertionError) as found:
        interleavings(run)
    notes = "\n".join(found.value.__notes__)
    assert "schedule {" in notes
    assert notes.count("read") == 2
    with pytest.raises(AssertionError):
        random_schedules(run, range(100))
    assert (
        interleavings(
            lambda scheduler: None if counter(scheduler, atomic=True) == [2] else pytest.fail("an update was lost")
        )
        == 2
    )


def test_a_schedule_can_be_repeated() -> None:
    def run(seed: int) -> str:
        transcripts = []

        def once(scheduler: Scheduler) -> None:
            scheduler.run([steps(scheduler, 9), steps(scheduler, 9)])
            transcripts.append(scheduler.transcript())

        random_schedules(once, range(seed, seed + 1), kinds=(LOSE, REFUSE, DIE, SUSPEND))
        return transcripts[0]

    assert run(7) == run(7)
    assert len({run(seed) for seed in range(20)}) > 10


def test_what_a_killed_process_does_on_its_way_out_has_no_effect() -> None:
    done = []

    def act(scheduler: Scheduler) -> None:
        try:
            scheduler.before("first", writes=True)
        finally:
            scheduler.before("second", writes=True)
            done.append("second")

    scheduler = follow({0: DIE})
    [outcome] = scheduler.run([lambda: act(scheduler)])
    assert outcome.killed
    assert isinstance(outcome.error, Killed)
    assert not done


def test_a_suspended_process_comes_back_after_the_others_and_time_is_virtual() -> None:
    order = []

    def act(name: str) -> None:
        scheduler.before(name, writes=True)
        order.append((name, scheduler.now >= SUSPENDED_S))
        scheduler.sleep(10)

    scheduler = follow({1: SUSPEND})
    scheduler.run([lambda: act("suspended"), lambda: act("other")])
    assert order == [("other", False), ("suspended", True)]


def test_orders_of_calls_keep_those_that_followed_each_other() -> None:
    assert list(serial_orders(2, [0, 1], lambda early, late: False)) == [(0, 1), (1, 0)]
    assert list(serial_orders(2, [0, 1], lambda early, late: (early, late) == (1, 0))) == [(1, 0)]
    assert list(serial_orders(2, [0], lambda early, late: False)) == [(0,), (0, 1), (1, 0)]

"""The registry under every order in which the storage operations of two processes can take place.

Every schedule with at most two preemptions, every one with one fault and one preemption, and random ones with up to two
faults. In all of them

- no release that anybody reads is a mix, and nothing is deleted or changed that a manifest lists;
- the history in `current.json` is what some order of the successful calls gives, and of those whose answer was lost;
- a call that failed has changed nothing, unless it says that the answer was lost;
- a publication that was cut short is completed by the same call.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from s2s_ray import registry, storage
from s2s_ray.errors import ConflictError, RegistryError
from s2s_ray.localization import Calibration
from tests.support.calibrations import calibration
from tests.support.scenarios import RANDOM, Ended, Scenario, Trial, trial
from tests.support.scheduler import serial_orders
from tests.support.small_releases import NAME, checkpoint, index, look_at_release, read_index, read_release, write_index

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = "memory://registry"
SOURCE = "memory://source"
Check = Callable[[Ended], None]
Property = Callable[[str, object], None]
Pointer = tuple[str | None, tuple[str, ...]]


@pytest.fixture(scope="module")
def world() -> Iterator[Trial]:
    with trial() as world:
        yield world


def source(step: int) -> str:
    return f"{SOURCE}/checkpoint-{step}"


def source_index(step: int, generation: str) -> str:
    return f"{SOURCE}/index-{step}-{generation}"


def prepare_sources() -> None:
    for step in (1, 2, 3, 4):
        checkpoint(source(step), step, recall=step / 10)
        for generation in ("old", "new"):
            index(source_index(step, generation), source(step), generation)


def publish(step: int, generation: str | None = None, release: str | None = "one") -> registry.Release:
    uri = None if generation is None else source_index(step, generation)
    return registry.publish(ROOT, NAME, source(step), uri, release=release)


def publishing(step: int, generation: str | None = None, release: str | None = "one") -> Callable[[], Any]:
    return lambda: publish(step, generation, release)


def tried(record_property: Property, counts: dict[str, int], least: int) -> None:
    """Record how many schedules were tried, for the summary of the session."""
    schedules = sum(count for kind, count in counts.items() if kind != "milliseconds")
    record_property("schedules", schedules)
    print(counts)
    assert schedules >= least, counts


# Publications


TAKEN = (RegistryError, ConflictError)
"""What the second of two different publications under one id ends with."""


def published(step: int, generation: str | None) -> None:
    release = registry.resolve(ROOT, NAME, "one")
    assert look_at_release(release) == (registry.fingerprint(source(step)), generation)


def check_one_of_two(calls: Sequence[Callable[[], Any]], expected: Sequence[tuple[int, str | None]]) -> Check:
    """At most one of two different publications succeeds, at least one if nothing went wrong, and its files are there.

    If one was cut short, the same call completes it, or the other one does.
    """

    def check(ended: Ended) -> None:
        winners = [number for number, outcome in enumerate(ended.outcomes) if outcome.ok]
        assert len(winners) < 2, "both say that they have published"
        for number, outcome in enumerate(ended.outcomes):
            assert outcome.ok or isinstance(outcome.error, TAKEN) or ended.faulty(number), outcome
        if not ended.scheduler.faults:
            assert winners, "both are refused"
            published(*expected[winners[0]])
            return
        completed = [number for number in winners or (0, 1) if succeeds(calls[number])]
        assert len(completed) == 1, f"completed: {completed}, of {winners or (0, 1)}"
        published(*expected[completed[0]])

    return check


def succeeds(call: Callable[[], Any]) -> bool:
    try:
        call()
    except TAKEN:
        return False
    return True


def check_both(call: Callable[[], Any], generation: str | None) -> Check:
    """Both of two equal publications succeed unless something goes wrong, and the same call completes one then."""

    def check(ended: Ended) -> None:
        for number, outcome in enumerate(ended.outcomes):
            assert outcome.ok or ended.faulty(number), f"publisher {number} {outcome}"
        if ended.scheduler.faults:
            call()
        published(1, generation)

    return check


def test_two_publishers_of_the_same(world: Trial, record_property: Property) -> None:
    call = publishing(1)
    scenario = Scenario(prepare_sources, [call, call], check_both(call, None), (ROOT,))
    tried(record_property, world.run(scenario, random=RANDOM), 1500 + RANDOM)


def test_two_publishers_of_the_same_with_an_index(world: Trial, record_property: Property) -> None:
    call = publishing(1, "old")
    scenario = Scenario(prepare_sources, [call, call], check_both(call, "old"), (ROOT,))
    tried(record_property, world.run(scenario, with_fault=0), 1000)


@pytest.mark.parametrize(
    "others", [((1, None), (2, None)), ((1, "old"), (1, "new"))], ids=["other checkpoints", "other indexes"]
)
def test_two_publishers_of_different_releases_under_one_id(
    world: Trial, others: Sequence[tuple[int, str | None]], record_property: Property
) -> None:
    calls = [publishing(*other) for other in others]
    scenario = Scenario(prepare_sources, calls, check_one_of_two(calls, others), (ROOT,))
    tried(record_property, world.run(scenario, with_fault=others[0][1] is None), 500)


@pytest.mark.parametrize("generations", [("old", "old"), ("old", "new")], ids=["equal", "other"])
def test_two_indexes_are_attached_at_once(
    world: Trial, generations: tuple[str, str], record_property: Property
) -> None:
    def prepare() -> None:
        prepare_sources()
        publish(1)

    def attaching(generation: str) -> Callable[[], Any]:
        return lambda: registry.attach_index(ROOT, NAME, "one", source_index(1, generation))

    calls = [attaching(generation) for generation in generations]
    equal = generations[0] == generations[1]
    check = (
        check_both(calls[0], "old")
        if equal
        else check_one_of_two(calls, [(1, generation) for generation in generations])
    )
    tried(record_property, world.run(Scenario(prepare, calls, check, (ROOT,))), 1000)


@pytest.mark.parametrize("errors", [(0.1, 0.1), (0.1, 0.3)], ids=["equal", "other"])
def test_two_calibrations_are_attached_at_once(
    world: Trial, errors: tuple[float, float], record_property: Property
) -> None:
    def prepare() -> None:
        prepare_sources()
        publish(1)

    def made(error: float) -> Calibration:
        return calibration(registry.fingerprint(source(1)), calibration_error=error)

    def attaching(error: float) -> Callable[[], Any]:
        return lambda: registry.attach_calibration(ROOT, NAME, "one", made(error))

    calls = [attaching(error) for error in errors]
    equal = errors[0] == errors[1]

    def check(ended: Ended) -> None:
        winners = [number for number, outcome in enumerate(ended.outcomes) if outcome.ok]
        for number, outcome in enumerate(ended.outcomes):
            assert outcome.ok or ended.faulty(number) or (not equal and isinstance(outcome.error, RegistryError))
        assert equal or len(winners) < 2, "both say that they have attached theirs"
        if not ended.scheduler.faults:
            assert winners, "both are refused"
        completed = [number for number in winners or (0, 1) if succeeds(calls[number])]
        assert completed, "nobody can complete it"
        assert registry.read_calibration(registry.resolve(ROOT, NAME, "one")) == made(errors[completed[0]])

    tried(record_property, world.run(Scenario(prepare, calls, check, (ROOT,))), 50)


def test_a_reader_sees_a_whole_release_or_none(world: Trial, record_property: Property) -> None:
    """A release is published, its index attached and promoted, and published again, while another process reads."""

    def write() -> None:
        publish(1)
        publish(1, "old")
        registry.promote(ROOT, NAME, "one")
        publish(1, "old")

    def read() -> tuple[str, str | None] | None:
        try:
            release = registry.resolve(ROOT, NAME)
        except RegistryError:
            return None
        return read_release(release)

    def check(ended: Ended) -> None:
        reader = ended.outcomes[1]
        assert reader.ok or ended.faulty(1), reader
        if reader.ok and reader.value is not None:
            assert reader.value[1] == "old", "what is promoted has an index"
        if ended.scheduler.faults:
            write()
        assert read() == (registry.fingerprint(source(1)), "old")

    scenario = Scenario(prepare_sources, [write, read], check, (ROOT,))
    tried(record_property, world.run(scenario, with_fault=0), 500)


def test_a_reader_of_an_index_that_is_replaced(world: Trial, record_property: Property) -> None:
    """`build-index --out` at a place that holds another index: a reader sees the old one or the new one."""

    def replace() -> None:
        rebuild("memory://out/index", 2, "new")

    def check(ended: Ended) -> None:
        reader = ended.outcomes[1]
        assert reader.ok or ended.faulty(1), reader
        replace()
        assert read_index("memory://out/index")[0] == "new"

    def prepare() -> None:
        prepare_sources()
        rebuild("memory://out/index", 1, "old")

    scenario = Scenario(
        prepare,
        [replace, lambda: read_index("memory://out/index")],
        check,
        ("memory://out",),
    )
    tried(record_property, world.run(scenario), 500)


def rebuild(uri: str, step: int, generation: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_index(Path(folder), registry.fingerprint(source(step)), generation)
        storage.publish(Path(folder), uri, replace=True)


# The pointer

START: Pointer = ("r3", ("r1", "r2"))


def prepare_pointer() -> None:
    prepare_sources()
    for step in (1, 2, 3, 4):
        publish(step, "old", f"r{step}")
    for step in (1, 2, 3):
        registry.promote(ROOT, NAME, f"r{step}")


def promoting(release: str) -> Callable[[], str]:
    return lambda: registry.promote(ROOT, NAME, release).id


def rolling_back() -> str:
    return registry.rollback(ROOT, NAME).id


def pointer() -> Pointer:
    current, *former = registry.lineage(ROOT, NAME)
    return current, tuple(reversed(former))


def after(state: Pointer, call: str) -> Pointer:
    """Return what a call makes of the pointer."""
    current, history = state
    if call == "rollback":
        return history[-1], history[:-1]
    return state if call == current else (call, (*history, *([current] if current else [])))


def check_history(calls: list[str], ended: Ended) -> None:
    """The history is that of one order of the calls, in which each that succeeded gave what it returned."""
    done, unknown = ended.effects()
    found = pointer()
    for order in serial_orders(len(calls), done, ended.in_order):
        if not set(order) <= {*done, *unknown}:
            continue
        state, fits = START, True
        for number in order:
            state = after(state, calls[number])
            outcome = ended.outcomes[number]
            fits = fits and (not outcome.ok or outcome.value == state[0])
        if fits and state == found:
            return
    ends = ", ".join(f"{call} {outcome}" for call, outcome in zip(calls, ended.outcomes, strict=True))
    raise AssertionError(f"no order of the calls explains {found}: {ends}")


@pytest.mark.parametrize(
    "calls",
    [("r4", "r1"), ("r4", "r4"), ("r4", "rollback"), ("r3", "rollback"), ("rollback", "rollback")],
    ids=lambda calls: "-".join(calls),
)
def test_the_history_is_that_of_one_order_of_the_calls(
    world: Trial, calls: tuple[str, ...], record_property: Property
) -> None:
    actors = [rolling_back if call == "rollback" else promoting(call) for call in calls]

    def check(ended: Ended) -> None:
        for number, outcome in enumerate(ended.outcomes):
            assert outcome.ok or ended.faulty(number), f"{calls[number]} {outcome}"
        check_history(list(calls), ended)

    scenario = Scenario(prepare_pointer, actors, check, (ROOT,))
    tried(record_property, world.run(scenario, random=RANDOM), 80 + RANDOM)


def test_a_promotion_while_the_release_is_published_again(world: Trial, record_property: Property) -> None:
    def check(ended: Ended) -> None:
        for number, outcome in enumerate(ended.outcomes):
            assert outcome.ok or ended.faulty(number), outcome
        read_release(registry.resolve(ROOT, NAME, "r4"))

    scenario = Scenario(prepare_pointer, [lambda: publish(4, "old", "r4"), promoting("r4")], check, (ROOT,))
    tried(record_property, world.run(scenario), 300)

"""A deterministic scheduler: processes as threads of which one runs at a time, switched only at storage operations.

An actor is a function. Before each operation on the store (`Scheduler.before`, called by the store double) it asks what
happens next: it goes on, another actor goes on, or something goes wrong. A schedule is the list of these choices, so
that a run can be repeated. `interleavings` enumerates all schedules with a bound on preemptions and on faults, as
CHESS does (Musuvathi and Qadeer, 2007): a switch where an actor ends costs nothing. `random_schedules` draws
them from seeds.

Time is virtual: an actor that sleeps lets the others go on, and the clock jumps when all of them sleep.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

LOSE = "lose"
"""The operation takes place and its answer is lost."""
REFUSE = "refuse"
"""The operation is refused before it takes place."""
DIE = "die"
"""The process is killed before the operation and never runs again."""
SUSPEND = "suspend"
"""The process stands still before the operation for longer than any lease, while the others run."""
Fault: TypeAlias = Literal["lose", "refuse", "die", "suspend"]
Choice: TypeAlias = int | Fault
"""The number of the actor that goes on, or what happens to the one whose turn it is."""
Schedule: TypeAlias = Mapping[int, Choice]
"""The choices that differ from going on, by the number of the step."""

SUSPENDED_S = 1000.0
_DEADLINE_S = 60.0


class Killed(BaseException):
    """Ends the thread of an actor whose process died; what it does on its way out has no effect."""


@dataclass
class Step:
    """One operation of an actor, and what else could have happened there."""

    actor: int
    operation: str
    writes: bool
    others: tuple[int, ...]
    """Actors that could have gone on instead."""
    free: bool = False
    """Whether another actor costs no preemption, because the former one has ended."""
    idle: bool = False
    """Whether no operation is at stake, only who goes on."""


@dataclass
class Outcome:
    """How an actor ended, with the numbers of the steps between which it ran."""

    value: Any = None
    error: BaseException | None = None
    began: int = -1
    ended: int = -1

    @property
    def ok(self) -> bool:
        return self.error is None

    @property
    def killed(self) -> bool:
        return isinstance(self.error, Killed)

    def __str__(self) -> str:
        return f"returned {self.value!r}" if self.ok else f"{type(self.error).__name__}: {self.error}"


@dataclass
class _Actor:
    number: int
    run: Callable[[], Any]
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    outcome: Outcome = field(default_factory=Outcome)
    awake_at: float = 0.0
    ended: bool = False
    dead: bool = False
    fresh: bool = True


class Scheduler:
    """Runs actors once, by one schedule."""

    def __init__(self, choose: Callable[[Step, int], Choice | None]) -> None:
        self._choose = choose
        self.steps: list[Step] = []
        self.faults: list[tuple[int, Fault, str]] = []
        self.now = 0.0
        self._actors: list[_Actor] = []
        self._local = threading.local()
        self._done = threading.Semaphore(0)

    def run(self, actors: Sequence[Callable[[], Any]]) -> list[Outcome]:
        """Run all actors to their ends, and return how they ended."""
        self._actors = [_Actor(number, run) for number, run in enumerate(actors)]
        threads = [threading.Thread(target=self._live, args=(actor,), daemon=True) for actor in self._actors]
        for thread in threads:
            thread.start()
        self._hand_over(self._next(None))
        assert self._done.acquire(timeout=_DEADLINE_S), f"the actors do not end: {self.transcript()}"
        for thread in threads:
            thread.join(_DEADLINE_S)
        return [actor.outcome for actor in self._actors]

    def before(self, operation: str, *, writes: bool, shared: bool = True) -> Fault | None:
        """Let the schedule choose what goes on before an operation of the calling actor; outside of actors, nothing.

        Args:
            operation: what is about to happen, for transcripts.
            writes: whether it changes the store.
            shared: whether other actors can see the difference; elsewhere nothing is chosen.

        Returns:
            The fault that the caller has to bring about, `LOSE` or `REFUSE`.
        """
        actor: _Actor | None = getattr(self._local, "actor", None)
        if actor is None:
            return None
        if actor.dead:
            raise Killed
        if not shared:
            return None
        # An actor that was just given its turn need not pass it on: another could have been given it.
        others = () if actor.fresh else tuple(other.number for other in self._awake() if other is not actor)
        actor.fresh = False
        step = Step(actor.number, operation, writes, others)
        choice = self._record(step)
        if isinstance(choice, int):
            self._switch(actor, self._actors[choice])
            return self.before(operation, writes=writes)
        if choice is None:
            return None
        self.faults.append((actor.number, choice, operation))
        if choice == DIE:
            actor.dead = True
            raise Killed
        if choice == SUSPEND:
            self.sleep(SUSPENDED_S)
            return self.before(operation, writes=writes)
        return choice

    def sleep(self, seconds: float) -> None:
        """Let virtual time pass for the calling actor, and the others go on; outside of actors, only let time pass."""
        actor: _Actor | None = getattr(self._local, "actor", None)
        if actor is None:
            self.now += seconds
            return
        if actor.dead:
            raise Killed
        actor.awake_at = self.now + max(seconds, 1e-6)
        self._switch(actor, self._next(actor))

    @property
    def actor(self) -> int | None:
        """The number of the actor that the calling thread is, None for other threads."""
        actor: _Actor | None = getattr(self._local, "actor", None)
        return None if actor is None else actor.number

    def transcript(self) -> str:
        """Return the steps that were taken, one a line, with the faults."""
        lines = [f"{number:4d}  actor {step.actor}  {step.operation}" for number, step in enumerate(self.steps)]
        return "\n".join(
            [*lines, *(f"fault: {fault} at {operation} of {actor}" for actor, fault, operation in self.faults)]
        )

    def _live(self, actor: _Actor) -> None:
        actor.turn.acquire()
        self._local.actor = actor
        actor.outcome.began = len(self.steps)
        try:
            actor.outcome.value = actor.run()
            if actor.dead:  # it swallowed the exception
                actor.outcome.error = Killed()
        except BaseException as error:
            actor.outcome.error = Killed() if actor.dead else error
        actor.outcome.ended = len(self.steps)
        actor.ended = True
        if all(other.ended for other in self._actors):
            self._done.release()
        else:
            self._hand_over(self._next(None))

    def _awake(self) -> list[_Actor]:
        return [actor for actor in self._actors if not actor.ended and actor.awake_at <= self.now]

    def _next(self, former: _Actor | None) -> _Actor:
        """Return who goes on when the former one has ended or sleeps; if all sleep, time passes until one wakes."""
        awake = self._awake()
        if not awake:
            waiting = [actor for actor in self._actors if not actor.ended]
            self.now = min(actor.awake_at for actor in waiting)
            awake = self._awake()
        if len(awake) == 1:
            return awake[0]
        step = Step(
            awake[0].number,
            "(the next)",
            False,
            tuple(actor.number for actor in awake[1:]),
            free=former is None,
            idle=True,
        )
        choice = self._record(step)
        return self._actors[choice] if isinstance(choice, int) else awake[0]

    def _record(self, step: Step) -> Choice | None:
        number = len(self.steps)
        self.steps.append(step)
        assert number < 5000, f"a schedule without an end: {self.transcript()[-3000:]}"
        return self._choose(step, number)

    def _switch(self, actor: _Actor, to: _Actor) -> None:
        if to is actor:
            return
        self._hand_over(to)
        actor.turn.acquire()

    @staticmethod
    def _hand_over(actor: _Actor) -> None:
        actor.fresh = True
        actor.turn.release()


def follow(schedule: Schedule) -> Scheduler:
    """Return a scheduler that makes the choices of a schedule and goes on everywhere else."""
    return Scheduler(lambda step, number: schedule.get(number))


def interleavings(
    run: Callable[[Scheduler], None], *, preemptions: int = 2, faults: int = 0, kinds: Sequence[Fault] = ()
) -> int:
    """Run all schedules with so many preemptions and faults at most.

    Args:
        run: sets the actors up afresh, runs them under the scheduler that it is given, and checks what came of it.
        preemptions: how often an actor that could go on is interrupted.
        faults: how many faults may happen.
        kinds: the faults. `LOSE` and `DIE` are tried at operations that write only: elsewhere they are the same as
            `REFUSE` and as dying before the next write.

    Returns:
        The number of schedules.
    """
    count = 0
    pending: list[tuple[dict[int, Choice], int, int]] = [({}, preemptions, faults)]
    while pending:
        schedule, switches, mishaps = pending.pop()
        scheduler = follow(schedule)
        _run(run, scheduler, f"schedule {schedule}")
        count += 1
        for number in range(max(schedule, default=-1) + 1, len(scheduler.steps)):
            step = scheduler.steps[number]
            if step.free or switches:
                left = switches if step.free else switches - 1
                pending += [({**schedule, number: other}, left, mishaps) for other in step.others]
            if mishaps and not step.idle:
                pending += [
                    ({**schedule, number: kind}, switches, mishaps - 1)
                    for kind in kinds
                    if step.writes or kind not in (LOSE, DIE)
                ]
    return count


def random_schedules(
    run: Callable[[Scheduler], None], seeds: range, *, kinds: Sequence[Fault] = (), switching: float = 0.3
) -> int:
    """Run one random schedule a seed, with up to two faults each if there are kinds of them; return their number."""
    for seed in seeds:
        draw = random.Random(seed)
        left = [draw.randrange(3) if kinds else 0]

        def choose(step: Step, number: int, draw: random.Random = draw, left: list[int] = left) -> Choice | None:
            if step.others and draw.random() < switching:
                return draw.choice(step.others)
            if left[0] and not step.idle and draw.random() < 0.05:
                kind = draw.choice(kinds)
                if step.writes or kind not in (LOSE, DIE):
                    left[0] -= 1
                    return kind
            return None

        _run(run, Scheduler(choose), f"seed {seed}")
    return len(seeds)


def _run(run: Callable[[Scheduler], None], scheduler: Scheduler, name: str) -> None:
    try:
        run(scheduler)
    except BaseException as error:
        error.add_note(f"{name}\n{scheduler.transcript()}")
        raise


class VirtualTime:
    """What replaces `time.sleep` and clocks: the time of the scheduler that runs."""

    def __init__(self) -> None:
        self.scheduler = follow({})

    def sleep(self, seconds: float) -> None:
        """Let virtual time pass."""
        self.scheduler.sleep(seconds)

    def clock(self) -> float:
        """Return virtual seconds."""
        return self.scheduler.now


def serial_orders(count: int, must: Sequence[int], before: Callable[[int, int], bool]) -> Iterator[tuple[int, ...]]:
    """Yield the orders of calls that explain a history.

    Args:
        count: the number of calls.
        must: those that took effect; the others may have.
        before: whether the first call had ended when the second began, so that their order is known.
    """
    for length in range(len(must), count + 1):
        for order in itertools.permutations(range(count), length):
            if set(must) <= set(order) and not any(
                before(late, early) for place, early in enumerate(order) for late in order[place + 1 :]
            ):
                yield order

"""Does a second worker pay? 1 against 2 Ray Train workers of one thread each, at a fixed global batch.

    python benchmarks/scaling.py

Two real trainings of the same data set run side by side on one machine, but only one of them at a time: they take
turns, epoch by epoch, and the first epoch of each does not count. Their epochs' times are split into waiting for data,
waiting for the gradients' reduce, gathering (descriptors and batch statistics, forward and back), and the rest, which
is the networks. The speed-up is the median of the rounds' ratios. Exits with 1 where it is below 1.7 x.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any

from s2s_ray.cluster import ray_cluster
from s2s_ray.config import Config, load_config
from s2s_ray.data.prepare import prepare
from s2s_ray.training.loop import Trainer

ARMS = (1, 2)
PARTS = ("data wait", "reduce", "gather")


class Turns:
    """Whose turn it is: one epoch of each arm after the other. A Ray actor."""

    def __init__(self, rounds: int) -> None:
        self.order = [(number, arm) for number in range(rounds) for arm in ARMS]
        self.figures: dict[tuple[int, int], list[dict[str, float]]] = {turn: [] for turn in self.order}
        self.moved = asyncio.Condition()

    async def take(self, number: int, arm: int) -> None:
        """Return when this epoch of the arm may begin."""
        async with self.moved:
            await self.moved.wait_for(lambda: self.order[:1] == [(number, arm)])

    async def end(self, number: int, arm: int, figures: dict[str, float]) -> None:
        """One worker's epoch is over; the turn is, when all its workers' are."""
        async with self.moved:
            self.figures[number, arm].append(figures)
            if len(self.figures[number, arm]) == arm:
                self.order.pop(0)
                self.moved.notify_all()

    async def found(self) -> dict[tuple[int, int], list[dict[str, float]]]:
        return self.figures


class Stopwatch:
    """Seconds spent in the parts of one epoch."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **keywords)
            finally:
                self.seconds[part] += time.perf_counter() - start

        return call


class TimedReduce:
    """A reduce under way, whose waiting counts."""

    def __init__(self, work: Any, watch: Stopwatch) -> None:
        self.wait = watch.timed("reduce", work.wait)


def taking_turns(arm: int, turns: Any) -> Callable[[Trainer, Any], Any]:
    """For `ray_train.train`: makes a trainer wait for its turn before each epoch, and tell where the time went."""

    def tell(trainer: Trainer, report: Any) -> Any:
        import ray
        import torch.distributed as dist

        watch, train_epoch, batches = Stopwatch(), trainer._train_epoch, trainer._batches
        reduce = dist.all_reduce

        def all_reduce(*args: Any, async_op: bool = False) -> Any:
            if async_op:
                return TimedReduce(reduce(*args, async_op=True), watch)
            return watch.timed("gather", reduce)(*args)

        def timed_batches() -> Iterator[Any]:
            following = watch.timed("data wait", iter(batches()).__next__)
            while True:
                try:
                    yield following()
                except StopIteration:
                    return

        def epoch(*args: Any) -> None:
            number = trainer.epoch
            ray.get(turns.take.remote(number, arm))
            watch.seconds.update(dict.fromkeys(PARTS, 0.0))
            start = time.perf_counter()
            train_epoch(*args)
            figures = {**watch.seconds, "whole": time.perf_counter() - start}
            ray.get(turns.end.remote(number, arm, figures))

        dist.all_reduce = all_reduce
        dist.all_gather = watch.timed("gather", dist.all_gather)
        trainer._train_epoch, trainer._batches = epoch, timed_batches  # type: ignore[method-assign]
        return report

    return tell


def run(config: Config, rounds: int) -> dict[tuple[int, int], list[dict[str, float]]]:
    """Each worker's parts of each epoch, by round and arm."""
    import ray

    from s2s_ray.training.ray_train import train

    with ray_cluster(cpus=sum(ARMS) + 1):
        turns = ray.remote(num_cpus=0)(Turns).remote(rounds)
        pool = ThreadPoolExecutor(len(ARMS))
        trainings = []
        for arm in ARMS:
            own = config.train.model_copy(update={"workers": arm, "name": f"workers-{arm}"})
            chosen = config.model_copy(update={"train": own})
            trainings.append(pool.submit(train, chosen, tell=taking_turns(arm, turns)))
        for training in wait(trainings, return_when=FIRST_EXCEPTION).done:
            training.result()
        figures: dict[tuple[int, int], list[dict[str, float]]] = ray.get(turns.found.remote())
        return figures


def main() -> int:
    """Print a row an arm, and the speed-up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--batch", type=int, default=16, help="the global batch of both arms")
    parser.add_argument("--steps", type=int, default=1, help="cycles of an epoch")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="change the preset: a.b=value")
    arguments = parser.parse_args()
    rounds = arguments.repetitions + 1
    with tempfile.TemporaryDirectory(prefix="s2s-scaling-") as folder:
        places = [f"data.uri={folder}/data", f"train.storage={folder}/runs", "prepare.parallel=false"]
        pairs = [f"source.train_pairs={arguments.batch * arguments.steps + 1}", "source.test_pairs=2"]
        held_out = ["prepare.validation_fraction=0.001", f"train.validate_every={rounds}"]
        length = [f"train.batch={arguments.batch}", f"train.epochs={rounds}"]
        config = load_config(arguments.preset, [*places, *pairs, *held_out, *length, *arguments.overrides])
        pairs_of_epoch = prepare(config).splits["train"].count
        figures = run(config, rounds)
    del figures[0, 1], figures[0, 2]
    print(f"{arguments.preset}, global batch {arguments.batch}, {pairs_of_epoch} pairs an epoch, one thread a worker")
    print("workers   s a cycle   networks   data wait   reduce   gather")
    for arm in ARMS:
        epochs = [slowest(workers) for (_, workers_of), workers in figures.items() if workers_of == arm]
        middle = {part: statistics.median(epoch[part] for epoch in epochs) / arguments.steps for part in epochs[0]}
        networks = middle["whole"] - sum(middle[part] for part in PARTS)
        row = "   ".join(f"{value:8.3f}" for value in (middle["whole"], networks, *(middle[part] for part in PARTS)))
        print(f"{arm:7d}   {row}")
    ratio = statistics.median(
        slowest(figures[number, 1])["whole"] / slowest(figures[number, 2])["whole"] for number in range(1, rounds)
    )
    print(f"speed-up {ratio:.2f} x (goal 1.7 x): " + ("met" if ratio >= 1.7 else "MISSED"))
    return 0 if ratio >= 1.7 else 1


def slowest(workers: list[dict[str, float]]) -> dict[str, float]:
    """The worker that took longest."""
    return max(workers, key=lambda figures: figures["whole"])


if __name__ == "__main__":
    raise SystemExit(main())

"""The speed-up of a second worker: 1 against 2 Ray Train workers of one thread each, at a fixed global batch.

    python benchmarks/scaling.py

The benchmark runs real trainings of one data set on one cluster on this machine, one at a time and with the arms
alternating: the Ray processes of a second cluster would use the core of the second worker. The first epoch of each is
not counted, and checkpoints are written outside the measured time. The time of an epoch is split into waiting for
data, waiting for the gradients' reduce, gathering (descriptors and batch statistics, forward and backward), and the
remainder, which is the networks. The speed-up is the median of the ratios of the rounds. The exit code is 1 if it is
below 1.7.

The same cycles are then run by processes with torch.distributed and without Ray, which shows the speed-up of two
otherwise idle cores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from s2s_ray.config import Config, load_config
from s2s_ray.data.prepare import prepare
from s2s_ray.model.s2s import S2S
from s2s_ray.runtime.cluster import ray_cluster
from s2s_ray.training.loop import Trainer
from s2s_ray.training.step import TrainingStep

ARMS = (1, 2)
PARTS = ("data wait", "reduce", "gather")


class Stopwatch:
    """The seconds spent in the parts of one epoch."""

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
    """A running reduce; the time spent waiting for it is measured."""

    def __init__(self, work: Any, watch: Stopwatch) -> None:
        self.wait = watch.timed("reduce", work.wait)


def timing_report(folder: str) -> Callable[[Trainer, Any], Any]:
    """Return a `wrap_report` for `ray_train.train` with which each worker writes the parts of its last epoch's time."""

    def wrap(trainer: Trainer, report: Any) -> Any:
        from s2s_ray.runtime.collectives import rank

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
            trainer.store.flush()
            if dist.is_initialized():
                dist.barrier()
            watch.seconds.update(dict.fromkeys(PARTS, 0.0))
            start = time.perf_counter()
            train_epoch(*args)
            seconds = {**watch.seconds, "whole": time.perf_counter() - start}
            Path(folder, f"{rank()}.json").write_text(json.dumps(seconds))

        dist.all_reduce = all_reduce
        dist.all_gather = watch.timed("gather", dist.all_gather)
        trainer._train_epoch, trainer._batches = epoch, timed_batches  # type: ignore[method-assign]
        return report

    return wrap


def slowest_worker(config: Config, workers: int, folder: str) -> dict[str, float]:
    """Train from scratch with `workers` workers; return the parts of the last epoch of the slowest worker."""
    from s2s_ray.training.ray_train import train

    run = Path(folder, f"parts-{uuid.uuid4().hex}")
    run.mkdir()
    changed = config.train.model_copy(update={"workers": workers, "name": run.name})
    train(config.model_copy(update={"train": changed}), wrap_report=timing_report(str(run)))
    parts: list[dict[str, float]] = [json.loads(path.read_text()) for path in run.iterdir()]
    assert len(parts) == workers
    return max(parts, key=lambda seconds: seconds["whole"])


def without_ray(config: Config, workers: int) -> float:
    """Return the seconds of a cycle in `workers` processes of one thread each, on random pairs in memory."""
    spawning = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="s2s-scaling-") as folder, spawning.Pool(workers) as pool:
        meeting = f"file://{folder}/meeting"
        return max(pool.starmap(_cycles, [(config, rank, workers, meeting) for rank in range(workers)], 1))


def _cycles(config: Config, rank: int, workers: int, meeting: str, warm: int = 2, cycles: int = 5) -> float:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=workers)
    torch.manual_seed(0)
    model = S2S(config.model).train()
    step = TrainingStep(model, config.loss, config.train)
    shares = [config.train.batch // workers] * workers
    shape = (2, shares[rank], 3, config.model.height, config.model.width)
    satellite, street = (model.normalise(images) for images in torch.randint(0, 256, shape, dtype=torch.uint8))
    for turn in range(warm + cycles):
        if turn == warm:
            started = time.perf_counter()
        step(satellite, street, shares=shares)
    return (time.perf_counter() - started) / cycles


def main() -> int:
    """Print a row for each arm, and the speed-up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--batch", type=int, default=16, help="the global batch of both arms")
    parser.add_argument("--steps", type=int, default=15, help="cycles of an epoch")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="change the preset: a.b=value")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="s2s-scaling-") as folder:
        places = [f"data.uri={folder}/data", f"train.storage={folder}/runs", "prepare.parallel=false"]
        pairs = [f"source.train_pairs={arguments.batch * arguments.steps + 1}", "source.test_pairs=2"]
        held_out = ["prepare.validation_fraction=0.001", "train.validate_every=2"]
        length = [f"train.batch={arguments.batch}", "train.epochs=2", "model.street_weights=random"]
        config = load_config(arguments.preset, [*places, *pairs, *held_out, *length, *arguments.overrides])
        pairs_of_epoch = prepare(config).splits["train"].count
        with ray_cluster(cpus=max(ARMS)):
            rounds = [{arm: slowest_worker(config, arm, folder) for arm in ARMS} for _ in range(arguments.repetitions)]
    print(f"{arguments.preset}, global batch {arguments.batch}, {pairs_of_epoch} pairs an epoch, one thread a worker")
    print("workers   s a cycle   networks   data wait   reduce   gather")
    for arm in ARMS:
        epochs = [one[arm] for one in rounds]
        middle = {part: statistics.median(epoch[part] for epoch in epochs) / arguments.steps for part in epochs[0]}
        networks = middle["whole"] - sum(middle[part] for part in PARTS)
        row = "   ".join(f"{value:8.3f}" for value in (middle["whole"], networks, *(middle[part] for part in PARTS)))
        print(f"{arm:7d}   {row}")
    ratios = [one[1]["whole"] / one[2]["whole"] for one in rounds]
    ratio = statistics.median(ratios)
    print(f"speed-up {ratio:.2f} x ({min(ratios):.2f} to {max(ratios):.2f}; goal 1.7 x): ", end="")
    print("met" if ratio >= 1.7 else "MISSED")
    alone = [{arm: without_ray(config, arm) for arm in ARMS} for _ in range(arguments.repetitions)]
    one, two = (statistics.median(times[arm] for times in alone) for arm in ARMS)
    print(f"without Ray: {one:.3f} and {two:.3f} s a cycle, {statistics.median(t[1] / t[2] for t in alone):.2f} x")
    return 0 if ratio >= 1.7 else 1


if __name__ == "__main__":
    raise SystemExit(main())

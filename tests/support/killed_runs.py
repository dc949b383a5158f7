"""Runs in processes of their own that may be killed: the plain trainer, one process a worker, over gloo.

As Ray Train does it, all workers are ended when one fails, and the run is started again. The processes are forked
from one that has imported PyTorch, so that starting one is cheap.
"""

from __future__ import annotations

import copy
import json
import logging
import multiprocessing
import os
import signal
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from s2s_ray.config import Config, load_config
from s2s_ray.training.checkpoint_store import SavedState
from s2s_ray.training.loop import Trainer
from s2s_ray.training.run import checkpoint_store, run_uri

KILLED = -signal.SIGKILL
STEPS = 3  # of an epoch of the narrow data set

Disturbance = Callable[[Trainer, int], None]
"""What is done to a worker's trainer before it begins: it gets the trainer and the worker's number."""

_context = multiprocessing.get_context("forkserver")
# the second is what an optimiser imports when it is made, and takes as long as the rest
_context.set_forkserver_preload(["s2s_ray.training.loop", "torch._dynamo"])


@dataclass(frozen=True)
class Outcome:
    """How the workers ended (0, an exit code, or `KILLED`), and what they logged."""

    codes: list[int]
    log: str

    @property
    def done(self) -> bool:
        return not any(self.codes)


def configured(settings: Sequence[str], storage: Path | str, **train: Any) -> Config:
    """The preset `tiny` with a test's settings and the run's storage; one worker, unless told otherwise."""
    text = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in ({"workers": 1} | train).items()
    }
    own = [f"train.{key}={value}" for key, value in text.items()]
    return load_config("tiny", [*settings, f"train.storage={storage}", *own])


def on_s3(config: Config, root: str, cache: Path) -> Config:
    """Return the same run with its data set and its checkpoints in a bucket."""
    data = config.data.model_copy(update={"uri": f"{root}/data", "cache_dir": str(cache)})
    train = config.train.model_copy(update={"storage": f"{root}/runs"})
    return config.model_copy(update={"data": data, "train": train})


def launch(config: Config, disturb: Disturbance | None = None) -> Outcome:
    """Train in `train.workers` processes until they are done or one has ended otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        workers = config.train.workers
        processes: list[BaseProcess] = [
            _context.Process(target=_work, args=(config.model_dump(mode="json"), rank, Path(folder), disturb))
            for rank in range(workers)
        ]
        for process in processes:
            process.start()
        try:
            left = list(processes)
            while left:
                wait([process.sentinel for process in left], timeout=120)
                ended = [process for process in left if process.exitcode is not None]
                assert ended, "no worker has ended in two minutes"
                left = [process for process in left if process not in ended]
                if any(process.exitcode for process in ended):
                    break
        finally:
            for process in processes:
                process.kill()
                process.join()
        logs = [(Path(folder) / f"{rank}.log").read_text() for rank in range(workers)]
        return Outcome([int(process.exitcode or 0) for process in processes], "".join(logs))


def _work(tree: dict[str, Any], rank: int, folder: Path, disturb: Disturbance | None) -> None:
    """One worker."""
    logging.basicConfig(filename=folder / f"{rank}.log", level=logging.INFO, force=True)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    multiprocessing.set_start_method("fork", force=True)  # of loader workers, as in any other process
    torch.set_num_threads(1)
    config = Config.from_tree(tree)
    if config.train.workers > 1:
        dist.init_process_group("gloo", f"file://{folder}/group", rank=rank, world_size=config.train.workers)
    try:
        trainer = Trainer(config)
        if disturb is not None:
            disturb(trainer, rank)
        trainer.fit()
    except Exception:
        logging.error("%s", traceback.format_exc())
        os._exit(1)


def die() -> None:
    """What a power cut does to this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def before_step(trainer: Trainer, step: int, act: Callable[[], object]) -> None:
    """Do something when so many steps are done, before the next is taken."""
    cycle = trainer.cycle

    def counted(*args: Any, **kwargs: Any) -> dict[str, float]:
        if trainer.global_step == step:
            act()
        return cycle(*args, **kwargs)

    counted.optimizers = cycle.optimizers  # type: ignore[attr-defined]
    trainer.cycle = counted  # type: ignore[assignment]


def _killed_at(trainer: Trainer, rank: int, step: int) -> None:
    before_step(trainer, step, die)


def killed_at(step: int) -> Disturbance:
    """Every worker is killed when so many steps are done; the checkpoint of the last is likely still being written."""
    return partial(_killed_at, step=step)


@dataclass(frozen=True)
class Ending:
    """All that a finished run leaves that must not depend on what happened to it."""

    history: list[dict[str, Any]]
    newest: SavedState

    @classmethod
    def of(cls, config: Config) -> Ending:
        newest = checkpoint_store(config).newest()
        assert newest is not None
        return cls(figures(newest.trainer["history"]), newest)

    def assert_same(self, other: Ending) -> None:
        """Equal to the bit: figures, weights, optimisers, mining, position and random state."""
        assert self.history == other.history
        assert self.newest.meta["step"] == other.newest.meta["step"]
        assert_equal(self.newest.model, other.newest.model)
        mine, theirs = copy.copy(self.newest.trainer), copy.copy(other.newest.trainer)
        mine["history"], theirs["history"] = self.history, other.history
        assert_equal(mine, theirs)


def figures(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A history without what depends on the machine."""
    return [{name: value for name, value in entry.items() if name != "pairs_per_second"} for entry in history]


def assert_equal(found: Any, expected: Any, where: str = "") -> None:
    """Trees of tensors that are the same to the bit."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_equal(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_equal(one, other, f"{where}[{number}]")
    else:
        assert found == expected, where


def logged_history(config: Config) -> list[dict[str, Any]]:
    """The history as the run's file has it."""
    from s2s_ray import storage

    history: list[dict[str, Any]] = storage.read_json(storage.join(run_uri(config), "history.json"))
    return figures(history)

"""The log of a run: progress lines, TensorBoard files and the history of its epochs."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from s2s_ray import storage
from s2s_ray.training.history import write_history
from s2s_ray.training.run import DIVERGED_FILE
from s2s_ray.training.trackers import Tracker

logger = logging.getLogger(__name__)

_PROTOCOL_RECALL = ".recall_at_1"
SHOWN = ("d_loss", "r_loss", "gan", "l1_weighted", "g_loss")


class Logbook:
    """The log of one run, kept by its first worker below the run's URI.

    It consists of `history.json`, `tensorboard/` and, if the latest attempt diverged, `diverged.json`. Trackers receive
    the same epochs.
    """

    def __init__(self, run: str, epochs: int, every_s: float, trackers: Sequence[Tracker] = ()) -> None:
        self.run = run
        self.epochs = epochs
        self.every_s = every_s
        self.trackers = trackers
        self._local = tempfile.TemporaryDirectory(prefix="s2s-tensorboard-")
        from tensorboardX import SummaryWriter  # of the extra `train`; monitoring reads runs without it

        self._events = SummaryWriter(self._local.name)
        self._started = self._last_line = time.monotonic()
        self._pairs = self._steps = 0

    def start(self) -> None:
        """Remove the divergence marker of an earlier attempt."""
        storage.delete(storage.join(self.run, DIVERGED_FILE))

    def diverged(self, reason: str) -> None:
        """Record why training cannot continue."""
        storage.write_json(storage.join(self.run, DIVERGED_FILE), {"reason": reason, "time": time.time()})

    def start_epoch(self) -> None:
        """Start counting pairs, steps and time."""
        self._started = self._last_line = time.monotonic()
        self._pairs = self._steps = 0

    def step(self, global_step: int, epoch: int, done: int, total: int, pairs: int, losses: dict[str, float]) -> None:
        """Record one cycle over `pairs` pairs, the `done`th of `total` in this epoch."""
        self._pairs += pairs
        self._steps += 1
        for name, value in losses.items():
            self._events.add_scalar(f"train/{name}", value, global_step)
        now = time.monotonic()
        if now - self._last_line >= self.every_s or done == total:
            self._last_line = now
            rate = self.pairs_per_second()
            left = (total - done + (self.epochs - epoch - 1) * total) * (now - self._started) / self._steps
            shown = " ".join(f"{name}={losses[name]:.4g}" for name in SHOWN if name in losses)
            logger.info(
                "epoch %d/%d step %d/%d %s %.1f pairs/s, about %s left",
                *(epoch + 1, self.epochs, done, total, shown, rate, _duration(left)),
            )

    def pairs_per_second(self) -> float:
        """Return the rate of this epoch so far, counted from the start of this process."""
        return self._pairs / max(time.monotonic() - self._started, 1e-9)

    def end_epoch(self, history: list[dict[str, Any]]) -> None:
        """Log the newest entry of the history and store all of it."""
        entry = history[-1]
        for name, value in entry.items():
            if isinstance(value, float):
                self._events.add_scalar(f"epoch/{name}", value, entry["step"])
        recall = entry.get("recall_at_1")
        if recall is not None:
            others = "".join(
                f"; {key.removesuffix(_PROTOCOL_RECALL)} {100 * value:.1f}%"
                for key, value in entry.items()
                if key.endswith(_PROTOCOL_RECALL)
            )
            figures = (entry["epoch"] + 1, 100 * recall, entry["gallery"], others)
            logger.info("epoch %d validation R@1 %.1f%% of %d%s", *figures)
        self._events.flush()
        write_history(self.run, history)
        for path in sorted(Path(self._local.name).iterdir()):
            storage.upload(path, storage.join(self.run, "tensorboard", path.name))
        for tracker in self.trackers:
            tracker.epoch(entry)

    def close(self, *, complete: bool = True, drives: bool = True) -> None:
        """End this attempt.

        Args:
            complete: whether the run is.
            drives: whether this process drives the run. If not, the trackers are left to the one that does.
        """
        for tracker in self.trackers if drives else ():
            tracker.close(complete=complete)
        self._events.close()
        self._local.cleanup()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"

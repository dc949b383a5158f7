"""The checkpoints of a run: written in the background, verified when read, pruned to the newest and the best.

`RUN/checkpoints/STEP/` holds `meta.json`, `model.safetensors`, `trainer.pt`, and the manifest with the checksums, which
is written last, after the others were read back. This store is the only authority on what is saved; Ray Train carries
metrics alone.
"""

from __future__ import annotations

import copy
import logging
import pickle
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2s_ray import storage
from s2s_ray.config.protocol import RECALL, direction
from s2s_ray.errors import CheckpointError, DamagedError, InputError, NotFoundError, StateError
from s2s_ray.model.checkpoint_meta import MODEL_FILE, read_meta

if TYPE_CHECKING:  # PyTorch takes seconds to import, and a process that only looks for checkpoints needs none of it
    from torch import Tensor

logger = logging.getLogger(__name__)

TRAINER_FILE = "trainer.pt"


@dataclass(frozen=True)
class SavedState:
    """A checkpoint as it was read: its URI, its `meta`, and the states of the model and the trainer."""

    uri: str
    meta: dict[str, Any]
    model: dict[str, Tensor]
    trainer: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run below `root` (`RUN/checkpoints`).

    A *finished* checkpoint has its manifest; a *sound* one is finished and has passed its checksums in this process,
    when it was written or read. One is *damaged* if it fails them twice in a row; that is logged once, and read again
    before anything is deleted. Nothing is deleted while no checkpoint is sound, and none that a newer version wrote.
    """

    def __init__(self, root: str, keep: int = 2) -> None:
        self.root = root
        self.keep = keep
        self.stored_at: float | None = None  # Unix time of the newest checkpoint that this object has written
        self.require_lease: Callable[[], None] = lambda: None
        """Called before a checkpoint is stored or deleted; raises an error if another process drives the run."""
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._sound: set[int] = set()
        self._damaged: set[int] = set()
        self._scores: dict[int, float | None] = {}
        self._unknown: set[int] = set()  # sound, with metadata that this version cannot read
        self._logged: set[int] = set()
        self._committed: int | None = None

    @property
    def committed(self) -> str | None:
        """The newest checkpoint that this store has written or read completely; None before the first."""
        return None if self._committed is None else self.uri(self._committed)

    def uri(self, step: int) -> str:
        """Return the URI of the checkpoint of a step, which need not exist."""
        return storage.join(self.root, f"{step:08d}")

    def steps(self) -> list[int]:
        """Return the steps of the finished checkpoints, oldest first."""
        return self._finished(self._started())

    def best(self) -> int | None:
        """Return the sound step that is best by `train.best_metric`, the later of equals; None if none has it."""
        while True:
            steps = self.steps()
            best = self._best_of(steps)
            # A run that goes on may have replaced all of them while they were read.
            if best is not None or set(self.steps()) <= set(steps):
                return best

    def newest(self) -> SavedState | None:
        """Return the newest checkpoint whose files all pass their checksums, None if none was ever finished.

        Raises:
            CheckpointError: all checkpoints are damaged, or a newer version wrote the newest.
            StorageError: the store cannot be reached; this never falls back to an older checkpoint.
        """
        failed: set[int] = set()
        # A run that goes on may replace checkpoints while they are read: those that are there now are tried as well.
        while steps := [step for step in self.steps() if step not in failed]:
            for step in reversed(steps):
                try:
                    return self.load(step)
                except (DamagedError, NotFoundError) as error:
                    failed.add(step)
                    self._log_damaged(step, error)
        if failed:
            names = ", ".join(f"{step:08d}" for step in sorted(failed))
            raise CheckpointError(
                f"all checkpoints below {self.root} are damaged ({names}): restore one, or choose another "
                "train.name to start a new run"
            )
        return None

    def load(self, step: int) -> SavedState:
        """Read a checkpoint with its trainer's state. Raises StorageError if a file is missing or damaged."""
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        uri = self.uri(step)
        with tempfile.TemporaryDirectory() as folder:
            directory = storage.fetch(uri, Path(folder) / "checkpoint")
            self._sound.add(step)
            self._committed = step
            try:
                model = load_file(directory / MODEL_FILE)
                trainer = torch.load(directory / TRAINER_FILE, map_location="cpu", weights_only=True)
            except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError) as error:
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                raise CheckpointError(f"checkpoint {uri} is undamaged but cannot be read: {reason}") from None
            return SavedState(uri, read_meta(str(directory)), model, trainer)

    def save(self, step: int, model: dict[str, Tensor], trainer: dict[str, Any], meta: dict[str, Any]) -> None:
        """Wait until the previous checkpoint is stored, copy the state, and write it in the background.

        Memory therefore never holds more than one copy of the state. An error of the previous write is raised here or
        by `flush`.
        """
        self.flush()
        model = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.items()}
        self._pending = self._writer.submit(self._write, step, model, copy.deepcopy(trainer), meta)

    def flush(self) -> None:
        """Wait until everything passed to `save` is stored."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def keep_best(self) -> None:
        """Delete all checkpoints but the best, once the run is complete; the newest sound one if none was validated."""
        self._keep(newest=0)

    def _started(self) -> list[int]:
        """Return the steps of all checkpoints, finished or not, oldest first."""
        return sorted(int(name) for name in storage.list_names(self.root) if name.isdigit())

    def _finished(self, steps: list[int]) -> list[int]:
        return [step for step in steps if storage.is_complete(self.uri(step))]

    def _best_of(self, steps: list[int]) -> int | None:
        scored = [(score, step) for step in steps if (score := self._score(step)) is not None]
        return next((step for _, step in sorted(scored, reverse=True) if self._is_sound(step)), None)

    def _write(self, step: int, model: dict[str, Tensor], trainer: dict[str, Any], meta: dict[str, Any]) -> None:
        import torch

        from s2s_ray.model.checkpoint import save_state

        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            save_state(model, meta, directory)
            torch.save(trainer, directory / TRAINER_FILE)
            self.require_lease()
            try:
                storage.publish(directory, self.uri(step), replace=True)  # one from before the run resumed
            finally:
                self._forget(step)
        self._sound.add(step)
        self._committed = step
        self.stored_at = time.time()
        self._keep(self.keep)

    def _keep(self, newest: int) -> None:
        """Keep the best checkpoint and the newest sound ones, at least one in all, and delete the others.

        Deleted is also what a killed upload left before the newest that is kept. A damaged checkpoint never displaces a
        usable one, and without a sound one to keep, nothing is deleted. The manifest is deleted first, so that a
        checkpoint that is partly deleted does not count as finished.
        """
        self._damaged.clear()
        started = self._started()
        finished = self._finished(started)
        best = self._best_of(finished)
        kept = self._newest_sound(max(newest, 1) if best is None else newest, finished)
        kept |= set() if best is None else {best}
        for step in started:
            if kept and step not in kept | self._unknown and (step in finished or step < max(kept)):
                self.require_lease()
                storage.delete(storage.join(self.uri(step), storage.MANIFEST))
                storage.delete(self.uri(step))
                self._forget(step)

    def _newest_sound(self, count: int, steps: list[int]) -> set[int]:
        """Return the newest `count` of the sound steps that this version can read, or all if they are fewer."""
        found: set[int] = set()
        for step in reversed(steps):
            if len(found) < count and self._is_sound(step) and step not in self._unknown:
                found.add(step)
        return found

    def _forget(self, step: int) -> None:
        """Forget what is known of a checkpoint that was deleted or replaced, perhaps only in part."""
        self._scores.pop(step, None)
        for steps in (self._sound, self._damaged, self._unknown, self._logged):
            steps.discard(step)

    def _is_sound(self, step: int) -> bool:
        """Return whether a finished checkpoint passes its checksums. Raises StorageError if it cannot be read."""
        if step not in self._sound | self._damaged:
            try:
                self._verify(step)
                self._sound.add(step)
            except (DamagedError, NotFoundError) as error:
                self._damaged.add(step)
                self._log_damaged(step, error)
            except StateError as error:
                self._set_aside(step, error)
        return step in self._sound

    def _verify(self, step: int) -> None:
        """Read all files of a checkpoint, twice if the first time fails: one bad read may be the network's fault."""
        try:
            storage.check(self.uri(step))
        except (DamagedError, NotFoundError):
            storage.check(self.uri(step))

    def _score(self, step: int) -> float | None:
        """Return what the best checkpoint has most of: the validation metric that its run is to be chosen by.

        It is negative for a metric that goes down, and None for a checkpoint that was not validated, is damaged or was
        written by a newer version.
        """
        if step not in self._scores:
            try:
                meta = read_meta(self.uri(step))
            except StateError as error:
                self._set_aside(step, error)
                return None
            except (DamagedError, NotFoundError) as error:
                self._sound.discard(step)
                if self._is_sound(step):
                    self._set_aside(step, error)
                return None
            try:
                self._scores[step] = validation_score(meta)
            except InputError as error:  # a metric of a newer version
                self._set_aside(step, error)
                return None
            self._unknown.discard(step)
        return self._scores[step]

    def _set_aside(self, step: int, error: Exception) -> None:
        """Keep a checkpoint whose metadata cannot be read: a newer version wrote it, or it is damaged."""
        if step not in self._unknown:
            logger.warning("checkpoint %s is kept, but not used: %s", self.uri(step), error)
        self._unknown.add(step)

    def _log_damaged(self, step: int, error: Exception) -> None:
        if step not in self._logged:
            logger.warning("checkpoint %s is damaged and not used: %s", self.uri(step), error)
        self._logged.add(step)


def validation_score(meta: Mapping[str, Any]) -> float | None:
    """Return a checkpoint's figure of its run's `train.best_metric`, negative if it goes down; None without one.

    Raises:
        InputError: this version does not know the metric.
    """
    metric = ((meta.get("config") or {}).get("train") or {}).get("best_metric", RECALL)
    value = (meta.get("metrics") or {}).get(metric)
    if value is None:
        return None
    return float(value) if direction(metric) == "maximize" else -float(value)

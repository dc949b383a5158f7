"""A run's checkpoints: written in the background, read back verified, pruned to the newest and the best.

`RUN/checkpoints/STEP/` holds `meta.json`, `model.safetensors`, `trainer.pt` and the manifest with checksums,
written last. This store is the only authority on what is saved; Ray Train carries metrics alone.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from s2s_ray import storage
from s2s_ray.checkpoint import MODEL_FILE, read_meta, save_state

logger = logging.getLogger(__name__)

TRAINER_FILE = "trainer.pt"


@dataclass(frozen=True)
class SavedState:
    """A checkpoint read back whole: where it is, its `meta`, the model's and the trainer's state."""

    uri: str
    meta: dict[str, Any]
    model: dict[str, Tensor]
    trainer: dict[str, Any]


class CheckpointStore:
    """Checkpoints of one run below `root` (`RUN/checkpoints`)."""

    def __init__(self, root: str, keep: int = 2) -> None:
        self.root = root
        self.keep = keep
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def uri(self, step: int) -> str:
        """Where the checkpoint of a step is, or would be."""
        return storage.join(self.root, f"{step:08d}")

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, oldest first."""
        names = [name for name in storage.list_names(self.root) if name.isdigit()]
        return sorted(int(name) for name in names if storage.is_complete(storage.join(self.root, name)))

    def best(self) -> int | None:
        """The step with the highest validation recall (the later of equals), None where none was validated."""
        scored = [(recall, step) for step in self.steps() if (recall := self._recall(step)) is not None]
        return max(scored)[1] if scored else None

    def newest(self) -> SavedState | None:
        """The newest checkpoint whose files all pass their checksums; damaged ones are named in the log."""
        for step in reversed(self.steps()):
            try:
                return self.load(step)
            except storage.StorageError as error:
                logger.warning("checkpoint %s is damaged and not used: %s", self.uri(step), error)
        return None

    def load(self, step: int) -> SavedState:
        """Read a checkpoint with its trainer's state. Raises StorageError for a missing or damaged file."""
        uri = self.uri(step)
        with tempfile.TemporaryDirectory() as folder:
            directory = storage.fetch(uri, Path(folder) / "checkpoint")
            trainer = torch.load(directory / TRAINER_FILE, map_location="cpu", weights_only=True)
            return SavedState(uri, read_meta(str(directory)), load_file(directory / MODEL_FILE), trainer)

    def save(self, step: int, model: dict[str, Tensor], trainer: dict[str, Any], meta: dict[str, Any]) -> None:
        """Copy the state now and write it in the background, after the one before is written.

        A fault of the one before is raised here or by `flush`.
        """
        model = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.items()}
        trainer = copy.deepcopy(trainer)
        self.flush()
        self._pending = self._writer.submit(self._write, step, model, trainer, meta)

    def flush(self) -> None:
        """Wait until everything given to `save` is stored."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def keep_best(self) -> None:
        """Delete all but the best: the run is over."""
        self._delete_all_but({self.best()})

    def _write(self, step: int, model: dict[str, Tensor], trainer: dict[str, Any], meta: dict[str, Any]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            save_state(model, meta, directory)
            torch.save(trainer, directory / TRAINER_FILE)
            storage.publish(directory, self.uri(step))
        self._prune()

    def _prune(self) -> None:
        self._delete_all_but({*self.steps()[-self.keep :], self.best()})

    def _delete_all_but(self, kept: set[int | None]) -> None:
        """The manifest goes first, so none is ever half there."""
        for step in self.steps():
            if step not in kept:
                storage.delete(storage.join(self.uri(step), storage.MANIFEST))
                storage.delete(self.uri(step))

    def _recall(self, step: int) -> float | None:
        recall = read_meta(self.uri(step)).get("metrics", {}).get("recall_at_1")
        return None if recall is None else float(recall)

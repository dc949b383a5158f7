"""A run's checkpoints: written in the background, read back verified, pruned to the newest and the best.

`RUN/checkpoints/STEP/` holds `meta.json`, `model.safetensors`, `trainer.pt` and the manifest with checksums,
written last, after the others were read back. This store is the only authority on what is saved; Ray Train carries
metrics alone.
"""

from __future__ import annotations

import copy
import logging
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from s2s_ray import storage
from s2s_ray.errors import CheckpointError, DamagedError, NotFoundError
from s2s_ray.model.checkpoint import save_state
from s2s_ray.model.checkpoint_meta import (
    MODEL_FILE,
    read_meta,
)

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
    """Checkpoints of one run below `root` (`RUN/checkpoints`).

    A *finished* checkpoint has its manifest; a *sound* one is finished and has passed its checksums in this process,
    when it was written or read. Damaged ones are named in the log, once.
    """

    def __init__(self, root: str, keep: int = 2) -> None:
        self.root = root
        self.keep = keep
        self.stored_at: float | None = None  # seconds since 1970, of the newest one that this object has written
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._sound: dict[int, bool] = {}
        self._committed: int | None = None

    @property
    def committed(self) -> str | None:
        """The newest checkpoint that this store has written or read whole; None before there is one."""
        return None if self._committed is None else self.uri(self._committed)

    def uri(self, step: int) -> str:
        """Where the checkpoint of a step is, or would be."""
        return storage.join(self.root, f"{step:08d}")

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, oldest first."""
        return [step for step in self._begun() if storage.is_complete(self.uri(step))]

    def best(self) -> int | None:
        """The sound step with the highest validation recall (the later of equals), None where none was validated."""
        scored = [(recall, step) for step in self.steps() if (recall := self._recall(step)) is not None]
        return next((step for _, step in sorted(scored, reverse=True) if self._is_sound(step)), None)

    def newest(self) -> SavedState | None:
        """The newest checkpoint whose files all pass their checksums; None where none was ever finished.

        Raises:
            CheckpointError: there are checkpoints and all are damaged.
            StorageError: the store cannot be reached. An older checkpoint is not taken for that.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.load(step)
            except (DamagedError, NotFoundError) as error:
                self._found_damaged(step, error)
        if steps:
            raise CheckpointError(
                f"all checkpoints below {self.root} are damaged ({', '.join(f'{step:08d}' for step in steps)}): "
                "restore one, or choose another train.name to start anew"
            )
        return None

    def load(self, step: int) -> SavedState:
        """Read a checkpoint with its trainer's state. Raises StorageError for a missing or damaged file."""
        uri = self.uri(step)
        with tempfile.TemporaryDirectory() as folder:
            directory = storage.fetch(uri, Path(folder) / "checkpoint")
            self._sound[step], self._committed = True, step
            trainer = torch.load(directory / TRAINER_FILE, map_location="cpu", weights_only=True)
            return SavedState(uri, read_meta(str(directory)), load_file(directory / MODEL_FILE), trainer)

    def save(self, step: int, model: dict[str, Tensor], trainer: dict[str, Any], meta: dict[str, Any]) -> None:
        """Wait until the one before is stored, copy the state, and write it in the background.

        So there is never more than one copy of the state. A fault of the one before is raised here or by `flush`.
        """
        self.flush()
        model = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.items()}
        self._pending = self._writer.submit(self._write, step, model, copy.deepcopy(trainer), meta)

    def flush(self) -> None:
        """Wait until everything given to `save` is stored."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def keep_best(self) -> None:
        """Delete all but the best: the run is over."""
        self._delete_all_but({self.best()})

    def _begun(self) -> list[int]:
        return sorted(int(name) for name in storage.list_names(self.root) if name.isdigit())

    def _write(self, step: int, model: dict[str, Tensor], trainer: dict[str, Any], meta: dict[str, Any]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            save_state(model, meta, directory)
            torch.save(trainer, directory / TRAINER_FILE)
            storage.publish(directory, self.uri(step))
        self._sound[step], self._committed = True, step
        self.stored_at = time.time()
        self._prune()

    def _prune(self) -> None:
        """Keep the newest sound ones and the best. A damaged one never takes the place of one that can be used."""
        kept: set[int | None] = {self.best()}
        wanted = self.keep
        for step in reversed(self.steps()):
            if wanted and self._is_sound(step):
                kept.add(step)
                wanted -= 1
        self._delete_all_but(kept)

    def _delete_all_but(self, kept: set[int | None]) -> None:
        """The manifest goes first, so none is ever half there. What a killed upload left goes too."""
        finished = self.steps()
        for step in self._begun():
            if step not in kept and (step in finished or step < max(finished, default=0)):
                storage.delete(storage.join(self.uri(step), storage.MANIFEST))
                storage.delete(self.uri(step))

    def _is_sound(self, step: int) -> bool:
        if step not in self._sound:
            try:
                storage.check(self.uri(step))
                self._sound[step] = True
            except (DamagedError, NotFoundError) as error:
                self._found_damaged(step, error)
        return self._sound[step]

    def _found_damaged(self, step: int, error: Exception) -> None:
        self._sound[step] = False
        logger.warning("checkpoint %s is damaged and not used: %s", self.uri(step), error)

    def _recall(self, step: int) -> float | None:
        """What is damaged has none: `_is_sound` tells."""
        try:
            recall = read_meta(self.uri(step)).get("metrics", {}).get("recall_at_1")
        except (DamagedError, NotFoundError, CheckpointError) as error:
            self._found_damaged(step, error)
            return None
        return None if recall is None else float(recall)

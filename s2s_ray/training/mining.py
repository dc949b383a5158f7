"""The schedule of hard-negative mining, a fine-tuning step once the loss has converged.

Source: supplement, section B; docs/model.md, "Losses".
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from s2s_ray.config import MiningConfig


@dataclass
class MiningSchedule:
    """The percentage of triplets discarded in each epoch. A checkpoint keeps all fields except `config`.

    `epoch_ended` receives the metrics of every epoch; a plateau is `patience` epochs without a relative improvement of
    `min_gain` over the best so far.
    """

    config: MiningConfig
    best: float | None = None
    epochs_without_gain: int = 0
    started_at: int | None = None

    def discard(self, epoch: int) -> float:
        """Return the percentage of triplets to discard in a 0-based epoch; 0 before mining starts."""
        start = self.config.start if isinstance(self.config.start, int) else self.started_at
        if start is None or epoch < start:
            return 0.0
        stage = (epoch - start) // self.config.stage_epochs
        return self.config.discard[min(stage, len(self.config.discard) - 1)]

    def epoch_ended(self, epoch: int, triplet_loss: float, recall: float | None) -> None:
        """Detect the plateau. `recall` is None if the epoch had no validation."""
        if self.config.start != "plateau" or self.started_at is not None:
            return
        score = recall if self.config.metric == "recall" else -triplet_loss
        if score is None:
            return
        if self.best is None or score > self.best + self.config.min_gain * abs(self.best):
            self.best, self.epochs_without_gain = score, 0
        else:
            self.epochs_without_gain += 1
            if self.epochs_without_gain >= self.config.patience:
                self.started_at = epoch + 1

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a checkpoint keeps."""
        state = asdict(self)
        del state["config"]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.best, self.epochs_without_gain = state["best"], state["epochs_without_gain"]
        self.started_at = state["started_at"]

"""Ray Train's trainer for PyTorch without helpers that have nothing to do."""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchTrainer

from s2s_ray.runtime.ray_internals import without_idle_helpers


class QuietTorchTrainer(TorchTrainer):
    """Ray Train's trainer, see `without_idle_helpers`."""

    def _create_default_callbacks(self, *args: Any, **kwargs: Any) -> list[Any]:
        callbacks = super()._create_default_callbacks(*args, **kwargs)  # type: ignore[misc]  # mypy sees the old class
        return without_idle_helpers(callbacks)

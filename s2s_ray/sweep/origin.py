"""`sweep.yaml`: the start of a sweep, which a later start must match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from s2s_ray.config import TuneConfig
from s2s_ray.errors import SweepError
from s2s_ray.trials.claim import DATA_FREE, TRAIN_FREE, Origin


class SweepOrigin(Origin):
    """The data set and the configuration with which a sweep was started; the content of `sweep.yaml`."""

    ERROR = SweepError
    FILE = "sweep.yaml"
    KIND = "sweep"
    SECTION = "tune"
    COMPARED = ("model", "loss", "mining", "augmentation", "train", "data", "evaluation", "tune")
    FREE: ClassVar[Mapping[str, Sequence[str]]] = {
        "tune": ("storage", "trials", "concurrent", "max_failures", "registry", "study"),
        "train": TRAIN_FREE,
        "data": DATA_FREE,
        "evaluation": ("split", "batch", "chunk", "radius_m", "lpips", "fid", "weights", "gallery_rows", "seeds"),
    }

    def study(self, config: TuneConfig) -> str:
        """Return the name of the sweep's Optuna study. In a database, sweeps of one name have a study each."""
        own_file = config.study is None or not self.nonce  # earlier versions wrote no nonce
        return config.name if own_file else f"{config.name}-{self.nonce[:8]}"

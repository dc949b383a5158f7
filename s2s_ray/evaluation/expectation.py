"""The expected recall of a checkpoint, measured again."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from pydantic import ValidationError

from s2s_ray.config import EvaluationConfig
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.places import places_of
from s2s_ray.errors import CheckpointError, ExpectationError, faults_of
from s2s_ray.evaluation.descriptors import embed_dataset
from s2s_ray.evaluation.recall import Nearby, RecallResult, recall_at_k, require_finite
from s2s_ray.geo.views import ViewGeometry
from s2s_ray.model.s2s import S2S

log = logging.getLogger(__name__)

KEYS = {"r1": "1", "r5": "5", "r10": "10", "r1%": "1%"}
_TREATMENT = ("panorama_rows", "polar_size", "polar_contrast", "resize")


@dataclass(frozen=True, slots=True)
class Expectation:
    """A recall that a checkpoint should reach: a key of `KEYS` and a percentage."""

    key: str
    percent: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse an expectation such as `r1=92.5`. Raises ExpectationError."""
        key, _, number = text.lower().partition("=")
        try:
            percent = float(number.removesuffix("%"))
        except ValueError:
            percent = math.nan
        if key not in KEYS or not 0 <= percent <= 100:
            raise ExpectationError(
                f"--expect {text!r}: expected one of {', '.join(KEYS)} and a recall in percent, such as r1=92.5"
            )
        return cls(key, percent)

    def missed(self, result: RecallResult, tolerance: float) -> str | None:
        """Return a message if the measured recall is more than `tolerance` points lower, else None."""
        measured = 100 * result.recall[KEYS[self.key]]
        if measured >= self.percent - tolerance:
            return None
        return (
            f"{self.key} is {measured:.2f}%, {self.percent - measured:.2f} points below the expected "
            f"{self.percent:g}% (tolerance {tolerance:g})"
        )


def measure_recall(
    model: S2S, dataset: PairDataset, config: EvaluationConfig, device: torch.device | str
) -> RecallResult:
    """Measure the street-to-satellite recall of a split by the configured protocol, as `evaluate` does."""
    found = embed_dataset(model, dataset, config.batch, device)
    for name, rows in (("street", found.street), ("satellite", found.satellite)):
        require_finite(rows, name, dataset.ids)
    places = places_of(dataset)
    nearby = None if config.radius_m is None else Nearby(places, places, config.radius_m)
    return recall_at_k(found.street, found.satellite, nearby=nearby, chunk=config.chunk)


def check_geometry(uri: str, meta: Mapping[str, Any], found: ViewGeometry) -> None:
    """Log a warning for each way in which a data set treats images unlike the one a checkpoint was trained on.

    Raises:
        CheckpointError: the metadata's `dataset.geometry` is damaged.
    """
    stored = (meta.get("dataset") or {}).get("geometry")
    if stored is None:
        return
    try:
        trained = ViewGeometry.parse(stored)
    except (ValidationError, TypeError) as error:
        faults = faults_of(error) if isinstance(error, ValidationError) else str(error)
        raise CheckpointError(f"checkpoint {uri}: dataset.geometry={stored!r} is damaged ({faults})") from None
    for key in _TREATMENT:
        if getattr(trained, key) != getattr(found, key):
            log.warning(
                "checkpoint %s was trained with %s=%s, the data set has %s", uri, key, getattr(trained, key),
                getattr(found, key),
            )  # fmt: skip

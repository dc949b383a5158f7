"""The means of an epoch's losses."""

from __future__ import annotations

from typing import Any

RETRIEVAL = ("r_loss", "ret_weighted", "r_grad_norm")  # undefined for a batch without a triplet


class EpochMeans:
    """Sums over the pairs of an epoch so far. Retrieval losses omit batches without a triplet, which are counted."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}

    def add(self, losses: dict[str, float], pairs: int) -> None:
        """Add the losses of a batch."""
        no_triplet = losses["kept"] == 0
        sums = {"pairs": float(pairs), "batches_without_triplets": float(no_triplet)}
        sums["pairs_with_triplets"] = 0.0 if no_triplet else float(pairs)
        sums |= {name: value * pairs for name, value in losses.items()}
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def result(self) -> dict[str, Any]:
        """Return the means over the epoch's pairs, and `batches_without_triplets`."""
        sums = dict(self._sums)
        pairs, with_triplets = sums.pop("pairs"), max(sums.pop("pairs_with_triplets"), 1.0)
        skipped = sums.pop("batches_without_triplets")
        means = {name: total / (with_triplets if name in RETRIEVAL else pairs) for name, total in sums.items()}
        return {**means, "batches_without_triplets": skipped}

    def state_dict(self) -> dict[str, float]:
        """Return the sums, which a checkpoint in the middle of an epoch keeps."""
        return dict(self._sums)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore the state of a checkpoint."""
        self._sums = dict(state)

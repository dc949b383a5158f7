"""The global batch of a training cycle, and the pieces in which a worker computes its share of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from s2s_ray.model.retrieval import visible


@dataclass(frozen=True)
class GlobalBatch:
    """The batch that the workers share: each worker's number of pairs, the negatives and the mining percentage."""

    shares: Sequence[int]
    negatives: Tensor | None
    discard: float
    seen: int | None = None
    """Pixels of all street views that were seen; None: all."""

    @property
    def pairs(self) -> int:
        """The pairs of all workers."""
        return sum(self.shares)


@dataclass(frozen=True)
class Piece:
    """Pairs of this worker with the output of G, which has a graph only if these are all pairs of the worker.

    `satellite` and `street`, of which `shown` was seen, are the aligned pairs that synthesis trains on; `query`, of
    which `seen` was seen, and `reference` are the views that retrieval compares, and `features` those of `reference`.
    Before G has run, and without a generator (`retrieval_only`), `fake` and `features` are empty.
    """

    satellite: Tensor
    street: Tensor
    shown: Tensor | None
    query: Tensor
    seen: Tensor | None
    reference: Tensor
    fake: Tensor
    features: Tensor

    @property
    def aligned(self) -> bool:
        """True if retrieval compares the satellite view that synthesis starts from."""
        return self.reference is self.satellite

    @classmethod
    def split(
        cls,
        satellite: Tensor,
        street: Tensor,
        shown: Tensor | None,
        query: tuple[Tensor, Tensor | None] | None,
        reference: Tensor | None,
        size: int | None,
    ) -> list[Piece]:
        """Return pieces of `size` pairs, or one of all pairs, before G has run; arguments as of `TrainingStep`."""
        asked, seen = (None, shown) if query is None else (visible(*query), query[1])
        street = visible(street, shown)
        size = size or max(1, len(satellite))
        pieces = []
        for rows in (slice(first, first + size) for first in range(0, max(1, len(satellite)), size)):
            polar, panorama, mask = satellite[rows], street[rows], None if shown is None else shown[rows]
            views = panorama if asked is None else asked[rows]
            around = polar if reference is None else reference[rows]
            pieces.append(
                cls(polar, panorama, mask, views, None if seen is None else seen[rows], around, polar[:0], polar[:0])
            )
        return pieces

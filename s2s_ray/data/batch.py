"""Pairs as training and evaluation read them, one by one and in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from s2s_ray.data.augmentation import Draw, Draws


@dataclass(frozen=True, slots=True)
class Sample:
    """One pair: `polar` and `street` are 3 H W, uint8 RGB; `index` is its position in the split.

    Attributes:
        seen: what the panorama shows, bool H W; None: all of it.
        tile: the raw tile with its margin, uint8 3 S S, for a reference off its centre; None if none is needed.
        draw: the variation of the pair in an epoch; None: only the mirroring that the images have already.
    """

    polar: Tensor
    street: Tensor
    index: int
    seen: Tensor | None = None
    tile: Tensor | None = None
    draw: Draw | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """B pairs: `polar` and `street` are B 3 H W, uint8 RGB; `index` is B, int64. B may be 0.

    The memory of the images is laid out as B H W 3.

    Attributes:
        seen: what the panoramas show, bool B H W; None: all of them.
        tiles: raw tiles with their margins, uint8 B 3 S S; None if none are needed.
        draws: the variations of the pairs; None: none.
    """

    polar: Tensor
    street: Tensor
    index: Tensor
    seen: Tensor | None = None
    tiles: Tensor | None = None
    draws: Draws | None = None

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device; a copy of pinned memory to a GPU may still be in progress."""
        return self._each(lambda part: part.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; DataLoader's `pin_memory` calls this."""
        return self._each(lambda part: part.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(
            change(self.polar),
            change(self.street),
            change(self.index),
            None if self.seen is None else change(self.seen),
            None if self.tiles is None else change(self.tiles),
            None if self.draws is None else self.draws.each(change),
        )


def collate(samples: Sequence[Sample], size: tuple[int, int] | None = None) -> Batch:
    """Combine samples into a batch.

    No samples (a short batch divided among many ranks) give an empty batch, which needs `size`, its rows and columns.
    """
    if not samples:
        assert size is not None, "an empty batch needs the size of its images"
        empty = torch.empty((0, 3, *size), dtype=torch.uint8)
        return Batch(empty, empty.clone(), torch.empty(0, dtype=torch.int64))
    tiles = [sample.tile for sample in samples if sample.tile is not None]
    draws = [sample.draw for sample in samples if sample.draw is not None]
    return Batch(
        _joined([sample.polar for sample in samples]),
        _joined([sample.street for sample in samples]),
        torch.tensor([sample.index for sample in samples], dtype=torch.int64),
        _seen([sample.seen for sample in samples], samples[0].street),
        _joined(tiles) if tiles else None,
        Draws.of(draws) if draws else None,
    )


def _seen(masks: Sequence[Tensor | None], like: Tensor) -> Tensor | None:
    """Stack masks as B H W, where None shows everything; None if all are None."""
    if all(mask is None for mask in masks):
        return None
    everything = torch.ones(like.shape[-2:], dtype=torch.bool)
    return torch.stack([everything if mask is None else mask for mask in masks])


def _joined(images: Sequence[Tensor]) -> Tensor:
    """Stack 3 H W images as N 3 H W without changing the memory layout in which they were decoded, H W 3.

    Rearranging them would take half as long as decoding them.
    """
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)

"""The best hypothesis of each tile: a query may have several headings, and a tile several centres."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from s2s_ray.evaluation.rows import Rows

AT_A_TIME = 4_000_000
"""Distances that are in memory at a time, in float64."""


class Best(NamedTuple):
    """For each of B queries and M tiles: the least squared distance (float64 B M), and where it is (int64 B M each)."""

    distances: Tensor
    headings: Tensor
    centres: Tensor


@torch.inference_mode()
def best_hypotheses(queries: Tensor, gallery: Rows, centres: int = 1) -> Best:
    """Return the closest heading and centre of each tile for each query; the first ones if several are equally close.

    Args:
        queries: B T D, unit descriptors of B panoramas at T headings each.
        gallery: M*C D, unit descriptors of M tiles at C centres each, tile after tile.
        centres: C.
    """
    batch, headings, size = queries.shape
    tiles = len(gallery) // centres
    assert tiles * centres == len(gallery), (len(gallery), centres)
    flat = queries.reshape(-1, size).double()
    squares = flat.square().sum(1)[:, None]
    step = max(1, AT_A_TIME // max(1, batch * headings * centres))
    parts = []
    for first in range(0, tiles, step):
        rows = gallery[first * centres : min(first + step, tiles) * centres].double()
        distances = torch.addmm(squares + rows.square().sum(1)[None], flat, rows.T, alpha=-2)
        over_headings, heading = distances.view(batch, headings, -1, centres).min(dim=1)
        least, centre = over_headings.min(dim=2)
        parts.append((least, heading.gather(2, centre[..., None])[..., 0], centre))
    return Best(*(torch.cat(part, dim=1) for part in zip(*parts, strict=True)))

"""Parts of what pictures show: the arc of the horizon that is seen, and windows within it."""

from __future__ import annotations

import torch
from torch import Tensor


def extent(seen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the shortest arc of the horizon that holds all that each picture shows.

    Args:
        seen: bool B H W.

    Returns: its first column and its number of columns, int64 B each, counted around the horizon; 0 and W if nothing
    or all is seen.
    """
    width = seen.shape[-1]
    columns = seen.any(1)
    numbers = torch.arange(2 * width, device=seen.device)
    # the next seen column from each one on, around the horizon
    ahead = torch.where(columns.repeat(1, 2), numbers, 3 * width).flip(1).cummin(1).values.flip(1)
    steps = torch.where(columns, ahead[:, 1 : width + 1] - numbers[:width], 0)
    longest, last = steps.max(1)
    first = ahead.gather(1, last[:, None] + 1)[:, 0] % width
    whole = longest <= 1
    return torch.where(whole, 0, first), torch.where(whole, width, width + 1 - longest)


def window(seen: Tensor, drawn: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return a window of each picture that shows a part of what is seen, and never nothing.

    A picture of the whole horizon is shown from the drawn column on. Of another one the window lies within the arc that
    is seen, all of it if that is no wider.

    Args:
        seen: bool B H W.
        drawn: a random column of each, int64 B in [0, W).
        columns: columns that are shown, int64 B.

    Returns: the first column and the number of columns of the windows, int64 B each.
    """
    width = seen.shape[-1]
    start, length = extent(seen)
    shown = torch.minimum(columns, length)
    first = torch.where(length == width, drawn, start + drawn * (length - shown + 1) // width) % width
    empty = ~(within(first, shown, width) & seen.any(1)).any(1)  # between two parts that are seen
    return torch.where(empty, start, first), torch.where(empty, length, shown)


def within(first: Tensor, shown: Tensor, width: int) -> Tensor:
    """Return which of `width` columns lie in windows of so many columns from the first one on, bool B W."""
    offset = (torch.arange(width, device=first.device) - first[:, None]) % width
    return offset < shown[:, None]

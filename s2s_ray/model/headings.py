"""The headings at which a street view of unknown heading is searched, and its descriptor at each of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_STEP = 8.2
"""Longest step between two headings that are searched, in degrees."""
STRIDE = 8
"""Pixels of the view in a column of features."""


def encodings(width: int) -> int:
    """Return how often a view of `width` pixels is encoded: enough for steps of `MAX_STEP`, at most once a pixel."""
    column = 360 * STRIDE / width
    return next((count for count in (1, 2, 4) if column / count <= MAX_STEP), STRIDE)


def at_all_headings(
    embed: Callable[[Tensor, Tensor | None], Tensor], views: Tensor, seen: Tensor | None = None
) -> tuple[Tensor, NDArray[np.float64]]:
    """Embed street views at all headings, at equal steps of at most `MAX_STEP` degrees.

    Args:
        embed: `S2S.embed_street_turned`, which embeds views at each of the W/8 columns of their features. It is called
            once, with all views rolled by each part of a column.
        views: as they would be prepared for heading 0, B 3 H W.
        seen: what of them was seen, bool B H W; None: all.

    Returns: descriptors B T D, and the T headings in degrees, from 0 on. The descriptor of a heading is that of the
    view if this is the compass bearing of its middle column.
    """
    width = views.shape[-1]
    count = encodings(width)
    pixels = STRIDE // count
    turned = embed(_rolled(views, count), None if seen is None else _rolled(seen, count))  # parts*B columns D
    headings = np.arange(width // pixels, dtype=np.float64) * (360 * pixels / width)
    return turned.view(count, len(views), *turned.shape[1:]).movedim(0, 2).flatten(1, 2), headings


def _rolled(images: Tensor, count: int) -> Tensor:
    """Return images rolled by each of `count` parts of a column, parts*B ... W."""
    if count == 1:
        return images
    return torch.cat([images.roll(STRIDE // count * part, -1) for part in range(count)])

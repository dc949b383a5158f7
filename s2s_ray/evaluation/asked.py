"""The panoramas of a split as a protocol asks them: turned by a random angle, or seen in part."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2s_ray.config.protocol import Protocol
from s2s_ray.data.windows import window, within


class Asked(NamedTuple):
    """B panoramas as they are asked.

    `street` is uint8 B 3 H W; `seen` is bool B H W, or None if all is seen, and what is not seen is black. `headings`
    is float64 B: the compass bearing of the middle column of what was photographed. A view of known heading has north
    in the middle column, as in training; that of an unknown one has the photograph's own middle there.
    """

    street: Tensor
    seen: Tensor | None
    headings: NDArray[np.float64]


def drawn(seed: int, what: str, ids: Sequence[str]) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each id, which depends on the seed, on `what` is drawn and on the id alone."""
    digests = (hashlib.blake2b(f"{seed}/{what}/{id}".encode(), digest_size=8).digest() for id in ids)
    return np.array([int.from_bytes(digest, "big") >> 11 for digest in digests], np.float64) / 2**53


def asked(street: Tensor, ids: Sequence[str], protocol: Protocol, seed: int, seen: Tensor | None = None) -> Asked:
    """Return panoramas as a protocol asks them.

    Each is photographed at a heading that is drawn by whole columns, the same in all protocols of one seed. Of its
    horizon, a field of view around the heading is seen, in whole columns. That of a picture that shows a part of the
    horizon lies within this part; a picture that is no wider is asked as it is, at its own heading.

    Args:
        street: B 3 H W, uint8, north in the middle column.
        ids: the pairs, B.
        protocol: what is known of them.
        seed: of what is drawn.
        seen: what the panoramas show, bool B H W; None: the whole horizon.
    """
    width = street.shape[-1]
    if not protocol.heading and protocol.fov == 360:
        return Asked(street, seen, np.zeros(len(ids)))
    columns = np.floor(drawn(seed, "heading", ids) * width).astype(np.int64)
    count = max(1, round(protocol.fov / 360 * width))
    first, shown = (width - count) // 2, np.full(len(ids), count)
    if seen is not None:
        start, part = window(seen.cpu(), torch.from_numpy((columns + first) % width), torch.from_numpy(shown))
        shown = part.numpy()
        columns = (start.numpy() - (width - shown) // 2) % width
    turned = rolled(street, -columns)
    seen = None if seen is None else rolled(seen, -columns)
    if protocol.fov < 360:
        left = torch.from_numpy((width - shown) // 2)
        kept = within(left, torch.from_numpy(shown), width).to(street.device)[:, None]
        turned = turned * kept[:, None]
        seen = kept.expand(len(street), *street.shape[-2:]) if seen is None else seen & kept
    if not protocol.heading:
        turned = rolled(turned, columns)
        seen = None if seen is None else rolled(seen, columns)
    return Asked(turned, seen, columns * 360.0 / width)


def rolled(images: Tensor, columns: NDArray[np.int64]) -> Tensor:
    """Roll each of B images (B ... W) to the right by its own number of columns."""
    width = images.shape[-1]
    source = (torch.arange(width) - torch.from_numpy(columns)[:, None]) % width
    index = source.to(images.device).view(len(images), *[1] * (images.ndim - 2), width)
    return images.gather(-1, index.expand(images.shape))


def offcentre(ids: Sequence[str], radius_m: float, seed: int) -> NDArray[np.float64]:
    """Return metres east and north of the tile's centre for each camera, N 2, uniform in a disc of `radius_m`."""
    distances = radius_m * np.sqrt(drawn(seed, "distance", ids))
    bearings = 2 * np.pi * drawn(seed, "bearing", ids)
    return np.stack([distances * np.sin(bearings), distances * np.cos(bearings)], axis=-1)

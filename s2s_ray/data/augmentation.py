"""Variations of the pairs in training: drawn for each pair where it is read, applied to a batch where it is computed.

The aligned pair is what synthesis learns from. The query is the panorama as somebody might ask with it: with a part of
the horizon and an error of its heading. The reference is the tile around another centre. Retrieval learns from these.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from s2s_ray.config import AugmentationConfig
from s2s_ray.data.schema import TileSize
from s2s_ray.data.windows import window, within
from s2s_ray.geo.polar import polar_transform_around


@dataclass(frozen=True, slots=True)
class Draw:
    """The variation of one pair in one epoch.

    Attributes:
        mirrored: whether both images are mirrored.
        turned: columns by which both images are then rolled to the right.
        noise: columns by which the query is rolled to the right in addition.
        first, shown: first column of the query that is seen, and the number of columns seen from there on, around; a
            picture of a part of the horizon is seen in a window within that part, see `windows.window`.
        east_m, north_m: metres by which the reference's centre lies east and north of the camera, before mirroring.
    """

    mirrored: bool
    turned: int
    noise: int
    first: int
    shown: int
    east_m: float
    north_m: float


@dataclass(frozen=True, slots=True)
class Draws:
    """The variations of B pairs: the fields of `Draw` as tensors of B values."""

    mirrored: Tensor
    turned: Tensor
    noise: Tensor
    first: Tensor
    shown: Tensor
    east_m: Tensor
    north_m: Tensor

    @classmethod
    def of(cls, draws: Sequence[Draw]) -> Draws:
        """Combine the variations of single pairs."""
        kinds = {"bool": torch.bool, "int": torch.int64, "float": torch.float64}
        names = {each.name: kinds[str(each.type)] for each in fields(Draw)}
        return cls(
            **{name: torch.tensor([getattr(draw, name) for draw in draws], dtype=k) for name, k in names.items()}
        )

    def each(self, change: Callable[[Tensor], Tensor]) -> Draws:
        """Return the variations with each tensor changed, moved to a device for example."""
        return Draws(*(change(getattr(self, each.name)) for each in fields(self)))


class Query(NamedTuple):
    """Street views as somebody asks with them, and what of them is seen.

    Attributes:
        street: uint8 B 3 H W, 0 where nothing is seen.
        seen: bool B H W.
    """

    street: Tensor
    seen: Tensor


def draw(config: AugmentationConfig, flip: float, width: int, seed: int, epoch: int, id: str) -> Draw:
    """Draw the variation of a pair in an epoch; it depends on the arguments alone.

    Args:
        config: what may vary.
        flip: probability that the pair is mirrored.
        width: columns of the images.
    """
    part = uniform(seed, epoch, f"{id}/part") < config.fov_probability
    fov = _fov(config, epoch, uniform(seed, epoch, f"{id}/fov")) if part else 360.0
    angle = 2 * math.pi * uniform(seed, epoch, f"{id}/direction")
    distance = config.offcentre_m * math.sqrt(uniform(seed, epoch, f"{id}/distance"))
    noise = config.heading_noise * (2 * uniform(seed, epoch, f"{id}/noise") - 1)
    turns = uniform(seed, epoch, f"{id}/turns") < config.rotate
    return Draw(
        mirrored=uniform(seed, epoch, id) < flip,
        turned=int(uniform(seed, epoch, f"{id}/turn") * width) if turns else 0,
        noise=round(noise / 360 * width),
        first=int(uniform(seed, epoch, f"{id}/first") * width),
        shown=max(1, round(fov / 360 * width)),
        east_m=distance * math.sin(angle),
        north_m=distance * math.cos(angle),
    )


def _fov(config: AugmentationConfig, epoch: int, at: float) -> float:
    """Return the field of view at a part of the range that an epoch draws from."""
    if config.fov is None:
        return 360.0
    grown = min(1.0, epoch / config.fov_epochs) if config.fov_epochs else 1.0
    smallest, largest = (360 + (limit - 360) * grown for limit in config.fov)
    return smallest + (largest - smallest) * at


def query_views(street: Tensor, seen: Tensor | None, draws: Draws | None) -> Query:
    """Return the queries of a batch.

    Args:
        street: the aligned panoramas, uint8 B 3 H W, mirrored and rolled already.
        seen: what of them the data set marks as seen, bool B H W; None: all.
        draws: the variations; None: none.
    """
    rows, columns = street.shape[-2:]
    if seen is None:
        seen = torch.ones((len(street), rows, columns), dtype=torch.bool, device=street.device)
    if draws is not None:
        street, seen = _rolled(street, draws.noise), _rolled(seen[:, None], draws.noise)[:, 0]
        seen = seen & within(*window(seen, draws.first, draws.shown), columns)[:, None]
    return Query(street * seen[:, None], seen)


def reference_views(tiles: Tensor, size: TileSize, height: int, width: int, draws: Draws) -> Tensor:
    """Return the polar images around the references' centres, uint8 B 3 height width, mirrored and rolled as the pairs.

    Args:
        tiles: raw tiles with their margins, uint8 B 3 S S.
        size: of a tile without its margin.
    """
    offsets = torch.stack([draws.east_m, draws.north_m], dim=-1) * (size.px / size.metres)
    polar = polar_transform_around(tiles.float(), offsets, size.px, height, width).round_().clamp_(0, 255)
    polar = torch.where(draws.mirrored[:, None, None, None], polar.flip(-1), polar)
    return _rolled(polar.to(torch.uint8), draws.turned)


def _rolled(views: Tensor, columns: Tensor) -> Tensor:
    """Roll each of B C H W views to the right by its own number of columns."""
    width = views.shape[-1]
    source = (torch.arange(width, device=views.device) - columns[:, None]) % width
    return views.gather(-1, source[:, None, None].expand(views.shape))


def uniform(seed: int, epoch: int, id: str) -> float:
    """Return a number in [0, 1) that depends on the three arguments alone."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64

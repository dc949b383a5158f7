"""Retrieval under the protocols of a configuration: unknown heading, a part of the horizon, cameras off the centre."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2s_ray.config import EvaluationConfig
from s2s_ray.config.protocol import Protocol
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.places import places_of
from s2s_ray.errors import ConfigError, DatasetError
from s2s_ray.evaluation.asked import asked, offcentre
from s2s_ray.evaluation.descriptors import allocate, batches, evaluating
from s2s_ray.evaluation.hypotheses import best_hypotheses
from s2s_ray.evaluation.outcome import Figures, Outcome, joined
from s2s_ray.evaluation.recall import TIE, require_finite
from s2s_ray.evaluation.rows import Rows
from s2s_ray.geo.images import Pixels
from s2s_ray.geo.views import ViewGeometry
from s2s_ray.model.headings import at_all_headings
from s2s_ray.model.s2s import S2S
from s2s_ray.runtime.progress import progress

__all__ = ["Gallery", "Protocol", "ask", "embed_gallery", "measure", "measure_protocols", "require_margin"]

LARGEST_GRID = 10_000


class Gallery(NamedTuple):
    """The tiles of a split at one or several centres each.

    `rows` are M*C D descriptors, tile after tile; `offsets` are the centres' metres east and north of the place of the
    tile's panorama, M C 2.
    """

    rows: Rows
    offsets: NDArray[np.float64]


def measure(
    model: S2S,
    dataset: PairDataset,
    geometry: ViewGeometry,
    protocol: Protocol,
    seed: int,
    *,
    config: EvaluationConfig | None = None,
    device: torch.device | str = "cpu",
) -> Figures:
    """Measure a model under one protocol and one seed; see `Outcome.figures`.

    Args:
        model: on `device`; the modes of its modules are restored.
        dataset: the split, which is also the gallery.
        geometry: how tiles become views, for positions off the centre: `dataset.info.geometry`.
        protocol: what is known of the panoramas.
        seed: of what is drawn.
        config: `batch`, `radius_m` and `offcentre_step_m`.
        device: device of the model.

    Raises:
        DatasetError: an empty split, or one whose tiles have no margin for `offcentre`.
        DescriptorError: descriptors are not finite; the message names the pairs.
    """
    config = config or EvaluationConfig()
    if not len(dataset):
        raise DatasetError(f"{dataset.uri}: the split is empty")
    everything = range(len(dataset))
    gallery = embed_gallery(model, dataset, geometry, protocol, seed, everything, config, device)
    return ask(model, dataset, protocol, seed, gallery, everything, config, device).figures()


def measure_protocols(
    model: S2S,
    dataset: PairDataset,
    config: EvaluationConfig,
    *,
    device: torch.device | str = "cpu",
    aligned: Rows | None = None,
) -> tuple[dict[str, dict[str, Any]], dict[str, Outcome]]:
    """Measure a model under all of `config.protocols`, each with `config.seeds` seeds from `config.seed` on.

    Args:
        model, dataset, config, device: as in `measure`.
        aligned: the descriptors of the tiles at their centres, M D, if they were computed before.

    Returns: by protocol, the mean of each figure over the seeds that have a value for it, with the figures of each seed
    as `by_seed`; and the outcome of the first seed.
    """
    protocols = [Protocol.parse(name) for name in config.protocols]
    if not protocols:
        return {}, {}
    if not len(dataset):
        raise DatasetError(f"{dataset.uri}: the {config.split} split is empty")
    for protocol in protocols:
        require_margin(dataset, protocol, config)
    found: dict[str, list[Outcome]] = {protocol.name: [] for protocol in protocols}
    everything, geometry = range(len(dataset)), dataset.info.geometry
    random = sum(protocol.is_random for protocol in protocols)
    rounds = config.seeds * random + len(protocols) - random
    with progress(rounds * len(dataset), "protocols", "queries") as advance:
        for seed in range(config.seed, config.seed + config.seeds):
            galleries: dict[float | None, Gallery] = (
                {} if aligned is None else {None: Gallery(aligned, np.zeros((len(dataset), 1, 2)))}
            )
            for protocol in protocols:
                if not protocol.is_random and seed > config.seed:
                    continue
                gallery = galleries.get(protocol.offcentre_m)
                if gallery is None:
                    gallery = embed_gallery(model, dataset, geometry, protocol, seed, everything, config, device)
                    galleries[protocol.offcentre_m] = gallery
                one = ask(model, dataset, protocol, seed, gallery, everything, config, device, advance=advance)
                found[protocol.name].append(one)
            aligned = galleries[None].rows if None in galleries else None
    tables = {name: joined([one.figures() for one in several]) for name, several in found.items()}
    outcomes = {name: several[0] for name, several in found.items()}
    return tables, outcomes


def embed_gallery(
    model: S2S,
    dataset: PairDataset,
    geometry: ViewGeometry,
    protocol: Protocol,
    seed: int,
    indices: Sequence[int],
    config: EvaluationConfig,
    device: torch.device | str,
) -> Gallery:
    """Embed some tiles of a split as a protocol searches them, in the order of `indices`.

    The panoramas of a data set are taken at its tiles' centres. So a camera off the centre is one whose tile is
    shifted the other way, and searched at a grid of positions around its own centre.
    """
    if protocol.offcentre_m is None:
        rows = allocate(model, len(indices), device)
        done = 0
        with evaluating(model), torch.inference_mode():
            for pairs in batches(dataset, indices, config.batch, device):
                rows[done : done + len(pairs)] = model.embed_satellite(pairs.polar)
                done += len(pairs)
        return Gallery(rows, np.zeros((len(indices), 1, 2)))
    require_margin(dataset, protocol, config)
    grid = grid_of(protocol.offcentre_m, config.offcentre_step_m)
    cameras = offcentre([dataset.ids[index] for index in indices], protocol.offcentre_m, seed)
    pixels = _pixels(dataset, grid[None] - cameras[:, None])
    rows, done = allocate(model, len(indices) * len(grid), device), 0
    with evaluating(model), torch.inference_mode():
        for index, shifts in zip(indices, pixels, strict=True):
            tiles = cut(dataset, index, shifts)
            for first in range(0, len(tiles), config.batch):
                views = torch.stack([geometry.satellite(tile, "north-up") for tile in tiles[first:][: config.batch]])
                rows[done : done + len(views)] = model.embed_satellite(views.to(device))
                done += len(views)
    return Gallery(rows, pixels.astype(np.float64) * _metres_per_pixel(dataset))


def ask(
    model: S2S,
    dataset: PairDataset,
    protocol: Protocol,
    seed: int,
    gallery: Gallery,
    indices: Sequence[int],
    config: EvaluationConfig,
    device: torch.device | str,
    *,
    advance: Callable[[int], None] = lambda count: None,
) -> Outcome:
    """Rank all tiles of a split for some of its panoramas, in the order of `indices`.

    Panoramas of unknown heading are asked under protocols that search it. Ties count against the model, as in
    `recall_at_k`; with `config.radius_m`, tiles that near the panorama's own are
    correct too.

    Args:
        gallery: of the whole split.
        advance: called with the number of queries after each batch.
    """
    tiles, centres = gallery.offsets.shape[:2]
    places = places_of(dataset)
    require_finite(gallery.rows, "satellite", None if centres > 1 else dataset.ids)
    scale = _largest_square(gallery.rows)
    parts = [np.empty((0, 5))]
    with evaluating(model), torch.inference_mode():
        for pairs in batches(dataset, indices, config.batch, device):
            own = pairs.index.cpu().numpy()
            ids = [dataset.ids[index] for index in own]
            query = asked(pairs.street, ids, protocol, seed, pairs.seen)
            if protocol.heading:
                descriptors, headings = at_all_headings(model.embed_street_turned, query.street, query.seen)
            else:
                descriptors, headings = model.embed_street(query.street, query.seen)[:, None], np.zeros(1)
            require_finite(descriptors.flatten(1), "street", ids)
            best = best_hypotheses(descriptors, gallery.rows, centres)
            correct = torch.zeros(len(own), tiles, dtype=torch.bool, device=best.distances.device)
            correct[torch.arange(len(own)), pairs.index] = True
            if config.radius_m is not None:
                correct |= torch.from_numpy(places[own].within(places, config.radius_m)).to(correct.device)
            ranks = 1 + _closer(best.distances, correct, TIE * max(scale, float(descriptors.square().sum(2).max())))
            first = best.distances.argmin(1)
            rows = torch.arange(len(own), device=first.device)
            errors = np.full((2, len(own)), np.nan)
            oriented = dataset.oriented[own]
            if protocol.heading:
                for row, tile in enumerate((first, pairs.index)):
                    estimated = headings[best.headings[rows, tile].cpu().numpy()]
                    errors[row] = np.where(oriented, np.abs((estimated - query.headings + 180) % 360 - 180), np.nan)
            matched = first.cpu().numpy()
            offsets = gallery.offsets[matched, best.centres[rows, first].cpu().numpy()]
            metres = places[own].metres_to(places[matched].moved(*offsets.T))
            in_tile = np.where(matched == own, np.hypot(*offsets.T), np.nan)
            metres = np.where(np.isnan(metres) | np.isnan(in_tile), metres, in_tile)  # exact, without a projection
            columns = np.stack([ranks.cpu().numpy(), *errors, metres, in_tile], axis=-1)
            if not protocol.heading:  # north is not in the middle of these: they are not asked
                columns[~oriented] = (0, np.nan, np.nan, np.nan, np.nan)
            parts.append(columns)
            advance(len(own))
    return Outcome.of_columns(np.concatenate(parts), tiles)


def grid_of(radius_m: float, step_m: float) -> NDArray[np.float64]:
    """Return the positions searched within a tile, in metres east and north of its centre, C 2.

    It is a square grid that holds the disc of cameras; its centre alone with a step of 0.
    """
    count = int(radius_m / step_m + 1e-9) if step_m else 0
    line = np.arange(-count, count + 1) * step_m
    return np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)


def require_margin(dataset: PairDataset, protocol: Protocol, config: EvaluationConfig) -> None:
    """Refuse a protocol whose positions a data set does not hold.

    Raises:
        DatasetError: it needs more imagery around the tiles than the data set has.
        ConfigError: the step makes too many positions.
    """
    if protocol.offcentre_m is None:
        return
    grid = grid_of(protocol.offcentre_m, config.offcentre_step_m)
    if len(grid) > LARGEST_GRID:
        raise ConfigError(
            f"{protocol.name}: evaluation.offcentre_step_m={config.offcentre_step_m:g} makes {len(grid):,} positions "
            f"in each tile, more than {LARGEST_GRID:,}: choose a larger step"
        )
    needed = protocol.offcentre_m + float(grid.max())
    margin = dataset.info.margin_m or 0.0
    if margin < needed:
        raise DatasetError(
            f"{protocol.name} needs {needed:g} m of imagery around each tile, and {dataset.uri} has {margin:g} m: "
            f"prepare it with prepare.margin_m={needed:g}, from a source with larger imagery"
        )


def _metres_per_pixel(dataset: PairDataset) -> float:
    side_m, side = dataset.info.tile_m, dataset.info.tile_px
    assert side_m, "a margin is measured in metres"
    assert side, "a margin is measured in metres"
    return side_m / side


def _pixels(dataset: PairDataset, metres: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(metres / _metres_per_pixel(dataset)).astype(np.int64)


def cut(dataset: PairDataset, index: int, shifts: NDArray[np.int64]) -> list[Pixels]:
    """Return raw tiles of a pair, shifted by pixels to the east and to the north (C 2), as `tile_around` does."""
    wide, first, side = dataset.wide_tile(index), dataset.info.margin_px, dataset.info.tile_px or 0
    corners = [(first - north, first + east) for east, north in shifts.tolist()]
    return [wide[row : row + side, column : column + side] for row, column in corners]


def _closer(distances: Tensor, correct: Tensor, tie: float) -> Tensor:
    """Return the number of incorrect tiles at least as close as the best correct one, B."""
    bound = distances.masked_fill(~correct, torch.inf).amin(1, keepdim=True) + tie
    return ((distances <= bound) & ~correct).sum(1)


def _largest_square(rows: Rows) -> float:
    return max(float(rows[first : first + 4096].square().sum(1).max()) for first in range(0, len(rows), 4096))

"""Calibration of a checkpoint on the validation split of a data set.

Each picture is asked as users may have taken it: the whole horizon or a part of it, with a known and with an unknown
heading. Tiles with a margin of imagery are cut on a grid that misses the pictures' places at random, as the tiles of a
region index do; otherwise each picture stands at the centre of its tile. To ask for a picture from outside of the
region, the tiles around it are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2s_ray.config import DataConfig
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.description import read_dataset_info
from s2s_ray.data.places import degrees_of
from s2s_ray.data.windows import window, within
from s2s_ray.errors import CheckpointError, DatasetError, InputError
from s2s_ray.geo.images import Descriptors
from s2s_ray.geo.offsets import moved
from s2s_ray.geo.views import ViewGeometry
from s2s_ray.localization.calibration import Calibration
from s2s_ray.localization.fitting import LEAST_PICTURES, Trials, fit
from s2s_ray.localization.surface import spacing_of
from s2s_ray.model.checkpoint_meta import fingerprint, read_meta
from s2s_ray.runtime.progress import progress
from s2s_ray.uri import Uri

PICTURES = 200
"""Pictures of the validation split that are asked, by default."""
EVERY_M = 8.0
"""Metres between the tiles of the grid around each picture, by default."""
FIELDS_OF_VIEW = (360.0, 180.0, 90.0, 70.0)

_MOST_TILES = 2500
_WINDOW = 1.5  # margins; of two that there are, so that the picture is not in the middle of its tiles
_BATCH = 16
_LEAST_MARGIN_M = 4.0

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


class TurningEmbedder(Protocol):
    """The part of an `Embedder` that is needed here."""

    geometry: ViewGeometry

    def embed_street(self, views: Tensor, seen: Tensor | None = None) -> Descriptors:
        """Return descriptors of views, N D."""

    def embed_turned(self, views: Tensor, seen: Tensor | None = None) -> tuple[Descriptors, Floats]:
        """Return descriptors of views for each heading, N T D, and the headings in degrees, T."""

    def embed_satellite(self, views: Tensor) -> Descriptors:
        """Return descriptors of polar views, N D."""


class _Gallery(NamedTuple):
    """Descriptors N D of tiles and their centres in degrees, N 2, with the metres between neighbouring ones."""

    descriptors: Descriptors
    centres: Floats
    spacing_m: float


def calibrate(
    embedder: TurningEmbedder,
    dataset: PairDataset,
    *,
    checkpoint: str,
    others: PairDataset | None = None,
    pictures: int = PICTURES,
    every_m: float = EVERY_M,
    seed: int = 0,
) -> Calibration:
    """Calibrate a checkpoint.

    Args:
        embedder: the checkpoint's.
        dataset: the validation split.
        checkpoint: the checkpoint's fingerprint.
        others: the training split, whose tiles are searched as well if the data set has no margin.
        pictures: how many panoramas of the validation split are asked.
        every_m: metres between the tiles of the grid, if the data set has a margin.
        seed: of what is drawn: headings, and where the grid lies.

    Raises:
        InputError: too few pictures, or a grid that is not above 0.
        DatasetError: too few pictures with a position, or images of another size than the model's.
        StorageError: the data set cannot be read.
    """
    if pictures < LEAST_PICTURES:
        raise InputError(f"pictures={pictures}: expected at least {LEAST_PICTURES} to calibrate with")
    if not (every_m > 0 and np.isfinite(every_m)):
        raise InputError(f"every_m={every_m:g}: expected metres above 0")
    geometry = embedder.geometry
    if (dataset.height, dataset.width) != (geometry.height, geometry.width):
        raise DatasetError(
            f"{dataset.uri} has images of {dataset.width} x {dataset.height} pixels, the model takes "
            f"{geometry.width} x {geometry.height}: prepare the data set for this model"
        )
    positions = degrees_of(dataset)
    known = np.flatnonzero(np.isfinite(positions).all(axis=1))
    asked = known[np.unique(np.linspace(0, len(known) - 1, min(pictures, len(known))).round().astype(int))]
    if len(asked) < LEAST_PICTURES:
        raise DatasetError(
            f"{dataset.uri}: {len(asked)} pictures with a position are too few to calibrate with, expected at least "
            f"{LEAST_PICTURES}"
        )
    random = np.random.default_rng(seed)
    dense = dataset.info.margin_m >= _LEAST_MARGIN_M
    kinds = [(fov, heading_known) for heading_known in (True, False) for fov in FIELDS_OF_VIEW]
    with progress(len(asked) * len(kinds), "calibrate", "pictures") as advance:
        if dense:
            gallery = _grid(embedder, dataset, positions, asked, known, every_m, random)
        else:
            gallery = _centres(embedder, dataset, known, others)
        columns = random.integers(0, geometry.width, len(asked))
        fitted = []
        for fov, heading_known in kinds:
            similarities, headings, looks = [], np.zeros(1), []
            for views, seen, middles in _views(dataset, asked, columns, fov, heading_known):
                looks.append(middles)
                if heading_known:
                    turned = embedder.embed_street(views, seen)[:, None]
                else:
                    turned, headings = embedder.embed_turned(views, seen)
                similarities.append(np.einsum("qtd,nd->qnt", turned, gallery.descriptors, optimize=True))
                advance(len(views))
            trials = Trials(
                fov=fov,
                heading_known=heading_known,
                similarities=np.concatenate(similarities),
                headings=headings,
                true_headings=(0.0 if heading_known else 360.0 / geometry.width)
                * np.concatenate(looks).astype(np.float64),
                tiles=gallery.centres,
                places=positions[asked],
                spacing_m=gallery.spacing_m,
                dense=dense,
            )
            fitted.append(fit(trials))
    return Calibration(
        checkpoint=checkpoint,
        dataset=dataset.uri,
        dataset_digest=dataset.info.digest,
        tiles=len(gallery.centres),
        spacing_m=gallery.spacing_m if dense else None,
        kinds=tuple(fitted),
    )


def calibrate_checkpoint(
    embedder: TurningEmbedder,
    checkpoint: str,
    data: str | None = None,
    *,
    pictures: int = PICTURES,
    every_m: float = EVERY_M,
    seed: int = 0,
) -> Calibration:
    """Calibrate a checkpoint on the validation split of the data set it was trained on, or of another one.

    Args:
        embedder: the checkpoint's.
        checkpoint: its URI.
        data: URI of the data set; default: that in the checkpoint's metadata.
        pictures, every_m, seed: as in `calibrate`.

    Raises:
        CheckpointError: no complete checkpoint, or one that names no data set.
        DatasetError: the data set has no validation split, or as in `calibrate`.
        StorageError: it cannot be read.
    """
    uri = data or (read_meta(checkpoint).get("dataset") or {}).get("uri")
    if not uri:
        raise CheckpointError(f"checkpoint {checkpoint} does not say which data set it was trained on: name one")
    splits = read_dataset_info(uri).splits
    config = DataConfig(uri=Uri(uri))
    others = PairDataset.open(config, "train") if "train" in splits else None
    return calibrate(
        embedder,
        PairDataset.open(config, "val"),
        checkpoint=fingerprint(checkpoint),
        others=others,
        pictures=pictures,
        every_m=every_m,
        seed=seed,
    )


def _views(
    dataset: PairDataset, asked: Rows, columns: Rows, fov: float, heading_known: bool
) -> Iterator[tuple[Tensor, Tensor | None, Rows]]:
    """Yield batches of views as they are asked, what of them is seen, and the columns at which they look.

    Each picture's middle column looks at the direction of a column of the panorama. Of known heading it has north in
    the middle column, as the model's views have; of unknown heading the picture's own middle is there.

    Args:
        columns: columns clockwise of north at which each picture looks if its panorama shows the whole horizon;
            otherwise it looks at a part of what is seen.
        fov: degrees of the horizon around it that are seen.
    """
    width = dataset.width
    count = max(1, round(fov / 360 * width))
    for start in range(0, len(asked), _BATCH):
        views, masks, middles = [], [], []
        for row, column in zip(asked[start : start + _BATCH], columns[start : start + _BATCH].tolist(), strict=True):
            sample = dataset[int(row)]
            seen = torch.ones(sample.street.shape[-2:], dtype=torch.bool) if sample.seen is None else sample.seen
            drawn = torch.tensor([(column + (width - count) // 2) % width])
            first, shown = window(seen[None], drawn, torch.tensor([count]))
            seen = seen & within(first, shown, width)
            middle = (int(first) - (width - int(shown)) // 2) % width
            turned = 0 if heading_known else -middle
            views.append((sample.street * seen).roll(turned, -1))
            masks.append(seen.roll(turned, -1))
            middles.append(middle)
        seen = torch.stack(masks)
        yield torch.stack(views), None if bool(seen.all()) else seen, np.array(middles)


def _grid(
    embedder: TurningEmbedder,
    dataset: PairDataset,
    positions: Floats,
    asked: Rows,
    known: Rows,
    every_m: float,
    random: np.random.Generator,
) -> _Gallery:
    """Embed tiles on a grid around each picture that is asked, and around others as far as there is room."""
    margin = dataset.info.margin_m
    size = dataset.tile_size
    metres = size.metres / size.px
    along = int(_WINDOW * margin / every_m) + 1
    chosen = np.concatenate([asked, np.setdiff1d(known, asked)])[: max(len(asked), _MOST_TILES // along**2)]
    found: list[Descriptors] = []
    centres: list[Floats] = []
    for row in chosen:
        starts = random.uniform(-margin, margin - _WINDOW * margin, 2)
        line = [np.trunc((start + every_m * np.arange(along)) / metres) * metres for start in starts]
        offsets = np.stack(np.meshgrid(*line, indexing="ij"), axis=-1).reshape(-1, 2)
        wide = dataset.wide_tile(int(row))
        corners = dataset.info.margin_px + np.rint(offsets * (1, -1) / metres).astype(int)[:, ::-1]
        cut = [wide[top : top + size.px, left : left + size.px] for top, left in corners.tolist()]
        views = torch.stack([embedder.geometry.north_up(tile) for tile in cut])
        found += [embedder.embed_satellite(views[at : at + _BATCH]) for at in range(0, len(views), _BATCH)]
        latitude, longitude = positions[row].tolist()
        centres.append(np.stack(moved(latitude, longitude, offsets[:, 0], offsets[:, 1]), axis=-1))
    return _Gallery(np.concatenate(found), np.concatenate(centres), every_m)


def _centres(embedder: TurningEmbedder, dataset: PairDataset, known: Rows, others: PairDataset | None) -> _Gallery:
    """Embed the tiles of the validation split, and of the training split as far as there is room."""
    found = list(_polar(embedder, dataset, known.tolist()))
    centres = [degrees_of(dataset)[known]]
    if others is not None and len(known) < _MOST_TILES:
        positions = degrees_of(others)
        more = np.flatnonzero(np.isfinite(positions).all(axis=1))
        room = min(len(more), _MOST_TILES - len(known))
        more = more[np.unique(np.linspace(0, len(more) - 1, room).round().astype(int))] if room else more[:0]
        found += _polar(embedder, others, more.tolist())
        centres.append(positions[more])
    joined = np.concatenate(centres)
    return _Gallery(np.concatenate(found), joined, spacing_of(joined))


def _polar(embedder: TurningEmbedder, dataset: PairDataset, rows: Sequence[int]) -> Iterator[Descriptors]:
    """Yield descriptors of the satellite views of some pairs, in batches."""
    for start in range(0, len(rows), 2 * _BATCH):
        views = torch.stack([dataset[row].polar for row in rows[start : start + 2 * _BATCH]])
        yield embedder.embed_satellite(views)

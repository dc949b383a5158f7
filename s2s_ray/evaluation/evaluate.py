"""The evaluation of a model on one split: recall in both directions, image quality and pictures."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, isnan
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from s2s_ray import storage
from s2s_ray.config import EvaluationConfig
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.places import places_of
from s2s_ray.errors import DatasetError
from s2s_ray.evaluation.descriptors import allocate, batches, evaluating
from s2s_ray.evaluation.galleries import (
    Match,
    RetrievalRow,
    SynthesisRow,
    evenly_spaced,
    pixels,
    retrieval_gallery,
    rolled_up,
    save,
    synthesis_gallery,
)
from s2s_ray.evaluation.image_quality import ImageQuality, Quality
from s2s_ray.evaluation.perceptual import Perceptual
from s2s_ray.evaluation.protocols import Protocol, measure_protocols, require_margin
from s2s_ray.evaluation.queries import QUERIES, metres_between, parquet_bytes, queries_table
from s2s_ray.evaluation.recall import Nearby, RecallResult, nearest, recall_at_k, require_finite
from s2s_ray.evaluation.reliability import reliability_diagram, reliability_figures
from s2s_ray.evaluation.rows import Rows
from s2s_ray.geo.images import Pixels
from s2s_ray.model.retrieval import visible
from s2s_ray.model.s2s import S2S
from s2s_ray.runtime.progress import progress

if TYPE_CHECKING:
    from s2s_ray.localization.calibration import Calibration

log = logging.getLogger(__name__)

METRICS = "metrics.json"
TOP = 5
"""Tiles that the retrieval gallery shows for each query (supplement, figures 4 and 5)."""


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """The results of `evaluate`. `pictures` are the URIs of the galleries; recall is in fractions.

    `protocols` are the figures of `config.protocols` by name, see `measure_protocols`; `calibration` is that of the
    split, if it was made; `unoriented` is the number of pictures whose heading is unknown, which are left out of all
    figures that need it.
    """

    split: str
    street_to_satellite: RecallResult
    satellite_to_street: RecallResult
    quality: Quality | None
    perceptual: dict[str, float]
    radius_m: float | None
    pictures: list[str]
    protocols: dict[str, dict[str, Any]] = field(default_factory=dict)
    calibration: Calibration | None = None
    unoriented: int = 0

    @property
    def gallery(self) -> int:
        """The number of tiles in the split, which is the size of the gallery."""
        return self.street_to_satellite.gallery

    @property
    def synthesis(self) -> dict[str, float]:
        """Image quality by name; empty if the model synthesises nothing."""
        if self.quality is None:
            return {}
        means = {key: value for key, value in self.quality.as_dict().items() if key != "images"}
        return {**means, **self.perceptual}

    @property
    def protocol(self) -> str:
        """The rule for correct matches, in words."""
        own = "only the pair's own tile is correct"
        if self.radius_m is not None:
            own = f"the pair's own tile and those within {self.radius_m:g} m of it are correct"
        return f"{own}; ties count against; 1% of {self.gallery} tiles are the first {ceil(self.gallery / 100)}"

    def as_dict(self) -> dict[str, Any]:
        """Return the results for JSON. `chance` is the recall at 1 of a random ranking."""
        return {
            "split": self.split,
            "gallery": self.gallery,
            "protocol": self.protocol,
            "chance": self.street_to_satellite.chance,
            "street_to_satellite": self.street_to_satellite.as_dict(),
            "satellite_to_street": self.satellite_to_street.as_dict(),
            **self.synthesis,
            "pictures": self.pictures,
            **({"unknown_heading": self.unoriented} if self.unoriented else {}),
            **({"protocols": self.protocols} if self.protocols else {}),
            **({} if self.calibration is None else {"calibration": reliability_figures(self.calibration)}),
        }


def evaluate(
    model: S2S,
    dataset: PairDataset,
    config: EvaluationConfig,
    *,
    device: torch.device | str = "cpu",
    out: str | None = None,
    loader_workers: int = 0,
    calibration: Calibration | None = None,
) -> EvaluationReport:
    """Measure a model on one split and write the report.

    The gallery is the split itself. With `config.radius_m`, tiles within that distance are correct too. Synthesised
    views are compared with the real street views at the model's resolution (see `image_quality.measure`). The
    protocols of `config.protocols` are measured beside the paper's, with the same descriptors of the tiles.

    Args:
        model: on `device`; the modes of its modules are restored.
        dataset: opened at `config.split`.
        config: the protocol.
        device: device of the model.
        out: URI of a directory for `metrics.json`, `queries.parquet` (see `queries_table`), `retrieval.png` and
            `synthesis.png`. None writes nothing.
        loader_workers: number of processes that decode images.
        calibration: of the model on this split, to be reported with `reliability.png`.

    Raises:
        DescriptorError: descriptors are not finite; the message names the pairs.
        WeightsError: the weights of LPIPS, FID or KID are not available.
        ViewError: images of another resolution than the model's.
        DatasetError: an empty split, one without a picture of known heading, or tiles without the margin that a
            protocol needs.
        DivergedError: synthesised images are not finite.
        StorageError: a file cannot be read or written.
    """
    if not len(dataset):
        raise DatasetError(f"{dataset.uri}: the {config.split} split is empty")
    for name in config.protocols:
        require_margin(dataset, Protocol.parse(name), config)
    unoriented = int((~dataset.oriented).sum())
    if unoriented == len(dataset):
        raise DatasetError(
            f"{dataset.uri}: the heading of every picture of the {config.split} split is unknown, and there is nothing "
            "to measure without it: give the headings that are known"
        )
    if unoriented:
        log.warning(
            "%d of %d pictures of the %s split have an unknown heading: they are left out of all figures that need it",
            *(unoriented, len(dataset), config.split),
        )
    counted = torch.from_numpy(dataset.oriented) if unoriented else None
    measured = _measure(model, dataset, config, device, loader_workers)
    for name, found in (("street", measured.street), ("satellite", measured.satellite)):
        require_finite(found, name, dataset.ids)
    nearby = None
    if config.radius_m is not None:
        places = places_of(dataset)
        nearby = Nearby(places, places, config.radius_m)
    to_satellite = recall_at_k(measured.street, measured.satellite, nearby=nearby, counted=counted, chunk=config.chunk)
    to_street = recall_at_k(measured.satellite, measured.street, nearby=nearby, counted=counted, chunk=config.chunk)
    protocols, outcomes = measure_protocols(model, dataset, config, device=device, aligned=measured.satellite)
    pictures: list[str] = []
    if out is not None:
        closest = nearest(measured.street, measured.satellite, TOP, chunk=config.chunk)
        table = queries_table(dataset, to_satellite, to_street, closest, measured.values, outcomes)
        storage.write_bytes(storage.join(out, QUERIES), parquet_bytes(table))
    if out is not None and calibration is not None:
        pictures.append(storage.join(out, "reliability.png"))
        save(reliability_diagram(calibration), pictures[-1])
    if out is not None and config.gallery_rows:
        shown = evenly_spaced(len(dataset), config.gallery_rows)
        rows = retrieval_rows(dataset, closest[1], to_satellite, shown, config.radius_m)
        figures = {"retrieval.png": retrieval_gallery(rows, len(dataset))}
        if model.config.synthesizes:
            views = synthesis_rows(model, dataset, shown, config.batch, device)
            figures["synthesis.png"] = synthesis_gallery(views)
        for name, figure in figures.items():
            pictures.append(storage.join(out, name))
            save(figure, pictures[-1])
    report = EvaluationReport(
        config.split,
        to_satellite,
        to_street,
        measured.quality,
        measured.perceptual,
        config.radius_m,
        pictures,
        protocols,
        calibration,
        unoriented,
    )
    if out is not None:
        storage.write_json(storage.join(out, METRICS), report.as_dict())
    return report


@dataclass(frozen=True, slots=True)
class _Measured:
    """All pairs of a split: descriptors N D, and image quality as means and per pair, N."""

    street: Rows
    satellite: Rows
    quality: Quality | None
    perceptual: dict[str, float]
    values: dict[str, Tensor]


def _measure(
    model: S2S, dataset: PairDataset, config: EvaluationConfig, device: torch.device | str, loader_workers: int
) -> _Measured:
    """Compute descriptors and image quality of all pairs, with one pass of the generator for both."""
    count = len(dataset)
    perceptual = Perceptual(config if model.config.synthesizes else EvaluationConfig(), count, device)
    street, satellite = allocate(model, count, device), allocate(model, count, device)
    done, quality, parts = 0, ImageQuality(), []
    with evaluating(model), torch.inference_mode(), progress(count, "evaluate", "pairs") as advance:
        for pairs in batches(dataset, range(count), config.batch, device, loader_workers):
            real = model.normalise(pairs.street, pairs.seen)
            rows = slice(done, done + len(pairs))
            street[rows] = model.embed_street(real, pairs.seen)
            if model.config.synthesizes:
                synthesised, satellite[rows] = model.synthesize_and_embed(pairs.polar)
                known = torch.from_numpy(dataset.oriented[rows]).to(real.device)
                seen = pairs.seen
                if not known.all():
                    synthesised, real, seen = synthesised[known], real[known], None if seen is None else seen[known]
                if len(real):
                    found = quality.update(synthesised, real, seen)
                    parts.append({name: _spread(values, known) for name, values in found.items()})
                    perceptual.update(visible(synthesised, seen), real)
                else:
                    parts.append({})
            else:
                satellite[rows] = model.embed_satellite(pairs.polar)
            done += len(pairs)
            advance(len(pairs))
    if not model.config.synthesizes:
        return _Measured(street, satellite, None, {}, {})
    means = quality.mean()
    names = max(parts, key=len)
    empty = [torch.full((min(config.batch, count - first),), torch.nan) for first in range(0, count, config.batch)]
    values = {
        name: torch.cat([part[name].cpu() if part else nan for part, nan in zip(parts, empty, strict=True)])
        for name in names
    }
    return _Measured(street, satellite, means, perceptual.result(), values)


def _spread(values: Tensor, known: Tensor) -> Tensor:
    """Return values of the pictures of a batch that are known, with NaN for the others."""
    return (
        values if len(values) == len(known) else values.new_full((len(known),), torch.nan).masked_scatter(known, values)
    )


def retrieval_rows(
    dataset: PairDataset, closest: Tensor, recall: RecallResult, shown: Sequence[int], radius_m: float | None
) -> list[RetrievalRow]:
    """Return the rows of a retrieval gallery: the queries `shown` with their `closest` tiles (indices, N k)."""
    rows = []
    for query in shown:
        tiles = closest[query].cpu().numpy()
        metres = metres_between(dataset, np.full(len(tiles), query), tiles)
        matches = []
        for tile, distance in zip(tiles.tolist(), metres.tolist(), strict=True):
            near = radius_m is not None and distance <= radius_m
            matches.append(
                Match(satellite_tile(dataset, tile), tile == query or near, None if isnan(distance) else distance)
            )
        street = pixels(dataset[query].street)
        rows.append(RetrievalRow(dataset.ids[query], street, matches, int(recall.ranks[query])))
    return rows


def synthesis_rows(
    model: S2S, dataset: PairDataset, shown: Sequence[int], batch: int, device: torch.device | str
) -> list[SynthesisRow]:
    """Return the rows of a synthesis gallery."""
    rows = []
    for index, image in zip(shown, synthesised_views(model, dataset, shown, batch, device), strict=True):
        sample = dataset[index]
        views = (satellite_tile(dataset, index), pixels(sample.polar), image, pixels(sample.street))
        rows.append(SynthesisRow(dataset.ids[index], *views))
    return rows


def synthesised_views(
    model: S2S, dataset: PairDataset, shown: Sequence[int], batch: int, device: torch.device | str = "cpu"
) -> list[Pixels]:
    """Return the views that a model synthesises from the satellite images of some pairs."""
    views: list[Pixels] = []
    with evaluating(model), torch.inference_mode():
        for pairs in batches(dataset, shown, batch, device):
            views.extend(pixels(view) for view in model.synthesize(pairs.polar))
    return views


def satellite_tile(dataset: PairDataset, index: int) -> Pixels:
    """Return the north-up tile of a pair, rolled up from its polar image if the data set does not keep tiles."""
    tile = dataset.tile(index)
    return rolled_up(pixels(dataset[index].polar)) if tile is None else tile

"""Everything that is reported about a model on one split: recall both ways, image quality and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from s2s_ray import storage
from s2s_ray.config import EvaluationConfig
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.schema import Pixels
from s2s_ray.evaluation.descriptors import Descriptors, batches, embed_dataset, embed_indices, evaluating
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
from s2s_ray.evaluation.recall import Nearby, Places, RecallResult, nearest, recall_at_k, require_finite
from s2s_ray.model.s2s import S2S
from s2s_ray.progress import progress

__all__ = ["Descriptors", "EvaluationReport", "embed_dataset", "embed_indices", "evaluate"]

METRICS = "metrics.json"
TOP = 5
"""Tiles that the retrieval gallery shows of each query (supplement, figures 4 and 5)."""


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """What `evaluate` found. `pictures` are the URIs of the galleries; recall is in fractions."""

    split: str
    street_to_satellite: RecallResult
    satellite_to_street: RecallResult
    quality: Quality
    pictures: list[str]

    @property
    def gallery(self) -> int:
        """Tiles of the split; every recall is out of so many."""
        return self.street_to_satellite.gallery

    def as_dict(self) -> dict[str, Any]:
        """For JSON. `chance` is the recall at 1 of a random ranking."""
        return {
            "split": self.split,
            "gallery": self.gallery,
            "chance": self.street_to_satellite.chance,
            "street_to_satellite": self.street_to_satellite.as_dict(),
            "satellite_to_street": self.satellite_to_street.as_dict(),
            "l1": self.quality.l1,
            "psnr": self.quality.psnr,
            "ssim": self.quality.ssim,
            "pictures": self.pictures,
        }


def evaluate(
    model: S2S,
    dataset: PairDataset,
    config: EvaluationConfig,
    *,
    device: torch.device | str = "cpu",
    out: str | None = None,
    loader_workers: int = 0,
) -> EvaluationReport:
    """Measure a model on one split and write the report.

    The gallery is the split itself. With `config.radius_m` tiles within that distance are correct too. Synthesis
    is compared with the real street view at the model's resolution (see `image_quality.measure`).

    Args:
        model: on `device`; its modes are left as they are.
        dataset: opened at `config.split`.
        out: URI of a directory for `metrics.json`, `retrieval.png` and `synthesis.png`. None writes nothing.
        loader_workers: decoding processes.

    Raises:
        DescriptorError: descriptors that are not finite, by the pairs' ids.
        ValueError: images of another resolution than the model's, an empty split.
    """
    descriptors, quality = _measure(model, dataset, config, device, loader_workers)
    for name, rows in (("street", descriptors.street), ("satellite", descriptors.satellite)):
        require_finite(rows, name, dataset.ids)
    nearby = None
    if config.radius_m is not None:
        places = Places(dataset.positions, dataset.zones)
        nearby = Nearby(places, places, config.radius_m)
    there = recall_at_k(descriptors.street, descriptors.satellite, nearby=nearby, chunk=config.chunk)
    back = recall_at_k(descriptors.satellite, descriptors.street, nearby=nearby, chunk=config.chunk)
    pictures: list[str] = []
    if out is not None and config.gallery_rows:
        shown = evenly_spaced(len(dataset), config.gallery_rows)
        retrieval = retrieval_gallery(_retrieval_rows(dataset, descriptors, there, shown, config), len(dataset))
        synthesis = synthesis_gallery(_synthesis_rows(model, dataset, shown, config.batch, device))
        for name, figure in (("retrieval.png", retrieval), ("synthesis.png", synthesis)):
            pictures.append(storage.join(out, name))
            save(figure, pictures[-1])
    report = EvaluationReport(config.split, there, back, quality, pictures)
    if out is not None:
        storage.write_json(storage.join(out, METRICS), report.as_dict())
    return report


def _measure(
    model: S2S, dataset: PairDataset, config: EvaluationConfig, device: torch.device | str, loader_workers: int
) -> tuple[Descriptors, Quality]:
    """Descriptors and image quality of all pairs, with one pass of the generator for both."""
    count = len(dataset)
    found, done, quality = Descriptors.empty(model, count, device), 0, ImageQuality()
    with evaluating(model), torch.inference_mode(), progress(count, "evaluate", "pairs") as advance:
        for pairs in batches(dataset, range(count), config.batch, device, loader_workers):
            street = model.normalise(pairs.street)
            synthesised, features = model.generator(model.normalise(pairs.polar))
            rows = slice(done, done + len(pairs))
            found.satellite[rows] = model.retrieval.embed_satellite(features)
            found.street[rows] = model.embed_street(street)
            quality.update(synthesised, street)
            done += len(pairs)
            advance(len(pairs))
    return found, quality.mean()


def _retrieval_rows(
    dataset: PairDataset,
    descriptors: Descriptors,
    recall: RecallResult,
    shown: list[int],
    config: EvaluationConfig,
) -> list[RetrievalRow]:
    closest = nearest(descriptors.street[shown], descriptors.satellite, TOP)[1].tolist()
    rows = []
    for query, tiles in zip(shown, closest, strict=True):
        matches = []
        for tile in tiles:
            metres = _distance(dataset, query, tile)
            near = metres is not None and config.radius_m is not None and metres <= config.radius_m
            matches.append(Match(_tile(dataset, tile), tile == query or near, metres))
        street = pixels(dataset[query].street)
        rows.append(RetrievalRow(dataset.ids[query], street, matches, int(recall.ranks[query])))
    return rows


def _synthesis_rows(
    model: S2S, dataset: PairDataset, shown: list[int], batch: int, device: torch.device | str
) -> list[SynthesisRow]:
    synthesised: list[Tensor] = []
    with evaluating(model), torch.inference_mode():
        for pairs in batches(dataset, shown, batch, device):
            synthesised.extend(model.synthesize(pairs.polar))
    rows = []
    for index, image in zip(shown, synthesised, strict=True):
        sample = dataset[index]
        views = (_tile(dataset, index), pixels(sample.polar), pixels(image), pixels(sample.street))
        rows.append(SynthesisRow(dataset.ids[index], *views))
    return rows


def _tile(dataset: PairDataset, index: int) -> Pixels:
    tile = dataset.tile(index)
    return rolled_up(pixels(dataset[index].polar)) if tile is None else tile


def _distance(dataset: PairDataset, query: int, tile: int) -> float | None:
    """Metres between two pairs; None where a position is unknown or their UTM zones differ."""
    if not dataset.zones[query] == dataset.zones[tile] != 0:
        return None
    east, north = dataset.positions[query] - dataset.positions[tile]
    return float((east * east + north * north) ** 0.5)

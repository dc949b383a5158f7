"""The paper's figures of one model: retrieval, synthesis, errors on a map, and the curves of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

from s2s_ray import storage
from s2s_ray.config import EvaluationConfig
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.places import places_of
from s2s_ray.errors import DatasetError
from s2s_ray.evaluation.descriptors import embed_dataset
from s2s_ray.evaluation.error_map import error_map
from s2s_ray.evaluation.evaluate import TOP, retrieval_rows, synthesis_rows
from s2s_ray.evaluation.galleries import evenly_spaced, retrieval_gallery, save, synthesis_gallery, training_curves
from s2s_ray.evaluation.queries import metres_between
from s2s_ray.evaluation.recall import Nearby, nearest, recall_at_k, require_finite
from s2s_ray.model.s2s import S2S

FORMATS = ("png", "pdf")


def draw_figures(
    model: S2S,
    dataset: PairDataset,
    config: EvaluationConfig,
    *,
    device: torch.device | str = "cpu",
    history: Sequence[Mapping[str, float]] = (),
) -> dict[str, Figure]:
    """Draw the figures `retrieval` (supplement, figures 4 and 5), `synthesis` (6 and 7), `errors` and `curves`.

    `config.gallery_rows` pairs are shown, evenly spaced over the split. Figures without data are left out: synthesis if
    the model has no generator, errors without coordinates, curves without a `history` (the epochs of a run).

    Raises:
        DatasetError: an empty split.
        DescriptorError: descriptors are not finite; the message names the pairs.
        ViewError: images of another resolution than the model's.
    """
    if not len(dataset):
        raise DatasetError(f"{dataset.uri}: the {config.split} split is empty")
    found = embed_dataset(model, dataset, config.batch, device)
    places = places_of(dataset)
    nearby = None if config.radius_m is None else Nearby(places, places, config.radius_m)
    for name, rows in (("street", found.street), ("satellite", found.satellite)):
        require_finite(rows, name, dataset.ids)
    recall = recall_at_k(found.street, found.satellite, nearby=nearby, chunk=config.chunk)
    closest = nearest(found.street, found.satellite, TOP, chunk=config.chunk)[1]
    shown = evenly_spaced(len(dataset), max(1, config.gallery_rows))
    matches = retrieval_rows(dataset, closest, recall, shown, config.radius_m)
    figures: dict[str, Figure | None] = {"retrieval": retrieval_gallery(matches, len(dataset))}
    if model.config.synthesizes:
        figures["synthesis"] = synthesis_gallery(synthesis_rows(model, dataset, shown, config.batch, device))
    metres = metres_between(dataset, np.arange(len(dataset)), closest[:, 0].cpu().numpy())
    figures["errors"] = error_map(places, metres, config.radius_m)
    if history:
        figures["curves"] = training_curves(history)
    return {name: figure for name, figure in figures.items() if figure is not None}


def save_figures(figures: Mapping[str, Figure], out: str) -> list[str]:
    """Write each figure as PNG and PDF below a URI; return the files."""
    files = []
    for name, figure in figures.items():
        for suffix in FORMATS:
            files.append(storage.join(out, f"{name}.{suffix}"))
            save(figure, files[-1])
    return files

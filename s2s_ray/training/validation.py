"""Validation during training, shared among the workers: recall and the quality of the synthesis."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from s2s_ray.config import EvaluationConfig
from s2s_ray.config.protocol import Protocol
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.sampler import share
from s2s_ray.evaluation.descriptors import batches, embed_indices, evaluating
from s2s_ray.evaluation.image_quality import measure
from s2s_ray.evaluation.outcome import Outcome, figures_by_metric
from s2s_ray.evaluation.protocols import Gallery, ask, embed_gallery
from s2s_ray.evaluation.recall import recall_at_k
from s2s_ray.model.s2s import S2S
from s2s_ray.runtime.collectives import gather_rows, rank, sum_over_ranks, world_size


def validation_recall(
    model: S2S, dataset: PairDataset, config: EvaluationConfig, device: torch.device
) -> dict[str, Any]:
    """Measure the street-to-satellite recall of a split; each worker embeds its share, and all return the same.

    The model is left in training mode.

    Returns: `recall_at_1` and so on, and `gallery`; of `config.protocols`, with the seed `config.seed`, the figures
    that have a value, as `PROTOCOL.FIGURE`.
    """
    shares, counts = _shares(dataset)
    own = embed_indices(model, dataset, shares[rank()].tolist(), config.batch, device)
    model.train()
    with torch.no_grad():
        street = gather_rows(own.street, counts)
        satellite = gather_rows(own.satellite, counts)
    result: dict[str, Any] = recall_at_k(street, satellite, chunk=config.chunk).as_dict()
    aligned = Gallery(satellite, np.zeros((len(dataset), 1, 2)))
    for name in config.protocols:
        outcome = _outcome(model, dataset, Protocol.parse(name), aligned, config, device)
        result |= figures_by_metric({name: outcome.figures()})
    return result


def _outcome(
    model: S2S,
    dataset: PairDataset,
    protocol: Protocol,
    aligned: Gallery,
    config: EvaluationConfig,
    device: torch.device,
) -> Outcome:
    """Ask all panoramas of a split under one protocol; each worker asks its share. Only their own tiles are correct."""
    config = config.model_copy(update={"radius_m": None})
    shares, counts = _shares(dataset)
    own, seed = shares[rank()].tolist(), config.seed
    gallery = aligned
    if protocol.offcentre_m is not None:
        some = embed_gallery(model, dataset, dataset.info.geometry, protocol, seed, own, config, device)
        centres = some.offsets.shape[1]
        rows = gather_rows(some.rows[:], [count * centres for count in counts])
        gallery = Gallery(rows, gather_rows(torch.from_numpy(some.offsets).to(device), counts).cpu().numpy())
    asked = ask(model, dataset, protocol, seed, gallery, own, config, device)
    table = gather_rows(torch.from_numpy(asked.columns).to(device), counts)
    return Outcome.of_columns(table.cpu().numpy(), len(dataset))


def _shares(dataset: PairDataset) -> tuple[list[NDArray[np.int64]], list[int]]:
    """Return each worker's pairs, and their numbers."""
    shares = [share(np.arange(len(dataset)), worker, world_size()) for worker in range(world_size())]
    return shares, [len(part) for part in shares]


def validation_quality(
    model: S2S, dataset: PairDataset, config: EvaluationConfig, device: torch.device
) -> dict[str, float]:
    """Measure the mean `l1`, `psnr`, `ssim` and `sharpness` of a split's synthesised views.

    Each worker synthesises its share, and all return the same. The mode of the model is restored.
    """
    own = share(np.arange(len(dataset)), rank(), world_size()).tolist()
    names = ("l1", "psnr", "ssim", "sharpness")
    totals = torch.zeros(len(names), dtype=torch.float64, device=device)
    with evaluating(model), torch.inference_mode():
        for pairs in batches(dataset, own, config.batch, device):
            real = model.normalise(pairs.street, pairs.seen)
            values = measure(model.synthesize(pairs.polar), real, pairs.seen)
            totals += torch.stack([values[name].double().sum() for name in names])
    sum_over_ranks(totals)
    return dict(zip(names, (totals / len(dataset)).tolist(), strict=True))

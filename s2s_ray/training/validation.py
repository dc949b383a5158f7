"""Validation during training, shared among the workers: recall and the quality of the synthesis."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from s2s_ray.config import EvaluationConfig
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.sampler import share
from s2s_ray.evaluation.descriptors import batches, embed_indices, evaluating
from s2s_ray.evaluation.image_quality import measure
from s2s_ray.evaluation.recall import recall_at_k
from s2s_ray.model.s2s import S2S
from s2s_ray.runtime.collectives import gather_rows, rank, sum_over_ranks, world_size


def validation_recall(
    model: S2S, dataset: PairDataset, config: EvaluationConfig, device: torch.device
) -> dict[str, Any]:
    """Measure the street-to-satellite recall of a split; each worker embeds its share, and all return the same.

    The model is left in training mode.

    Returns: `recall_at_1` and so on, and `gallery`.
    """
    shares = [share(np.arange(len(dataset)), worker, world_size()) for worker in range(world_size())]
    counts = [len(part) for part in shares]
    own = embed_indices(model, dataset, shares[rank()].tolist(), config.batch, device)
    model.train()
    with torch.no_grad():
        street = gather_rows(own.street, counts)
        satellite = gather_rows(own.satellite, counts)
    return recall_at_k(street, satellite, chunk=config.chunk).as_dict()


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
            values = measure(model.synthesize(pairs.polar), model.normalise(pairs.street))
            totals += torch.stack([values[name].double().sum() for name in names])
    sum_over_ranks(totals)
    return dict(zip(names, (totals / len(dataset)).tolist(), strict=True))

"""Validation recall during training, shared among the workers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from s2s_ray.collectives import gather_rows, rank, world_size
from s2s_ray.config import EvaluationConfig
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.sampler import share
from s2s_ray.evaluation.descriptors import embed_indices
from s2s_ray.evaluation.recall import recall_at_k
from s2s_ray.model.s2s import S2S


def validation_recall(
    model: S2S, dataset: PairDataset, config: EvaluationConfig, device: torch.device
) -> dict[str, Any]:
    """Street-to-satellite recall of a split: each worker embeds its share, all know the result.

    Leaves the model in training mode. Returns `recall_at_1`, ... and `gallery`.
    """
    shares = [share(np.arange(len(dataset)), worker, world_size()) for worker in range(world_size())]
    counts = [len(part) for part in shares]
    own = embed_indices(model, dataset, shares[rank()].tolist(), config.batch, device)
    model.train()
    with torch.no_grad():
        street = gather_rows(own.street, counts)
        satellite = gather_rows(own.satellite, counts)
    return recall_at_k(street, satellite, chunk=config.chunk).as_dict()

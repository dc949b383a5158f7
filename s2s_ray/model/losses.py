"""The losses: soft-margin triplet with hard-negative mining, GAN and L1 (supplement, section B), and InfoNCE.

Each function returns this worker's share; the shares of all workers add up to the loss of the global batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from s2s_ray.config import LossConfig


class RetrievalLoss(NamedTuple):
    """The retrieval loss of a batch, over `kept` of its `valid` triplets; without information if `kept` is 0."""

    loss: Tensor
    kept: int
    valid: int


def squared_distances(satellite: Tensor, street: Tensor) -> Tensor:
    """Return the squared L2 distances of unit descriptors, N D and M D -> N M: d = 2 - 2 s.s'."""
    return 2 - 2 * satellite @ street.T


def triplet_loss(
    satellite: Tensor, street: Tensor, *, alpha: float, discard: float = 0.0, negatives: Tensor | None = None
) -> RetrievalLoss:
    """Compute the exhaustive soft-margin triplet loss, the mean of log(1 + exp(alpha * (d_pos - d_neg))).

    It is over all 2B(B-1) triplets of the batch: each satellite descriptor with the street descriptors of the other
    pairs, and the reverse. `discard` percent of them, those with the smallest loss, are left out of the mean
    (hard-negative mining): kept = max(1, ceil((1 - discard/100) * valid)).

    Args:
        satellite, street: B D unit descriptors; row i of both is one pair.
        alpha: sharpness; 10 in the paper.
        discard: percentage, 0 to below 100.
        negatives: B B bool, true if pair j may be a negative of pair i (the diagonal is ignored); default all. Triplets
            of other pairs are dropped after the loss: they neither count nor take the place of another.

    Returns: the mean and the numbers of triplets. Without a valid triplet the loss is a zero that carries no
    information, and `kept` is 0.

    Source: supplement, section B (exhaustive mini-batch strategy of Vo and Hays 2016).
    """
    distance = squared_distances(satellite, street)
    positive = distance.diagonal()
    losses = torch.stack(
        [
            F.softplus(alpha * (positive[:, None] - distance)),  # anchor satellite i, negative street j
            F.softplus(alpha * (positive[None, :] - distance)).T,  # anchor street i, negative satellite j
        ]
    )
    allowed = ~torch.eye(len(distance), dtype=torch.bool, device=distance.device)
    if negatives is not None:
        allowed &= negatives
    selected = losses[allowed.expand_as(losses)]
    valid = selected.numel()
    if valid == 0:
        return RetrievalLoss(losses.sum() * 0.0, 0, 0)
    kept = max(1, math.ceil(valid * (100 - discard) / 100))
    if kept < valid:
        selected = selected.topk(kept, sorted=False).values
    return RetrievalLoss(selected.mean(), kept, valid)


def info_nce(
    satellite: Tensor, street: Tensor, *, scale: float, label_smoothing: float = 0.0, negatives: Tensor | None = None
) -> RetrievalLoss:
    """Compute symmetric InfoNCE: the cross-entropy of choosing the other view of each pair among the batch.

    The candidates of an anchor are the other view of its own pair and those of its negatives, with probabilities
    softmax(scale * cosine). The target is 1 for the own pair, less the `label_smoothing` that all candidates share
    evenly. The loss is the mean over the 2B anchors that have a negative.

    Args:
        satellite, street: B D unit descriptors; row i of both is one pair.
        scale: inverse of the temperature.
        negatives: as in `triplet_loss`; other pairs are no candidates.

    Returns: the mean, and the number of anchors with each of their negatives, of which none is discarded.

    Source: van den Oord et al. 2018; both directions as in CLIP (Radford et al. 2021) and Sample4Geo (Deuser et al.
    2023).
    """
    cosines = satellite @ street.T
    own = torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
    candidates = torch.ones_like(own) if negatives is None else own | negatives
    valid = 2 * (int(candidates.sum()) - len(cosines))
    if valid == 0:
        return RetrievalLoss(cosines.sum() * 0.0, 0, 0)
    logits = scale * torch.stack([cosines, cosines.T])
    log_probability = (logits - logits.masked_fill(~candidates, -math.inf).logsumexp(2, keepdim=True)) * candidates
    count = candidates.sum(1)
    right = log_probability.diagonal(dim1=1, dim2=2)
    losses = -(1 - label_smoothing) * right - label_smoothing * log_probability.sum(2) / count
    return RetrievalLoss(losses[:, count > 1].mean(), valid, valid)


def turned_info_nce(
    satellite: Tensor, turned: Tensor, *, scale: float, label_smoothing: float = 0.0, negatives: Tensor | None = None
) -> Tensor:
    """Compute the cross-entropy of choosing a street view's tile and its heading together.

    The candidates of a street view are the tiles of its own pair and of its negatives, each at every heading, with
    probabilities softmax(scale * cosine). The two headings next to the right one are no candidates for the own tile:
    they show nearly the same. The target is 1 for the own tile at the right heading, less the `label_smoothing` that
    all tiles share evenly, each at any heading. The loss is the mean over the street views that have a negative.

    Args:
        satellite: B D unit descriptors of tiles.
        turned: B T D unit descriptors of the street views at T headings; entry 0 is the right one.
        scale, negatives: as in `info_nce`.

    Returns: the mean; a zero that carries no information if no street view has a negative.
    """
    pairs, headings = turned.shape[:2]
    own = torch.eye(pairs, dtype=torch.bool, device=turned.device)
    tiles = torch.ones_like(own) if negatives is None else own | negatives
    candidates = tiles[:, :, None].repeat(1, 1, headings)
    candidates[:, :, [1, -1]] &= ~own[:, :, None]
    logits = scale * torch.einsum("btd,gd->bgt", turned, satellite)
    log_probability = logits.masked_fill(~candidates, -math.inf).flatten(1).log_softmax(1).view_as(logits)
    right = log_probability[:, :, 0].diagonal()
    count = tiles.sum(1)
    tile = log_probability[tiles].logsumexp(1)  # of each candidate tile at any heading
    spread = torch.zeros_like(right).index_add(0, tiles.nonzero()[:, 0], tile) / count
    losses = -(1 - label_smoothing) * right - label_smoothing * spread
    chosen = losses[count > 1]
    return chosen.mean() if len(chosen) else losses.sum() * 0.0


def retrieval_loss(
    config: LossConfig,
    satellite: Tensor,
    street: Tensor,
    *,
    discard: float = 0.0,
    negatives: Tensor | None = None,
    turn: Callable[[Tensor], Tensor] | None = None,
) -> RetrievalLoss:
    """Compute the configured loss (`loss.retrieval`) of unit descriptors, see `triplet_loss` and `info_nce`.

    Args:
        turn: descriptors B D for every heading, B T D, which `loss.turned` needs (`AzimuthPooling.turn`).
    """
    if config.retrieval == "triplet":
        return triplet_loss(satellite, street, alpha=config.alpha, discard=discard, negatives=negatives)
    assert discard == 0, "infonce has no mining, which the configuration refuses"
    scale, smoothing = config.scale, config.label_smoothing
    found = info_nce(satellite, street, scale=scale, label_smoothing=smoothing, negatives=negatives)
    if config.turned == 0:
        return found
    assert turn is not None, "descriptors that cannot be turned, which the configuration refuses"
    searched = turned_info_nce(satellite, turn(street), scale=scale, label_smoothing=smoothing, negatives=negatives)
    return found._replace(loss=torch.lerp(found.loss, searched, config.turned))


def allowed_negatives(points: Tensor, frames: Tensor, min_distance_m: float) -> Tensor:
    """Return which pairs are far enough apart to be negatives of each other, B B bool.

    Args:
        points: B 2 or B 3 points in metres, float64, as in `Places`; NaN where unknown.
        frames: B frames of coordinates; pairs of different frames, and pairs without coordinates, count as far apart.
        min_distance_m: pairs whose points are closer than this are not negatives.
    """
    # Differences in float64 and never by a matrix product, in which coordinates of 6e6 m would cancel.
    near = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist") < min_distance_m
    return ~(near & (frames[:, None] == frames[None, :]))


def adversarial_loss(logits: Tensor, label: float, count: int) -> Tensor:
    """Compute this worker's share of the binary cross-entropy of patch logits against a constant label.

    Args:
        logits: patch logits of this worker's images.
        label: 0 for synthesised views; 1, or less with label smoothing, for real ones.
        count: number of patch logits in the global batch.
    """
    target = torch.full_like(logits, label)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / count


def reconstruction_loss(fake: Tensor, real: Tensor, count: int) -> Tensor:
    """Compute this worker's share of the mean absolute difference of pixels in [-1, 1].

    Args:
        fake, real: synthesised and real street views of this worker.
        count: number of values in the global batch.
    """
    return F.l1_loss(fake, real, reduction="sum") / count

"""One training cycle in the paper's order: forward G; discriminator step; retrieval step; generator step.

With `micro_batch` each network's gradients are those of the whole batch all the same, made piece by piece: forward
passes are repeated with a graph when their turn comes, and the triplet loss reaches them through its gradient at the
descriptors, which is made once (Gao et al. 2021, "Scaling deep contrastive learning batch size").

Source: supplement, section B; MODEL_SPEC, "Optimisation".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from s2s_ray.config import LossConfig, TrainConfig
from s2s_ray.errors import NotFiniteError
from s2s_ray.model.batchnorm import track_statistics
from s2s_ray.model.blocks import power_iterate
from s2s_ray.model.losses import Triplets, adversarial_loss, reconstruction_loss, triplet_loss
from s2s_ray.model.precision import at_least_float32
from s2s_ray.model.s2s import S2S
from s2s_ray.runtime.collectives import gather_rows, start_sum, sum_over_ranks, world_size
from s2s_ray.training.networks import Networks

LOSS_NAMES = ("d_loss", "r_loss", "gan", "ret_weighted", "l1_weighted", "g_loss")

Descriptors = tuple[Tensor, Tensor]
"""Of some pairs' satellite and street views, each b x D."""


@dataclass(frozen=True)
class Piece:
    """Pairs of this worker and what G makes of them; with the graph only where they are all its pairs.

    Without a generator (`retrieval_only`) it makes nothing: `fake` and `features` are empty.
    """

    satellite: Tensor
    street: Tensor
    fake: Tensor
    features: Tensor


@dataclass(frozen=True)
class GlobalBatch:
    """What all workers know of the batch they share."""

    shares: Sequence[int]
    negatives: Tensor | None
    discard: float

    @property
    def pairs(self) -> int:
        return sum(self.shares)


class TrainingStep:
    """The three networks' optimisers and one alternating update of each per call.

    Every worker calls it with its share of the global batch; the gradients are those of the global batch,
    whatever the shares. `optimizers` maps generator, discriminator and retrieval to their Adam. An ablation
    (`model.ablation`; supplement, section C) leaves out the updates of networks and the terms of losses that it is
    without. With `train.compile` batches of `train.batch` pairs go through compiled networks, others as they are.
    """

    def __init__(self, model: S2S, loss: LossConfig, train: TrainConfig) -> None:
        self.model = model
        self.loss = loss
        self.precision = train.precision
        self.micro_batch = train.micro_batch
        model.channels_last = train.channels_last
        self._batch = train.batch
        self._eager = self._networks = Networks.of(model)
        self._compiled = Networks.compiled(model) if train.compile else None
        rates = {
            "generator": train.lr_generator,
            "discriminator": train.lr_discriminator,
            "retrieval": train.lr_retrieval,
        }
        idle = {"generator": not model.config.synthesizes, "discriminator": not model.config.adversarial}
        self.optimizers = {
            name: torch.optim.Adam(
                _trained(model.get_submodule(name)), lr=rate, betas=train.betas, eps=1e-8, fused=True
            )
            for name, rate in rates.items()
            if not idle.get(name, False)
        }

    def __call__(
        self,
        satellite: Tensor,
        street: Tensor,
        *,
        shares: Sequence[int] | None = None,
        negatives: Tensor | None = None,
        discard: float = 0.0,
    ) -> dict[str, float]:
        """Update D, R and G once.

        Args:
            satellite, street: this worker's b 3 H W, polar and panorama, in [-1, 1].
            shares: pairs of every worker, b of this one among them; None for a single worker.
            negatives: B B bool over the *global* batch in rank order, see `losses.triplet_loss`.
            discard: mining percentage.

        Returns: losses of the global batch by name (`LOSS_NAMES`), `kept` and `valid` triplets, and the norms of the
        three gradients (`d_grad_norm`, `r_grad_norm`, `g_grad_norm`); an ablation's are fewer.

        Raises:
            NotFiniteError: on every worker alike. What the forward pass makes of a bad pair or of bad weights is
                seen before any optimiser has moved, what only the new D and R make of it before G's has.
        """
        batch = GlobalBatch([len(satellite)] if shares is None else shares, negatives, discard)
        assert len(batch.shares) == world_size(), (shares, world_size())
        model = self.model
        self._networks = self._eager
        if self._compiled is not None and batch.pairs == self._batch:  # not an epoch's last: each size takes minutes
            self._networks = self._compiled
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with torch.autocast(satellite.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            if model.config.synthesizes:
                power_iterate(model.generator)
            pieces = self._generate(satellite, street)

            d, losses = self._discriminator_gradients(pieces, batch.pairs) if model.config.adversarial else (None, {})
            power_iterate(model.retrieval)
            with track_statistics(model.retrieval):
                embedded = self._embed(pieces, graph=len(pieces) == 1)
            found, at_descriptors = self._triplets(embedded, batch)
            r = Gradients(model.retrieval, self._retrieval_losses(pieces, embedded, at_descriptors))
            losses = _summed(**losses, r_loss=found.loss / world_size())
            norms = {} if d is None else {"d_grad_norm": d.norm()}
            values = _finite(**losses, **norms, r_grad_norm=r.norm())
            if d is not None:
                self.optimizers["discriminator"].step()
            if found.kept:
                self.optimizers["retrieval"].step()

            if model.config.synthesizes:
                values |= self._update_generator(pieces, batch)
        return {**values, "kept": float(found.kept), "valid": float(found.valid)}

    def _discriminator_gradients(self, pieces: Sequence[Piece], pairs: int) -> tuple[Gradients, dict[str, Tensor]]:
        """D's gradients and its loss."""
        power_iterate(self.model.discriminator)
        parts: list[Tensor] = []
        gradients = Gradients(self.model.discriminator, self._discriminator_losses(pieces, pairs, parts))
        return gradients, {"d_loss": torch.stack(parts).sum()}

    def _update_generator(self, pieces: Sequence[Piece], batch: GlobalBatch) -> dict[str, float]:
        """G's step through the updated D and R, which receive no gradient. Returns its losses and its norm."""
        model = self.model
        terms: dict[str, Tensor] = {}
        with frozen(model.discriminator, model.retrieval):
            at_descriptors: list[Descriptors] | None = None
            if not model.config.separate_encoder:
                again, at_descriptors = self._triplets(self._embed(pieces, graph=False), batch)
                terms["ret_weighted"] = self.loss.lambda_ret * again.loss / world_size()
            parts: list[Tensor] = []
            g = Gradients(model.generator, self._generator_losses(pieces, at_descriptors, batch.pairs, parts))
        gan, l1 = torch.stack(parts).sum(0)
        if model.config.adversarial:
            terms["gan"] = gan
        terms["l1_weighted"] = self.loss.lambda_l1 * l1
        weights = {"gan": self.loss.lambda_gan}
        g_loss = torch.stack([weights.get(name, 1.0) * term for name, term in terms.items()]).sum()
        values = _finite(**_summed(**terms, g_loss=g_loss), g_grad_norm=g.norm())
        self.optimizers["generator"].step()
        return values

    def _generate(self, satellite: Tensor, street: Tensor) -> list[Piece]:
        """G's forward pass, with a graph only where one piece is everything."""
        size = self.micro_batch or max(1, len(satellite))
        parts = list(zip(torch.split(satellite, size), torch.split(street, size), strict=True))
        if not self.model.config.synthesizes:
            return [Piece(polar, panorama, polar[:0], polar[:0]) for polar, panorama in parts]
        with torch.set_grad_enabled(len(parts) == 1):
            return [Piece(polar, panorama, *self._networks.generator(polar)) for polar, panorama in parts]

    def _discriminator_losses(self, pieces: Sequence[Piece], pairs: int, parts: list[Tensor]) -> Iterator[Tensor]:
        """Half the sum of both cross-entropies, piece by piece; each is also appended to `parts`.

        Real and synthesised pairs go through D in one pass.
        """
        for piece in pieces:
            real, fake = (torch.cat([piece.satellite, view], 1) for view in (piece.street, piece.fake.detach()))
            logits = at_least_float32(self._networks.discriminator(torch.cat([real, fake])))
            real_logits, fake_logits = logits.chunk(2)
            count = _count(real_logits, pairs)
            loss = adversarial_loss(real_logits, self.loss.real_label, count) + adversarial_loss(
                fake_logits, 0.0, count
            )
            parts.append(0.5 * loss.detach())
            yield 0.5 * loss

    def _embed(self, pieces: Sequence[Piece], *, graph: bool) -> list[Descriptors]:
        """Both views' descriptors of each piece; a graph leads to R's weights and not to G's."""
        retrieval = self.model.retrieval
        with torch.set_grad_enabled(graph):
            return [
                (
                    retrieval.embed_satellite(self._features(piece)),
                    retrieval.street_attention(self._networks.street_encoder(piece.street)),
                )
                for piece in pieces
            ]

    def _features(self, piece: Piece) -> Tensor:
        """The satellite's local features as R sees them: without a way back to G, or of an encoder of its own."""
        if self._networks.satellite_encoder is None:
            return piece.features.detach()
        own: Tensor = self._networks.satellite_encoder(piece.satellite).features
        return own

    def _triplets(self, embedded: Sequence[Descriptors], batch: GlobalBatch) -> tuple[Triplets, list[Descriptors]]:
        """The triplet loss of the global batch, alike on every worker, and its gradient at its own descriptors."""
        rows = [torch.cat(view).detach().requires_grad_() for view in zip(*embedded, strict=True)]
        with torch.autocast(rows[0].device.type, enabled=False):
            found = triplet_loss(
                *(gather_rows(view, batch.shares) for view in rows),
                alpha=self.loss.alpha,
                discard=batch.discard,
                negatives=batch.negatives,
            )
            satellite, street = torch.autograd.grad(found.loss / world_size(), rows)
        sizes = [len(descriptors) for descriptors, _ in embedded]
        return found, list(zip(torch.split(satellite, sizes), torch.split(street, sizes), strict=True))

    def _retrieval_losses(
        self, pieces: Sequence[Piece], embedded: Sequence[Descriptors], gradients: Sequence[Descriptors]
    ) -> Iterator[Tensor]:
        """A loss of each piece whose gradient in R's weights is the piece's part of the triplet loss's."""
        for piece, descriptors, (at_satellite, at_street) in zip(pieces, embedded, gradients, strict=True):
            satellite, street = descriptors if len(pieces) == 1 else self._embed([piece], graph=True)[0]
            yield (satellite * at_satellite).sum() + (street * at_street).sum()

    def _generator_losses(
        self, pieces: Sequence[Piece], gradients: Sequence[Descriptors] | None, pairs: int, parts: list[Tensor]
    ) -> Iterator[Tensor]:
        """The same in G's weights and for G's loss; each piece's GAN and L1 terms are also appended to `parts`.

        Without `gradients` there is no retrieval term, and in an ablation without D the GAN term is nought.
        """
        for number, piece in enumerate(pieces):
            whole = len(pieces) == 1
            fake, features = (piece.fake, piece.features) if whole else self._networks.generator(piece.satellite)
            l1 = reconstruction_loss(at_least_float32(fake), piece.street, _count(piece.street, pairs))
            loss, gan = self.loss.lambda_l1 * l1, torch.zeros_like(l1)
            if self.model.config.adversarial:
                logits = at_least_float32(self._networks.discriminator(torch.cat([piece.satellite, fake], 1)))
                gan = adversarial_loss(logits, self.loss.real_label, _count(logits, pairs))
                loss = loss + self.loss.lambda_gan * gan
            if gradients is not None:
                at_satellite = gradients[number][0]
                triplet = (self.model.retrieval.embed_satellite(features) * at_satellite).sum()
                loss = loss + self.loss.lambda_ret * triplet
            parts.append(torch.stack([gan.detach(), l1.detach()]))
            yield loss


class Gradients:
    """The gradient of the global batch in a network's trained weights, left in their `grad`.

    Made from this worker's losses one after the other, and added up over the workers while others are computed:
    it is there once `norm` was asked for.
    """

    def __init__(self, network: nn.Module, losses: Iterable[Tensor]) -> None:
        parameters = _trained(network)
        for parameter in parameters:
            parameter.grad = None  # of the step before: room for this one's
        sums: list[Tensor | None] = [None] * len(parameters)
        for loss in losses:
            for k, gradient in enumerate(torch.autograd.grad(loss, parameters, allow_unused=True)):
                if gradient is not None:
                    total = sums[k]
                    # a copy: autograd may hand the same tensor out twice
                    sums[k] = (
                        gradient.clone(memory_format=torch.contiguous_format) if total is None else total.add_(gradient)
                    )
        self._totals = [
            torch.zeros_like(parameter) if total is None else total
            for parameter, total in zip(parameters, sums, strict=True)
        ]
        for parameter, total in zip(parameters, self._totals, strict=True):
            parameter.grad = total
        self._wait = start_sum(*self._totals)

    def norm(self) -> Tensor:
        """L2 norm over all the weights."""
        self._wait()
        return torch.nn.utils.get_total_norm(self._totals)


def _summed(**losses: Tensor) -> dict[str, Tensor]:
    """Losses of the global batch from each worker's shares."""
    totals = torch.stack([loss.detach().double() for loss in losses.values()])
    sum_over_ranks(totals)
    return dict(zip(losses, totals, strict=True))


def _finite(**values: Tensor) -> dict[str, float]:
    """The values as numbers, alike on every worker. Raises NotFiniteError."""
    numbers = torch.stack([value.double() for value in values.values()]).tolist()
    for name, number in zip(values, numbers, strict=True):
        if not math.isfinite(number):
            raise NotFiniteError(f"{name} is {number}")
    return dict(zip(values, numbers, strict=True))


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """Parameters of the networks receive no gradient inside the block."""
    parameters = [parameter for network in networks for parameter in _trained(network)]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _trained(network: nn.Module) -> list[nn.Parameter]:
    """Parameters that are trained: a convolution's bias before an instance norm is not."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def _count(local: Tensor, pairs: int) -> int:
    """Values of the global batch, from this worker's tensor of some pairs."""
    return pairs * math.prod(local.shape[1:])

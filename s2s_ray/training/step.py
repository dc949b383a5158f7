"""One training cycle in the paper's order: forward G; discriminator step; retrieval step; generator step.

With `micro_batch` the gradients of each network are still those of the whole batch, accumulated piece by piece. Forward
passes are repeated with a graph for each piece in turn, and the triplet loss reaches them through its gradient with
respect to the descriptors, which is computed once (Gao et al. 2021, "Scaling deep contrastive learning batch size").

Synthesis always trains on aligned pairs: a whole panorama, taken at the centre of its tile. Retrieval may train on
other views of the same places (`query`, `reference`). A reference needs another pass of G's encoder; the retrieval loss
then reaches G through its features.

Source: supplement, section B; docs/model.md, "Optimisation".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from s2s_ray.config import LossConfig, TrainConfig
from s2s_ray.errors import NotFiniteError
from s2s_ray.model.batchnorm import track_statistics
from s2s_ray.model.blocks import power_iterate
from s2s_ray.model.losses import RetrievalLoss, adversarial_loss, reconstruction_loss, retrieval_loss
from s2s_ray.model.precision import at_least_float32
from s2s_ray.model.retrieval import visible
from s2s_ray.model.s2s import S2S
from s2s_ray.runtime.collectives import gather_rows, sum_over_ranks, world_size
from s2s_ray.training.gradients import Gradients, frozen, trained_parameters
from s2s_ray.training.networks import Networks
from s2s_ray.training.pieces import GlobalBatch, Piece

LOSS_NAMES = ("d_loss", "r_loss", "gan", "ret_weighted", "l1_weighted", "g_loss")

Descriptors = tuple[Tensor, Tensor]
"""Descriptors of the satellite and street views of some pairs, b x D each."""


class TrainingStep:
    """The optimisers of the three networks, and one alternating update of each per call.

    Every worker calls it with its share of the global batch; the gradients are those of the global batch for any
    shares. `optimizers` maps generator, discriminator and retrieval to their Adam. An ablation (`model.ablation`;
    supplement, section C) omits the updates of the networks and the terms of the losses that it lacks. With
    `train.compile`, batches of exactly `train.batch` pairs use compiled networks, all others eager ones.
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
                trained_parameters(model.get_submodule(name)), lr=rate, betas=train.betas, eps=1e-8, fused=True
            )
            for name, rate in rates.items()
            if not idle.get(name, False)
        }

    def __call__(
        self,
        satellite: Tensor,
        street: Tensor,
        *,
        seen: Tensor | None = None,
        query: tuple[Tensor, Tensor | None] | None = None,
        reference: Tensor | None = None,
        shares: Sequence[int] | None = None,
        negatives: Tensor | None = None,
        discard: float = 0.0,
    ) -> dict[str, float]:
        """Update D, R and G once.

        Args:
            satellite, street: this worker's polar images and panoramas, b 3 H W, in [-1, 1].
            seen: what of `street` was seen, bool b H W; None: all. Synthesis learns from this alone: D sees nothing of
                the remainder in real and synthesised views. All workers give it, or none.
            query: the street views for retrieval as a user would ask with them, like `street`, and what of them was
                seen (bool b H W; None: all). Default: `street`.
            reference: the polar images for retrieval, like `satellite`, for instance around another centre. Default:
                `satellite`.
            shares: number of pairs of every worker, b of this one among them; None for a single worker.
            negatives: B B bool over the *global* batch in rank order, see `losses.triplet_loss`.
            discard: mining percentage; 0 for a retrieval loss without mining.

        Returns: losses of the global batch by name (`LOSS_NAMES`), `kept` and `valid` triplets, and the norms of the
        three gradients (`d_grad_norm`, `r_grad_norm`, `g_grad_norm`); an ablation has fewer of them.

        Raises:
            NotFiniteError: a loss or a gradient norm is not finite, on every worker alike. Bad pairs and bad weights
                are detected before any optimiser steps; values that only the updated D and R produce, before G does.
        """
        pixels = None if seen is None else int(_summed(seen=seen.sum())["seen"])
        batch = GlobalBatch([len(satellite)] if shares is None else shares, negatives, discard, pixels)
        assert len(batch.shares) == world_size(), (shares, world_size())
        model = self.model
        self._networks = self._eager
        if self._compiled is not None and batch.pairs == self._batch:  # not a short last one: each size takes minutes
            self._networks = self._compiled
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with torch.autocast(satellite.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            if model.config.synthesizes:
                power_iterate(model.generator)
            pieces = self._generate(Piece.split(satellite, street, seen, query, reference, self.micro_batch))

            d, losses = self._discriminator_gradients(pieces, batch.pairs) if model.config.adversarial else (None, {})
            power_iterate(model.retrieval)
            with track_statistics(model.retrieval):
                embedded = self._embed(pieces, graph=len(pieces) == 1)
            found, at_descriptors = self._retrieval_loss(embedded, batch)
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
        """Return the gradients of D, and its loss."""
        power_iterate(self.model.discriminator)
        parts: list[Tensor] = []
        gradients = Gradients(self.model.discriminator, self._discriminator_losses(pieces, pairs, parts))
        return gradients, {"d_loss": torch.stack(parts).sum()}

    def _update_generator(self, pieces: Sequence[Piece], batch: GlobalBatch) -> dict[str, float]:
        """Step G through the updated D and R, which receive no gradient; return its losses and gradient norm."""
        model = self.model
        terms: dict[str, Tensor] = {}
        with frozen(model.discriminator, model.retrieval):
            at_descriptors: list[Descriptors] | None = None
            if not model.config.separate_encoder:
                again, at_descriptors = self._retrieval_loss(self._embed(pieces, graph=False), batch)
                terms["ret_weighted"] = self.loss.lambda_ret * again.loss / world_size()
            parts: list[Tensor] = []
            g = Gradients(model.generator, self._generator_losses(pieces, at_descriptors, batch, parts))
        gan, l1 = torch.stack(parts).sum(0)
        if model.config.adversarial:
            terms["gan"] = gan
        terms["l1_weighted"] = self.loss.lambda_l1 * l1
        weights = {"gan": self.loss.lambda_gan}
        g_loss = torch.stack([weights.get(name, 1.0) * term for name, term in terms.items()]).sum()
        values = _finite(**_summed(**terms, g_loss=g_loss), g_grad_norm=g.norm())
        self.optimizers["generator"].step()
        return values

    def _generate(self, pieces: Sequence[Piece]) -> list[Piece]:
        """Run the forward passes of G, with a graph only if there is a single piece."""
        if not self.model.config.synthesizes:
            return list(pieces)
        with torch.set_grad_enabled(len(pieces) == 1):
            outputs = [self._synthesize(piece) for piece in pieces]
        return [
            replace(piece, fake=fake, features=features)
            for piece, (fake, features) in zip(pieces, outputs, strict=True)
        ]

    def _synthesize(self, piece: Piece) -> tuple[Tensor, Tensor]:
        """Return the view that G synthesises for a piece, and the features of the piece's reference."""
        fake, features = self._networks.generator(piece.satellite)
        if not piece.aligned and not self.model.config.separate_encoder:
            features = self._networks.encoder(piece.reference).features
        return fake, features

    def _discriminator_losses(self, pieces: Sequence[Piece], pairs: int, parts: list[Tensor]) -> Iterator[Tensor]:
        """Yield half the sum of both cross-entropies for each piece; it is also appended to `parts`.

        Real and synthesised pairs go through D in one pass.
        """
        for piece in pieces:
            painted = visible(piece.fake.detach(), piece.shown)
            real, fake = (torch.cat([piece.satellite, view], 1) for view in (piece.street, painted))
            logits = at_least_float32(self._networks.discriminator(torch.cat([real, fake])))
            real_logits, fake_logits = logits.chunk(2)
            count = _count(real_logits, pairs)
            loss = adversarial_loss(real_logits, self.loss.real_label, count) + adversarial_loss(
                fake_logits, 0.0, count
            )
            parts.append(0.5 * loss.detach())
            yield 0.5 * loss

    def _embed(self, pieces: Sequence[Piece], *, graph: bool) -> list[Descriptors]:
        """Return the descriptors of both views of each piece; a graph reaches the weights of R and not those of G."""
        retrieval = self.model.retrieval
        with torch.set_grad_enabled(graph):
            return [
                (
                    retrieval.embed_satellite(self._features(piece)),
                    retrieval.pool_street(self._networks.street_encoder(piece.query), piece.seen),
                )
                for piece in pieces
            ]

    def _features(self, piece: Piece) -> Tensor:
        """Return the satellite's local features for R: detached from G, or from R's separate encoder."""
        if self._networks.satellite_encoder is None:
            return piece.features.detach()
        features: Tensor = self._networks.satellite_encoder(piece.reference).features
        return features

    def _retrieval_loss(
        self, embedded: Sequence[Descriptors], batch: GlobalBatch
    ) -> tuple[RetrievalLoss, list[Descriptors]]:
        """Return the retrieval loss of the global batch and its gradients with respect to this worker's descriptors.

        The loss is the same on every worker; the gradients are listed by piece.
        """
        rows = [torch.cat(view).detach().requires_grad_() for view in zip(*embedded, strict=True)]
        with torch.autocast(rows[0].device.type, enabled=False):
            found = retrieval_loss(
                self.loss,
                *(gather_rows(view, batch.shares) for view in rows),
                discard=batch.discard,
                negatives=batch.negatives,
                turn=self.model.retrieval.turn,
            )
            satellite, street = torch.autograd.grad(found.loss / world_size(), rows)
        sizes = [len(descriptors) for descriptors, _ in embedded]
        return found, list(zip(torch.split(satellite, sizes), torch.split(street, sizes), strict=True))

    def _retrieval_losses(
        self, pieces: Sequence[Piece], embedded: Sequence[Descriptors], gradients: Sequence[Descriptors]
    ) -> Iterator[Tensor]:
        """Yield for each piece a loss whose gradient is the piece's part of the retrieval loss's in R's weights."""
        for piece, descriptors, (at_satellite, at_street) in zip(pieces, embedded, gradients, strict=True):
            satellite, street = descriptors if len(pieces) == 1 else self._embed([piece], graph=True)[0]
            yield (satellite * at_satellite).sum() + (street * at_street).sum()

    def _generator_losses(
        self, pieces: Sequence[Piece], gradients: Sequence[Descriptors] | None, batch: GlobalBatch, parts: list[Tensor]
    ) -> Iterator[Tensor]:
        """Yield the like for the loss of G and its weights; the GAN and L1 terms are also appended to `parts`.

        Without `gradients` there is no retrieval term; in an ablation without D the GAN term is zero.
        """
        for number, piece in enumerate(pieces):
            whole = len(pieces) == 1
            fake, features = (piece.fake, piece.features) if whole else self._synthesize(piece)
            fake = visible(fake, piece.shown)
            values = _count(piece.street, batch.pairs) if batch.seen is None else max(1, 3 * batch.seen)
            l1 = reconstruction_loss(at_least_float32(fake), piece.street, values)
            loss, gan = self.loss.lambda_l1 * l1, torch.zeros_like(l1)
            if self.model.config.adversarial:
                logits = at_least_float32(self._networks.discriminator(torch.cat([piece.satellite, fake], 1)))
                gan = adversarial_loss(logits, self.loss.real_label, _count(logits, batch.pairs))
                loss = loss + self.loss.lambda_gan * gan
            if gradients is not None:
                at_satellite = gradients[number][0]
                retrieval = (self.model.retrieval.embed_satellite(features) * at_satellite).sum()
                loss = loss + self.loss.lambda_ret * retrieval
            parts.append(torch.stack([gan.detach(), l1.detach()]))
            yield loss


def _summed(**losses: Tensor) -> dict[str, Tensor]:
    """Sum each worker's shares of the losses to those of the global batch."""
    totals = torch.stack([loss.detach().double() for loss in losses.values()])
    sum_over_ranks(totals)
    return dict(zip(losses, totals, strict=True))


def _finite(**values: Tensor) -> dict[str, float]:
    """Return the values as numbers. Raises NotFiniteError, on every worker alike."""
    numbers = torch.stack([value.double() for value in values.values()]).tolist()
    for name, number in zip(values, numbers, strict=True):
        if not math.isfinite(number):
            raise NotFiniteError(f"{name} is {number}")
    return dict(zip(values, numbers, strict=True))


def _count(local: Tensor, pairs: int) -> int:
    """Return the number of values in the global batch, given this worker's tensor of some pairs."""
    return pairs * math.prod(local.shape[1:])

"""One training cycle in the paper's order: forward G; discriminator step; retrieval step; generator step.

Source: supplement, section B; MODEL_SPEC, "Optimisation".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from s2s_ray.collectives import gather_rows, sum_over_ranks, world_size
from s2s_ray.config import LossConfig, TrainConfig
from s2s_ray.losses import Triplets, adversarial_loss, reconstruction_loss, triplet_loss
from s2s_ray.model.batchnorm import track_statistics
from s2s_ray.model.blocks import power_iterate
from s2s_ray.model.precision import at_least_float32
from s2s_ray.model.s2s import S2S

LOSS_NAMES = ("d_loss", "r_loss", "gan", "ret_weighted", "l1_weighted", "g_loss")


class TrainingStep:
    """The three networks' optimisers and one alternating update of each per call.

    Every worker calls it with its share of the global batch; the gradients are those of the global batch,
    whatever the shares. `optimizers` maps generator, discriminator and retrieval to their Adam.
    """

    def __init__(self, model: S2S, loss: LossConfig, train: TrainConfig) -> None:
        self.model = model
        self.loss = loss
        self.precision = train.precision
        rates = {
            "generator": train.lr_generator,
            "discriminator": train.lr_discriminator,
            "retrieval": train.lr_retrieval,
        }
        self.optimizers = {
            name: torch.optim.Adam(_trained(model.get_submodule(name)), lr=rate, betas=train.betas, eps=1e-8)
            for name, rate in rates.items()
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

        Returns: losses of the global batch by name (`LOSS_NAMES`), and `kept` and `valid` triplets.
        """
        shares = [len(satellite)] if shares is None else shares
        assert len(shares) == world_size(), (shares, world_size())
        model, pairs = self.model, sum(shares)
        with torch.autocast(satellite.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            power_iterate(model.generator)
            fake, features = model.generator(satellite)

            power_iterate(model.discriminator)
            d_loss = self._discriminator_loss(satellite, street, fake.detach(), pairs)
            self._update("discriminator", d_loss)

            with track_statistics(model.retrieval):
                found = self._triplets(features.detach(), street, shares, negatives, discard, street_gradient=True)
            if found.kept:
                self._update("retrieval", found.loss / world_size())

            with frozen(model.discriminator, model.retrieval):
                logits = at_least_float32(model.discriminator(torch.cat([satellite, fake], 1)))
                gan = adversarial_loss(logits, self.loss.real_label, _count(logits, pairs))
                l1 = reconstruction_loss(at_least_float32(fake), street, _count(street, pairs))
                again = self._triplets(features, street, shares, negatives, discard, street_gradient=False)
                ret = again.loss / world_size()
                ret_weighted, l1_weighted = self.loss.lambda_ret * ret, self.loss.lambda_l1 * l1
                g_loss = self.loss.lambda_gan * gan + ret_weighted + l1_weighted
                self._update("generator", g_loss)
        shared = (d_loss, found.loss / world_size(), gan, ret_weighted, l1_weighted, g_loss)
        totals = torch.stack([loss.detach().double() for loss in shared])
        sum_over_ranks(totals)
        values = dict(zip(LOSS_NAMES, totals.tolist(), strict=True))
        return {**values, "kept": float(found.kept), "valid": float(found.valid)}

    def _discriminator_loss(self, satellite: Tensor, street: Tensor, fake: Tensor, pairs: int) -> Tensor:
        """Half the sum of both cross-entropies. Real and synthesised pairs go through D in one pass."""
        inputs = torch.cat([torch.cat([satellite, street], 1), torch.cat([satellite, fake], 1)])
        real_logits, fake_logits = at_least_float32(self.model.discriminator(inputs)).chunk(2)
        count = _count(real_logits, pairs)
        real = adversarial_loss(real_logits, self.loss.real_label, count)
        return 0.5 * (real + adversarial_loss(fake_logits, 0.0, count))

    def _triplets(
        self,
        features: Tensor,
        street: Tensor,
        shares: Sequence[int],
        negatives: Tensor | None,
        discard: float,
        *,
        street_gradient: bool,
    ) -> Triplets:
        """The triplet loss of the global batch, computed alike on every worker."""
        satellite_descriptors = gather_rows(self.model.retrieval.embed_satellite(features), shares)
        with torch.set_grad_enabled(street_gradient):
            street_descriptors = gather_rows(self.model.retrieval.embed_street(street), shares)
        with torch.autocast(street.device.type, enabled=False):
            return triplet_loss(
                satellite_descriptors,
                street_descriptors,
                alpha=self.loss.alpha,
                discard=discard,
                negatives=negatives,
            )

    def _update(self, network: str, share: Tensor) -> None:
        """One optimiser step on the gradients of the global loss, of which `share` is this worker's part."""
        parameters = _trained(self.model.get_submodule(network))
        gradients = torch.autograd.grad(share, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = torch.zeros_like(parameter) if gradient is None else gradient.contiguous()
        sum_over_ranks(*(p.grad for p in parameters if p.grad is not None))
        self.optimizers[network].step()


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

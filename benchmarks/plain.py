"""A plain implementation of the training cycle, the baseline for tests and measurements of the fast one.

It is float32 and eager, with direct convolutions and poolings, the attention matrix in memory, separate forward passes,
and PyTorch's norms and optimisers. It works on a copy of a model with the same parameters.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2s_ray.config import LossConfig, TrainConfig
from s2s_ray.model.attention import NonLocalBlock
from s2s_ray.model.batchnorm import GlobalBatchNorm2d
from s2s_ray.model.blocks import DownBlock, InstanceNorm2d, SpectralConv2d, UpBlock
from s2s_ray.model.s2s import S2S
from s2s_ray.training.gradients import frozen

NETWORKS = ("generator", "discriminator", "retrieval")


class PlainConv2d(SpectralConv2d):
    """A convolution that computes W / sigma in every forward pass and pads a copy of its input."""

    def forward(self, x: Tensor) -> Tensor:
        sigma = self.weight_u.clone() @ (self.weight.flatten(1) @ self.weight_v.clone())
        return self._conv_forward(x, self.weight / sigma, self.bias)


class PlainDownBlock(DownBlock):
    """The block of figure 1: the convolutions at full resolution, then the pooling."""

    def forward(self, x: Tensor) -> Tensor:
        main = F.avg_pool2d(self.conv2(F.relu(self.conv1(F.relu(x)))), 2)
        return main + F.avg_pool2d(self.skip(x), 2)


class PlainUpBlock(UpBlock):
    """The block of figure 3: the upsampling, then the convolutions at full resolution."""

    def forward(self, x: Tensor) -> Tensor:
        main = self.conv1(F.interpolate(F.relu(self.norm1(x)), scale_factor=2, mode="nearest"))
        main = self.conv2(F.relu(self.norm2(main)))
        return main + self.skip(F.interpolate(x, scale_factor=2, mode="nearest"))


class PlainNonLocalBlock(NonLocalBlock):
    """Self-attention with the matrix of all pairs of positions in memory."""

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).flatten(2)
        key = F.max_pool2d(self.key(x), 2).flatten(2)
        value = F.max_pool2d(self.value(x), 2).flatten(2)
        weights = (query.transpose(1, 2) @ key).softmax(2)
        attended = (value @ weights.transpose(1, 2)).view(x.shape[0], -1, *x.shape[2:])
        return x + self.gamma * self.output(attended)


class PlainBatchNorm2d(nn.BatchNorm2d):
    """PyTorch's batch norm, over the images of this process alone."""


PLAIN = {
    SpectralConv2d: PlainConv2d,
    DownBlock: PlainDownBlock,
    UpBlock: PlainUpBlock,
    NonLocalBlock: PlainNonLocalBlock,
    InstanceNorm2d: nn.InstanceNorm2d,
    GlobalBatchNorm2d: PlainBatchNorm2d,
}


def plain_copy(model: S2S) -> S2S:
    """Return a copy of a model with plain modules."""
    model = copy.deepcopy(model)
    for module in model.modules():
        module.__class__ = PLAIN.get(type(module), type(module))
    return model


class PlainCycle:
    """The paper's cycle on a plain copy of a model, one network after the other."""

    def __init__(self, model: S2S, loss: LossConfig, train: TrainConfig) -> None:
        self.model = plain_copy(model)
        self.loss = loss
        self.norms = [module for module in self.model.modules() if isinstance(module, PlainBatchNorm2d)]
        rates = (train.lr_generator, train.lr_discriminator, train.lr_retrieval)
        self.optimizers = {
            name: torch.optim.Adam(
                [p for p in self.model.get_submodule(name).parameters() if p.requires_grad],
                lr=rate,
                betas=train.betas,
                foreach=False,
            )
            for name, rate in zip(NETWORKS, rates, strict=True)
        }

    def __call__(self, satellite: Tensor, street: Tensor) -> dict[str, float]:
        """Update D, R and G once on B 3 H W in [-1, 1]; return the losses by name."""
        generator, discriminator = self.model.generator, self.model.discriminator
        _power_iterate(generator)
        fake, features = generator(satellite)

        _power_iterate(discriminator)
        real_term = _cross_entropy(discriminator(torch.cat([satellite, street], 1)), self.loss.real_label)
        fake_term = _cross_entropy(discriminator(torch.cat([satellite, fake.detach()], 1)), 0.0)
        d_loss = (real_term + fake_term) / 2
        self._step("discriminator", d_loss)

        r_loss = self._triplets(features.detach(), street, nullcontext())
        self._step("retrieval", r_loss)

        with frozen(discriminator, self.model.retrieval):
            for norm in self.norms:
                norm.momentum = 0.0  # normalises with batch statistics and updates nothing
            gan = _cross_entropy(discriminator(torch.cat([satellite, fake], 1)), self.loss.real_label)
            ret_weighted = self.loss.lambda_ret * self._triplets(features, street, torch.no_grad())
            l1_weighted = self.loss.lambda_l1 * (fake - street).abs().mean()
            g_loss = self.loss.lambda_gan * gan + ret_weighted + l1_weighted
            self._step("generator", g_loss)
            for norm in self.norms:
                norm.momentum = 0.1
        losses = {"d_loss": d_loss, "r_loss": r_loss, "gan": gan}
        losses |= {"ret_weighted": ret_weighted, "l1_weighted": l1_weighted, "g_loss": g_loss}
        return {name: loss.item() for name, loss in losses.items()}

    def _step(self, network: str, loss: Tensor) -> None:
        self.optimizers[network].zero_grad()
        loss.backward()
        self.optimizers[network].step()

    def _triplets(self, features: Tensor, street: Tensor, street_branch: AbstractContextManager[object]) -> Tensor:
        satellites = self.model.retrieval.embed_satellite(features)
        with street_branch:
            streets = self.model.retrieval.embed_street(street)
        distance = (satellites[:, None] - streets[None]).square().sum(2)
        positive = distance.diagonal()
        losses = [
            torch.log1p(torch.exp(self.loss.alpha * (positive[:, None] - distance))),
            torch.log1p(torch.exp(self.loss.alpha * (positive[None] - distance))),
        ]
        others = ~torch.eye(len(distance), dtype=torch.bool, device=distance.device)
        return torch.stack(losses)[:, others].mean()


def _power_iterate(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, SpectralConv2d):
            matrix = module.weight.detach().flatten(1)
            v = matrix.T @ module.weight_u
            module.weight_v.copy_(v / v.norm())
            u = matrix @ module.weight_v
            module.weight_u.copy_(u / u.norm())


def _cross_entropy(logits: Tensor, label: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))

"""The schedule of the learning rates."""

from __future__ import annotations

import math

import pytest
import torch

from s2s_ray.config import TrainConfig
from s2s_ray.training.schedule import factor, set_rates

STEPS = 40


def test_rates_are_constant_by_default() -> None:
    assert {factor(TrainConfig(), step, STEPS) for step in range(STEPS)} == {1.0}


def test_cosine_falls_to_zero_and_is_halfway_in_the_middle() -> None:
    train = TrainConfig(schedule="cosine")
    factors = [factor(train, step, STEPS) for step in range(STEPS)]
    assert factors[0] == 1.0
    assert factors[STEPS // 2] == pytest.approx(0.5)
    assert factors == sorted(factors, reverse=True)
    assert 0 < factors[-1] < 0.01
    assert sum(factors) == pytest.approx(math.fsum(math.cos(math.pi * k / (2 * STEPS)) ** 2 for k in range(STEPS)))


def test_warmup_rises_linearly_to_the_configured_rate() -> None:
    train = TrainConfig(warmup_steps=4)
    assert [factor(train, step, STEPS) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_each_network_has_its_own_rate() -> None:
    train = TrainConfig(schedule="cosine", lr_generator=1e-3, lr_discriminator=2e-3, lr_retrieval=4e-3)
    names = ("generator", "discriminator", "retrieval")
    optimizers = {name: torch.optim.Adam([torch.zeros(1, requires_grad=True)]) for name in names}
    set_rates(optimizers, train, STEPS // 2, STEPS)
    found = {name: optimizer.param_groups[0]["lr"] for name, optimizer in optimizers.items()}
    assert found == pytest.approx({"generator": 5e-4, "discriminator": 1e-3, "retrieval": 2e-3})

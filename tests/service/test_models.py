"""The replicas that run a model, without Serve."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from s2s_ray.service.replicas.models import StreetEmbedding
from tests.support.fake_service import HEIGHT, WIDTH


def test_accelerator_errors_fail_the_health_check() -> None:
    replica = StreetEmbedding.__new__(StreetEmbedding)
    replica._fault, replica._metrics = None, SimpleNamespace(batch=lambda _size: None)
    replica._slots = SimpleNamespace(release_idle=lambda _seconds: None)
    replica.check_health()

    def lost(_model: Any, _views: torch.Tensor) -> Any:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure", 719)

    replica._infer = lost
    with pytest.raises(torch.AcceleratorError):
        asyncio.run(replica._run_batch([(None, np.zeros((3, HEIGHT, WIDTH), np.uint8))]))
    with pytest.raises(RuntimeError, match=r"the accelerator failed: .*CUDA error"):
        replica.check_health()


def test_each_call_of_a_batch_uses_its_own_release() -> None:
    replica = StreetEmbedding.__new__(StreetEmbedding)
    sizes: list[int] = []
    replica._metrics = SimpleNamespace(batch=sizes.append)
    replica._infer = lambda model, views: np.stack([views[:, 0, 0, 0].numpy(), np.full(len(views), model)], axis=1)
    calls = [(model, np.full((3, 2, 2), number, np.uint8)) for number, model in enumerate((10, 20, 10, 20, 20))]
    found = asyncio.run(replica._run_batch(calls))
    assert [one.result.tolist() for one in found] == [[number, model] for number, (model, _) in enumerate(calls)]
    assert sizes == [2, 3]

"""The replicas that run a model, without Serve."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from s2s_ray.service.replicas.accelerator import is_lost
from s2s_ray.service.replicas.models import SatelliteEmbedding, Street, StreetEmbedding
from s2s_ray.service.replicas.replica import ReleaseSlots
from tests.support.fake_service import HEIGHT, RELEASE, WIDTH


def bare_replica() -> StreetEmbedding:
    """Return a replica without models, which counts its metrics nowhere."""
    replica = StreetEmbedding.__new__(StreetEmbedding)
    replica._metrics = SimpleNamespace(batch=lambda _size: None)
    replica._slots = SimpleNamespace(release_idle=lambda _seconds: None)
    return replica


def run_one(replica: StreetEmbedding) -> None:
    view = np.zeros((3, HEIGHT, WIDTH), np.uint8)
    asyncio.run(replica._run_batch([(None, Street(view, None, turned=False))]))


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: unspecified launch failure", 719),
        RuntimeError("CUDA error: device-side assert triggered"),
    ],
    ids=["AcceleratorError", "RuntimeError"],
)
def test_accelerator_errors_fail_the_health_check(error: Exception) -> None:
    replica = bare_replica()
    replica.check_health()
    calls = []

    def lost(*_args: Any) -> Any:
        calls.append(_args)
        raise error

    replica._infer = lost
    with pytest.raises(type(error), match="CUDA error"):
        run_one(replica)
    with pytest.raises(RuntimeError, match=r"the accelerator failed: .*CUDA error") as health:
        replica.check_health()
    with pytest.raises(RuntimeError, match="the accelerator failed") as refused:
        run_one(replica)
    assert len(calls) == 1, "the accelerator is not used again"
    assert is_lost(health.value)
    assert is_lost(refused.value)


def test_an_accelerator_that_fails_while_a_release_is_loaded_fails_the_health_check() -> None:
    replica = bare_replica()

    def lost(_key: Any) -> Any:
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")

    replica._load_model = lost
    slots = ReleaseSlots(replica._load, lambda key: key)
    with pytest.raises(RuntimeError, match="ECC") as error:
        asyncio.run(slots.get(RELEASE.key))
    assert is_lost(error.value), "so that the call is retried elsewhere, and the release is not blamed"
    with pytest.raises(RuntimeError, match="the accelerator failed"):
        replica.check_health()


def test_memory_that_runs_out_leaves_the_replica_healthy() -> None:
    replica = bare_replica()

    def full(*_args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    replica._infer = full
    with pytest.raises(torch.OutOfMemoryError):
        run_one(replica)
    replica.check_health()


def test_each_call_of_a_batch_uses_its_own_release() -> None:
    replica = SatelliteEmbedding.__new__(SatelliteEmbedding)
    sizes: list[int] = []
    replica._metrics = SimpleNamespace(batch=sizes.append)
    replica._infer = lambda model, views: [[view[0, 0, 0], model] for view in views]
    calls = [(model, np.full((3, 2, 2), number, np.uint8)) for number, model in enumerate((10, 20, 10, 20, 20))]
    found = asyncio.run(replica._run_batch(calls))
    assert [one.result for one in found] == [[number, model] for number, (model, _) in enumerate(calls)]
    assert sizes == [2, 3]


class FakeEmbedder:
    """Returns the sums of views and of what was seen of them, and counts its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def embed_street(self, views: torch.Tensor, seen: torch.Tensor | None = None) -> np.ndarray:
        self.calls.append(("one" if seen is None else "masked", len(views)))
        shown = views if seen is None else views * seen[:, None]
        return shown.sum((1, 2, 3)).numpy()[:, None]

    def embed_turned(self, views: torch.Tensor, seen: torch.Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
        one = self.embed_street(views, seen)
        self.calls[-1] = (f"turned {self.calls[-1][0]}", len(views))
        return np.stack([one, 2 * one], axis=1), np.array([0.0, 180.0])


def test_street_views_of_one_kind_share_a_call_of_the_model() -> None:
    replica = StreetEmbedding.__new__(StreetEmbedding)
    sizes: list[int] = []
    replica._metrics = SimpleNamespace(batch=sizes.append)
    model = FakeEmbedder()
    dice = np.random.default_rng(4)
    kinds = [(False, False), (True, False), (False, True), (False, False), (True, True), (True, False)]
    calls, expected = [], []
    for masked, turned in kinds:
        view = dice.integers(0, 256, (3, 5, 7), np.uint8)
        seen = dice.random((5, 7)) < 0.5 if masked else None
        calls.append((model, Street(view, seen, turned)))
        total = int((view if seen is None else view * seen).sum())
        expected.append([[total], [2 * total]] if turned else [total])
    results = [one.result for one in asyncio.run(replica._run_batch(calls))]
    for (_, turned), result, total in zip(kinds, results, expected, strict=True):
        np.testing.assert_array_equal(result[0] if turned else result, total)
        if turned:
            np.testing.assert_array_equal(result[1], [0, 180])
    assert sorted(model.calls) == [("masked", 2), ("one", 2), ("turned masked", 1), ("turned one", 1)]
    assert sum(sizes) == len(kinds)

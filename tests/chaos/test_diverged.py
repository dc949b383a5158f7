"""A loss that is not a number, on two real workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch

from s2s_ray.data.batch import Batch, Sample, collate
from s2s_ray.errors import DivergedError
from s2s_ray.training.loop import Trainer
from s2s_ray.training.run import checkpoint_store
from tests.support.killed_runs import Ending, assert_equal, configured, launch

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

BROKEN = "train-7"


def _poisoned(trainer: Trainer, rank: int, folder: Path) -> None:
    """Make the panorama of one pair NaN in the second epoch, and record the worker's error and weights."""
    normalise, fit = trainer.model.normalise, trainer.fit
    broken = trainer.train_set.ids.index(BROKEN)

    def collated(samples: Sequence[Sample]) -> Batch:
        batch = collate(samples, (trainer.train_set.height, trainer.train_set.width))
        street = normalise(batch.street)
        if trainer.epoch == 1:
            street[batch.index == broken] = torch.nan
        return Batch(batch.polar, street, batch.index)

    def recorded() -> None:
        try:
            fit()
        except DivergedError as error:
            (folder / f"{rank}.txt").write_text(f"{trainer.global_step} {error}")
            torch.save(dict(trainer.model.named_parameters()), folder / f"{rank}.pt")

    trainer.train_set.collate = collated  # type: ignore[method-assign]
    trainer.fit = recorded  # type: ignore[assignment, method-assign]


def test_a_poisoned_pair_stops_all_workers_at_the_same_step_and_is_named(
    settings: list[str], undisturbed: Callable[[int], Ending], tmp_path: Path
) -> None:
    config = configured(settings, tmp_path, workers=2)
    outcome = launch(config, partial(_poisoned, folder=tmp_path))
    assert outcome.done, outcome.log  # no worker hung
    messages = [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)]
    assert messages[0] == messages[1]
    assert BROKEN in messages[0]
    step = int(messages[0].split()[0])
    assert f"step {step + 1}: " in messages[0]

    newest = checkpoint_store(config).newest()
    assert newest is not None
    assert newest.meta["step"] == step
    assert all(value.isfinite().all() for value in newest.model.values() if value.is_floating_point())
    for rank in range(2):  # no optimiser has stepped since, on any worker
        weights = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert_equal(weights, {name: newest.model[name] for name in weights})

    fixed = launch(config)
    assert fixed.done, fixed.log
    Ending.of(config).assert_same(undisturbed(2))

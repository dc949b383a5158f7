"""The training loop with varied pairs: what each network learns from, and resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from s2s_ray.config import Config
from s2s_ray.data.augmentation import query_views, reference_views
from s2s_ray.errors import ConfigError, RunError
from s2s_ray.model.checkpoint_meta import read_meta
from s2s_ray.training.loop import Trainer
from s2s_ray.training.ready import check_ready
from tests.support.random_source import prepare_random

EVERYTHING = {"fov": [90, 360], "fov_epochs": 1, "offcentre_m": 8, "rotate": 0.5, "heading_noise": 20}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A prepared data set of eight random pairs with a margin of 8 m."""
    return prepare_random(tmp_path_factory.mktemp("augmented"), 8)


def configured(base: Config, storage: Path, **augmentation: Any) -> Config:
    tree = base.model_dump()
    tree["train"]["storage"] = str(storage)
    return Config.from_tree(tree | {"augmentation": augmentation})


def calls_of(trainer: Trainer) -> list[dict[str, Any]]:
    """Record what the trainer's step is called with."""
    cycle, calls = trainer.cycle, []

    def recorded(satellite: torch.Tensor, street: torch.Tensor, **others: Any) -> dict[str, float]:
        calls.append({"satellite": satellite, "street": street, **others})
        return cycle(satellite, street, **others)

    recorded.optimizers = cycle.optimizers  # type: ignore[attr-defined]
    trainer.cycle = recorded  # type: ignore[assignment]
    return calls


def test_synthesis_learns_from_the_aligned_pair_and_retrieval_from_the_varied_one(base: Config, tmp_path: Path) -> None:
    trainer = Trainer(configured(base, tmp_path, **EVERYTHING))
    trainer.epoch = 1  # in the first everything is seen
    batches = list(trainer._batches())
    calls = calls_of(trainer)
    trainer.fit()
    normalise, size = trainer.model.normalise, trainer.train_set.tile_size
    assert len(calls) == len(batches) == 2
    for call, batch in zip(calls, batches, strict=True):
        assert torch.equal(call["satellite"], normalise(batch.polar))
        assert torch.equal(call["street"], normalise(batch.street))
        query = query_views(batch.street, None, batch.draws)
        street, seen = call["query"]
        assert torch.equal(seen, query.seen)
        assert 0.2 < seen.float().mean() < 0.9
        assert torch.equal(street, normalise(query.street, query.seen))
        assert batch.tiles is not None
        assert batch.draws is not None
        reference = reference_views(batch.tiles, size, 32, 40, batch.draws)
        assert torch.equal(call["reference"], normalise(reference))
        assert not torch.equal(call["reference"], call["satellite"])


@pytest.mark.parametrize(
    ("augmentation", "query", "seen", "reference"),
    [
        ({}, False, False, False),
        ({"rotate": 1.0}, False, False, False),
        ({"heading_noise": 20}, True, False, False),
        ({"fov": [90, 90]}, True, True, False),
        ({"offcentre_m": 4}, False, False, True),
    ],
)
def test_only_what_varies_is_passed(
    base: Config, tmp_path: Path, augmentation: dict[str, Any], query: bool, seen: bool, reference: bool
) -> None:
    trainer = Trainer(configured(base, tmp_path, **augmentation))
    batch = next(iter(trainer._batches()))
    found = trainer._query(batch)
    assert (found is not None) == query
    assert (found is not None and found[1] is not None) == seen
    assert (trainer._reference(batch) is not None) == reference


@pytest.mark.slow
def test_a_stopped_run_ends_as_an_undisturbed_one(base: Config, tmp_path: Path) -> None:
    straight = Trainer(configured(base, tmp_path / "straight", **EVERYTHING))
    straight.fit()
    stopped = Trainer(configured(base, tmp_path / "stopped", **EVERYTHING))
    cycle = stopped.cycle

    def ending(*args: Any, **others: Any) -> dict[str, float]:
        if stopped.global_step == 3:
            raise KeyboardInterrupt
        return cycle(*args, **others)

    ending.optimizers = cycle.optimizers  # type: ignore[attr-defined]
    stopped.cycle = ending  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    resumed = Trainer(configured(base, tmp_path / "stopped", **EVERYTHING))
    resumed.fit()
    found = resumed.model.state_dict()
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, found[name]), name


def test_another_variation_is_another_run(base: Config, tmp_path: Path) -> None:
    config = configured(base, tmp_path, rotate=0.5)
    trainer = Trainer(config)
    trainer.fit()
    assert trainer.store.committed is not None
    found = read_meta(trainer.store.committed)["dataset"]
    assert (found["tile_m"], found["tile_px"]) == (64.0, 32)  # for an index of a region
    with pytest.raises(RunError, match=r"was started with augmentation.rotate=0.5, now it is 0.0: keep it, or choose"):
        check_ready(configured(base, tmp_path))


def test_a_reference_beyond_the_margin_is_refused_before_the_workers_start(base: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"augmentation.offcentre_m=9 is more than the margin of"):
        check_ready(configured(base, tmp_path, offcentre_m=9))


def test_a_warm_up_beyond_the_run_is_refused_before_the_workers_start(base: Config, tmp_path: Path) -> None:
    config = configured(base, tmp_path)
    longer = config.model_copy(update={"train": config.train.model_copy(update={"warmup_steps": 10_000})})
    with pytest.raises(ConfigError, match=r"train\.warmup_steps=10000: the run has \d+ steps"):
        check_ready(longer)

"""The training loop without Ray: resuming, refusals, and the files of a run."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from s2s_ray import storage
from s2s_ray.config import Config, load_config
from s2s_ray.data.prepare import prepare
from s2s_ray.errors import CheckpointError, DatasetError, DivergedError, RunError
from s2s_ray.model.checkpoint_meta import (
    read_meta,
)
from s2s_ray.training.checkpoint_store import CheckpointStore
from s2s_ray.training.loop import (
    Trainer,
)
from s2s_ray.training.ready import check_ready
from s2s_ray.training.run import (
    checkpoint_store,
    load_run_config,
    run_uri,
)

PAIRS = 11  # batches of 4, 4 and 3


if TYPE_CHECKING:
    from tests.support.pair_folder import PairFolder


class ProcessEndedError(Exception):
    """Stands for anything that ends a process."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, pair_folder: type[PairFolder]) -> Config:
    """A prepared data set of random images and a run of two epochs on it."""
    folder = tmp_path_factory.mktemp("training")
    pairs = pair_folder(folder / "pairs")
    for split, count in (("train", PAIRS), ("val", 3), ("test", 2)):
        for number in range(count):
            pairs.add(f"{split}-{number}", split)
    prepared = pairs.config(folder / "data")
    prepare(prepared)
    model = {"height": 32, "width": 40, "channels": 4, "residual_blocks": 1, "discriminator_channels": 4}
    model |= {"street_blocks": (1, 1, 1), "masks": 2}
    train = {"epochs": 2, "batch": 4, "lr_generator": 1e-3, "lr_retrieval": 1e-3, "checkpoint_every": 1}
    return Config.from_tree({**prepared.model_dump(), "model": model, "train": train})


def configured(base: Config, storage_uri: Path, **train: Any) -> Config:
    tree = base.model_dump()
    tree["train"] |= {"storage": str(storage_uri), **train}
    return Config.from_tree(tree)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def stop_at(trainer: Trainer, step: int) -> None:
    """Make the trainer's process end before it takes a step."""
    cycle = trainer.cycle

    def counted(*args: Any, **kwargs: Any) -> dict[str, float]:
        if trainer.global_step == step:
            raise ProcessEndedError
        return cycle(*args, **kwargs)

    trainer.cycle = counted  # type: ignore[assignment]
    counted.optimizers = cycle.optimizers  # type: ignore[attr-defined]


def test_a_run_leaves_checkpoints_history_configuration_and_events(base: Config, tmp_path: Path) -> None:
    config = configured(base, tmp_path)
    promised: list[str] = []

    def report(figures: dict[str, Any]) -> None:
        assert storage.is_complete(figures["checkpoint"])  # already, not soon
        promised.append(Path(figures["checkpoint"]).name)

    history = Trainer(config).fit(report)
    run = run_uri(config)
    assert [entry["epoch"] for entry in history] == [0, 1]
    assert [entry["step"] for entry in history] == [3, 6]
    assert storage.read_json(storage.join(run, "history.json")) == history
    assert load_run_config(run) == config
    assert promised[0] in ("00000002", "00000003")
    assert promised[1] in ("00000005", "00000006")
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))
    store = checkpoint_store(config)
    assert store.steps()[-1] == 6
    meta = read_meta(store.uri(6))
    assert meta["metrics"]["gallery"] == 3
    assert 0 <= meta["metrics"]["recall_at_1"] <= 1
    assert meta["dataset"]["geometry"]["height"] == 32


@pytest.mark.slow
@pytest.mark.parametrize(("step", "schedule"), [(2, "constant"), (3, "constant"), (4, "constant"), (4, "cosine")])
def test_a_stopped_run_ends_with_the_weights_of_an_undisturbed_one(
    base: Config, tmp_path: Path, step: int, schedule: str
) -> None:
    straight = Trainer(configured(base, tmp_path / "straight", schedule=schedule))
    expected_history = straight.fit()
    stopped = Trainer(configured(base, tmp_path / "stopped", schedule=schedule))
    stop_at(stopped, step)
    with pytest.raises(ProcessEndedError):
        stopped.fit()
    resumed = Trainer(configured(base, tmp_path / "stopped", schedule=schedule))
    history = resumed.fit()
    for name, value in weights(straight).items():
        assert torch.equal(value, weights(resumed)[name]), name
    for entry in (*expected_history, *history):
        del entry["pairs_per_second"]  # the only thing that depends on the machine
    assert history == expected_history


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again_but_can_be_extended(base: Config, tmp_path: Path) -> None:
    first = Trainer(configured(base, tmp_path))
    first.fit()
    again = Trainer(configured(base, tmp_path))
    again.fit()
    assert again.global_step == 6
    for name, value in weights(first).items():
        assert torch.equal(value, weights(again)[name]), name
    longer = Trainer(configured(base, tmp_path, epochs=3))
    assert [entry["epoch"] for entry in longer.fit()] == [0, 1, 2]


def test_a_lowered_learning_rate_is_used_after_resuming(base: Config, tmp_path: Path) -> None:
    Trainer(configured(base, tmp_path, epochs=1)).fit()
    lowered = Trainer(configured(base, tmp_path, lr_generator=1e-5, betas=(0.4, 0.99)))
    lowered.fit()
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in lowered.cycle.optimizers.items()}
    assert rates == {"generator": 1e-5, "discriminator": 1e-4, "retrieval": 1e-3}
    assert lowered.cycle.optimizers["generator"].param_groups[0]["betas"] == (0.4, 0.99)
    moments = lowered.cycle.optimizers["generator"].state
    assert {int(state["step"]) for state in moments.values()} == {6}  # they went on


def test_rates_fall_over_the_steps_of_the_whole_run(base: Config, tmp_path: Path) -> None:
    trainer = Trainer(configured(base, tmp_path, schedule="cosine"))
    trainer.fit()
    last = 0.5 * (1 + math.cos(math.pi * 5 / 6))  # the sixth of six steps
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in trainer.cycle.optimizers.items()}
    assert rates == pytest.approx({"generator": last * 1e-3, "discriminator": last * 1e-4, "retrieval": last * 1e-3})


@pytest.mark.slow
@pytest.mark.parametrize(("key", "value"), [("batch", 5), ("seed", 9)])
def test_resuming_with_settings_that_change_the_position_is_refused(
    base: Config, tmp_path: Path, key: str, value: int
) -> None:
    Trainer(configured(base, tmp_path, epochs=1)).fit()
    with pytest.raises(RunError, match=rf"'run' was started with train\.{key}="):
        check_ready(configured(base, tmp_path, **{key: value}))


def test_a_run_is_ready_to_resume_from_the_newest_checkpoint_that_is_sound(base: Config, tmp_path: Path) -> None:
    config = configured(base, tmp_path, epochs=1)
    Trainer(config).fit()
    older, newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-2:]
    (newest / "meta.json").write_bytes(b"torn")
    check_ready(config)
    with pytest.raises(RunError, match=r"'run' was started with train\.seed="):
        check_ready(configured(base, tmp_path, seed=9))
    shutil.rmtree(newest)
    (older / "manifest.json").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=rf"all checkpoints below .* are damaged \({older.name}\)"):
        check_ready(config)


def test_resuming_another_model_is_refused(base: Config, tmp_path: Path) -> None:
    Trainer(configured(base, tmp_path, epochs=1)).fit()
    tree = configured(base, tmp_path).model_dump()
    tree["model"]["masks"] = 3
    with pytest.raises(CheckpointError, match=r"model\.masks is 2 in the checkpoint, 3 in the configuration"):
        Trainer(Config.from_tree(tree)).fit()


def test_data_of_another_resolution_is_refused(base: Config, tmp_path: Path) -> None:
    tree = configured(base, tmp_path).model_dump()
    tree["model"]["height"] = 64
    with pytest.raises(RunError, match="prepared at 32 x 40, the model takes 64 x 40"):
        check_ready(Config.from_tree(tree))


def test_missing_data_is_named(base: Config, tmp_path: Path) -> None:
    tree = configured(base, tmp_path).model_dump()
    tree["data"]["uri"] = str(tmp_path / "nothing")
    with pytest.raises(DatasetError, match="nothing"):
        check_ready(Config.from_tree(tree))


def test_a_loss_that_is_not_finite_ends_the_run_without_saving_it(base: Config, tmp_path: Path) -> None:
    config = configured(base, tmp_path)
    trainer = Trainer(config)
    cycle = trainer.cycle

    def poisoned(satellite: torch.Tensor, *args: Any, **kwargs: Any) -> dict[str, float]:
        return cycle(satellite * math.nan if trainer.global_step == 4 else satellite, *args, **kwargs)

    poisoned.optimizers = cycle.optimizers  # type: ignore[attr-defined]
    trainer.cycle = poisoned  # type: ignore[assignment]
    with pytest.raises(DivergedError, match=r"step 5: d_loss is nan \(pairs (train-\d+(, )?){4}\)"):
        trainer.fit()
    assert checkpoint_store(config).steps()[-1] == 4
    saved = checkpoint_store(config).load(4).model
    assert all(value.isfinite().all() for value in saved.values())
    trained = {name for name, _ in trainer.model.named_parameters()}
    assert all(torch.equal(weight, saved[name]) for name, weight in weights(trainer).items() if name in trained)


@pytest.fixture(scope="module")
def across_a_border(tmp_path_factory: pytest.TempPathFactory, pair_folder: type[PairFolder]) -> Config:
    """Two training pairs 7 m apart in UTM zones 32 and 33, and a third one far away."""
    folder = tmp_path_factory.mktemp("border")
    pairs = pair_folder(folder / "pairs")
    for number, longitude in enumerate((11.99995, 12.00005, 12.01)):
        pairs.add(f"train-{number}", "train", latitude=48.1, longitude=longitude)
    pairs.add("val", "val", latitude=48.1, longitude=12.02)
    prepared = pairs.config(folder / "data", splits=("train", "val"))
    prepare(prepared)
    model = {"height": 32, "width": 40, "channels": 4, "residual_blocks": 1, "discriminator_channels": 4}
    model |= {"street_blocks": (1, 1, 1), "masks": 2}
    tree = {**prepared.model_dump(), "model": model, "loss": {"negative_min_distance_m": 25.0}}
    return Config.from_tree({**tree, "train": {"epochs": 1, "batch": 3}})


def near(trainer: Trainer) -> list[tuple[str, str]]:
    """Pairs of the batch of all pairs that are too near to be each other's negatives."""
    negatives = trainer._negatives(np.arange(3))
    assert negatives is not None
    ids = trainer.train_set.ids
    return sorted((ids[i], ids[j]) for i in range(3) for j in range(3) if ids[i] < ids[j] and not negatives[i, j])


def test_neighbours_on_both_sides_of_a_zone_border_are_not_negatives(across_a_border: Config, tmp_path: Path) -> None:
    config = configured(across_a_border, tmp_path)
    trainer = Trainer(config)
    assert near(trainer) == [("train-0", "train-1")]
    trainer.fit()
    assert read_meta(checkpoint_store(config).uri(1))["dataset"]["metres"] == "geodesic"
    again = Trainer(config)
    again.fit()
    assert near(again) == [("train-0", "train-1")]


def test_pictures_of_one_place_are_not_negatives(pairs: PairFolder, across_a_border: Config, tmp_path: Path) -> None:
    pairs.columns = (*pairs.columns, "place")
    for number, place in enumerate(("square", "", "square")):
        pairs.add(f"train-{number}", "train", place=place)
    pairs.add("val", "val")
    prepared = pairs.config(tmp_path / "data", splits=("train", "val"))
    prepare(prepared)
    tree = {**across_a_border.model_dump(), "source": prepared.source.model_dump(), "data": prepared.data.model_dump()}
    assert near(Trainer(Config.from_tree(tree))) == [("train-0", "train-2")]
    tree["loss"]["negative_min_distance_m"] = None
    trainer = Trainer(Config.from_tree(tree))
    assert near(trainer) == [("train-0", "train-2")]
    unnamed = across_a_border.model_dump()
    unnamed["loss"]["negative_min_distance_m"] = None
    assert Trainer(Config.from_tree(unnamed))._negatives(np.arange(3)) is None


def test_a_run_begun_under_the_rule_of_zones_keeps_it(across_a_border: Config, tmp_path: Path) -> None:
    class EarlierProgram(CheckpointStore):
        def save(self, step: int, model: Any, trainer: Any, meta: dict[str, Any]) -> None:
            dataset = {key: value for key, value in meta["dataset"].items() if key != "metres"}
            super().save(step, model, trainer, {**meta, "dataset": dataset})

    config = configured(across_a_border, tmp_path)
    earlier = Trainer(config)
    earlier.store = EarlierProgram(earlier.store.root)
    earlier.fit()
    resumed = Trainer(configured(across_a_border, tmp_path, epochs=2))
    resumed.fit()
    assert near(resumed) == []
    assert read_meta(resumed.store.uri(2))["dataset"]["metres"] == "utm"


@pytest.mark.slow
def test_mining_follows_its_schedule(base: Config, tmp_path: Path) -> None:
    tree = configured(base, tmp_path).model_dump()
    tree["mining"] = {"start": 1, "discard": [50.0]}
    history = Trainer(Config.from_tree(tree)).fit()
    assert [entry["discard"] for entry in history] == [0.0, 50.0]
    everything = (24 * 4 + 24 * 4 + 12 * 3) / PAIRS  # pair-weighted mean of 2B(B-1) over batches of 4, 4 and 3
    assert history[0]["kept"] == pytest.approx(everything)
    assert history[1]["valid"] == pytest.approx(everything)
    assert history[1]["kept"] == pytest.approx(everything / 2)


def test_presets_agree_with_their_data(tmp_path: Path) -> None:
    for preset in ("small", "tiny"):
        config = load_config(preset)
        assert config.source.kind == "synthetic"
        assert config.source.panorama_height >= config.model.height
        assert config.source.panorama_width >= config.model.width

"""The gauges and trackers of a training, neither of which is required."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from s2s_ray import storage
from s2s_ray.config import (
    Config,
    with_values,
)
from s2s_ray.data.prepare import prepare
from s2s_ray.errors import ConfigError, DivergedError
from s2s_ray.runtime.metrics import TRAINING
from s2s_ray.training import telemetry
from s2s_ray.training.logbook import Logbook
from s2s_ray.training.loop import (
    Trainer,
)
from s2s_ray.training.run import run_uri
from s2s_ray.training.telemetry import Telemetry
from s2s_ray.training.trackers import MlflowTracker, check_installed, numbers, parameters

if TYPE_CHECKING:
    from tests.support.pair_folder import PairFolder

NARROW = {
    "model.channels": 4,
    "model.residual_blocks": 1,
    "model.discriminator_channels": 4,
    "model.street_blocks": [1, 1, 1],
    "model.street_weights": "random",
    "model.masks": 2,
    "train.use_gpu": False,
    "train.batch": 4,
    "train.epochs": 2,
    "train.checkpoint_every": 1,
}


class Recorder:
    """Gauges that record all values they were set to."""

    def __init__(self) -> None:
        self.values: list[tuple[str, float, dict[str, str]]] = []

    def __call__(self, name: str, value: float, **labels: str) -> None:
        assert set(labels) < set(TRAINING[name].labels), "the run's label is the gauges' own"
        self.values.append((name, value, labels))

    def of(self, name: str, **labels: str) -> list[float]:
        return [value for one, value, there in self.values if one == name and there.items() >= labels.items()]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, pair_folder: type[PairFolder]) -> Config:
    folder = tmp_path_factory.mktemp("telemetry")
    pairs = pair_folder(folder / "pairs")
    for split, count in (("train", 7), ("val", 3), ("test", 1)):
        for number in range(count):
            pairs.add(f"{split}-{number}", split)
    prepared = pairs.config(folder / "data")
    prepare(prepared)
    return with_values(prepared, NARROW)


def run(config: Config, folder: Path, **values: Any) -> Config:
    changes = {"train.storage": str(folder / "runs"), **{key.replace("__", "."): v for key, v in values.items()}}
    return with_values(config, changes)


def test_every_gauge_of_a_run_is_set(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "EVERY_S", 0.0)
    gauges = Recorder()
    trainer = Trainer(run(config, tmp_path))
    history = trainer.fit(gauges=gauges)
    names = {name for name, _, _ in gauges.values}
    on_cpu = {name for name in TRAINING if name.startswith("s2s_train_")} - {"s2s_train_gpu_memory_bytes"}
    assert names == on_cpu
    assert gauges.of("s2s_train_step") == [1, 2, 3, 4]
    assert gauges.of("s2s_train_epoch") == [1, 1, 2, 2]
    assert gauges.of("s2s_train_recall_at_1") == [entry["recall_at_1"] for entry in history]
    second = gauges.of("s2s_train_loss", loss="g_loss")[2:]
    assert (4 * second[0] + 3 * second[1]) / 7 == pytest.approx(history[1]["g_loss"])
    assert all(0 < norm < math.inf for norm in gauges.of("s2s_train_gradient_norm"))
    assert len(gauges.of("s2s_train_gradient_norm", network="retrieval")) == 4
    assert all(0 <= part <= 1 for part in gauges.of("s2s_train_data_wait_ratio", rank="0"))
    stored = gauges.of("s2s_train_checkpoint_timestamp_seconds")
    assert stored == sorted(stored)
    assert stored[-1] > stored[0], "a checkpoint was stored meanwhile"


def test_gauges_are_not_set_at_every_step(config: Config, tmp_path: Path) -> None:
    gauges = Recorder()
    Trainer(run(config, tmp_path)).fit(gauges=gauges)
    assert gauges.of("s2s_train_step") == [1]


def test_waits_are_counted_and_batches_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(telemetry.time, "monotonic", lambda: clock[0])
    gauges = Recorder()
    watch = Telemetry(gauges, torch.device("cpu"), epochs=1)

    def slow() -> Iterator[Any]:
        for batch in ("a", "b"):
            clock[0] += 3.0
            yield batch

    losses = {"kept": 1.0, "valid": 2.0}
    seen = []
    for step, batch in enumerate(watch.waiting_for(slow()), 1):
        seen.append(batch)
        clock[0] += 7.0
        watch.step(step, 0, 5, losses, None)
    assert seen == ["a", "b"]
    assert gauges.of("s2s_train_data_wait_ratio") == [0.3, 0.3]
    assert gauges.of("s2s_train_pairs_per_second") == [0.5, 0.5]
    assert gauges.of("s2s_train_kept_triplets") == [0.5, 0.5]


def test_a_diverged_run_is_marked_until_it_resumes(config: Config, tmp_path: Path) -> None:
    wild = run(config, tmp_path, train__lr_retrieval=1e30)
    with pytest.raises(DivergedError):
        Trainer(wild).fit()
    note = storage.join(run_uri(wild), "diverged.json")
    assert "step" in storage.read_json(note)["reason"]
    Trainer(run(config, tmp_path)).fit()
    assert not storage.exists(note)


def test_mlflow_receives_the_history(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With MLflow's local store; a resumed run is still one run."""
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "cities")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    first = run(config, tmp_path, train__trackers=["mlflow"], train__name="tracked")
    Trainer(first).fit()
    history = Trainer(with_values(first, {"train.epochs": 3})).fit()
    client = MlflowClient()
    experiment = client.get_experiment_by_name("cities")
    [found] = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "tracked"
    assert found.info.status == "FINISHED"
    assert found.data.params["train.batch"] == "4"
    assert found.data.params["train.epochs"] == "2", "what it was begun with"
    for name in ("g_loss", "recall_at_1"):
        logged = {metric.step: metric.value for metric in client.get_metric_history(found.info.run_id, name)}
        assert logged == {entry["step"]: entry[name] for entry in history}


@pytest.mark.parametrize(
    "name", ["it's", "\"both\" 'kinds'", "back\\", "100%", "semi;colon -- x", "[brackets]", "zwei Städte"]
)
def test_mlflow_finds_the_run_of_any_name_again(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration of about a hundred values takes two requests, and a second attempt continues the run."""
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    sizes: list[int] = []
    original = MlflowClient.log_batch

    def counted(client: MlflowClient, run_id: str, *arguments: Any, params: Any = (), **named: Any) -> Any:
        sizes.append(len(params))
        return original(client, run_id, *arguments, params=params, **named)

    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    config = with_values(Config(), {"train.storage": str(tmp_path / name), "train.name": "one"})
    for _ in range(2):
        MlflowTracker(config).close(complete=False)
    other = with_values(config, {"train.name": "two"})
    MlflowTracker(other).close(complete=True)
    client = MlflowClient()
    found = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert sorted(run.info.run_name for run in found) == ["one", "two"]
    given = len(dict(parameters(config)))
    assert sum(sizes) == 2 * given
    assert len(sizes) == 2 * math.ceil(given / 100)
    assert all(len(run.data.params) == given for run in found)


def test_weights_and_biases_receives_the_history(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In offline mode, which writes the data that it would send."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    history = Trainer(run(config, tmp_path, train__trackers=["wandb"], train__name="tracked")).fit()
    [file] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = file.read_bytes()
    assert b"tracked" in content
    for entry in history:
        for name in ("g_loss", "recall_at_1"):
            assert name.encode() in content
            assert json.dumps(entry[name]).encode() in content


def test_a_lost_tracker_is_logged(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    tracked = run(config, tmp_path, train__trackers=["mlflow"])
    trainer = Trainer(tracked)

    def lost(*arguments: Any) -> None:
        raise ConnectionError("the server is gone")

    monkeypatch.setattr(MlflowClient, "log_batch", lost)
    monkeypatch.setattr("s2s_ray.training.trackers.parameters", lambda config: [])
    with caplog.at_level("WARNING", "s2s_ray"):
        assert len(trainer.fit()) == 2
    assert "could not log to MLflow: the server is gone" in caplog.text


def test_a_tracker_that_is_not_installed_is_named(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"train.trackers='wandb' is not installed: pip install 's2s-ray\[wandb\]'"):
        check_installed(with_values(config, {"train.trackers": ["wandb"]}))


def test_metrics_and_parameters_are_flat() -> None:
    assert dict(numbers({"a": 1, "b": 0.5, "c": None, "d": "x", "e": True})) == {"a": 1.0, "b": 0.5}
    flat = dict(parameters(Config()))
    assert flat["mining.discard"] == [90.0, 95.0, 99.0]
    assert flat["train.resources_per_worker"] == {}
    assert not any(key.startswith("tune.") for key in flat)


def test_the_time_left_does_not_depend_on_the_size_of_the_last_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten epochs of 33 batches of 32 and one of a single pair, one second each; the first attempt began at step 3."""
    now = 0.0
    monkeypatch.setattr("s2s_ray.training.logbook.time.monotonic", lambda: now)
    logbook = Logbook(str(tmp_path), epochs=10, every_s=1e9)
    logbook.start_epoch()
    with caplog.at_level("INFO", "s2s_ray"):
        for step in range(4, 35):
            now += 1.0
            logbook.step(step, 0, step, 34, 32 if step < 34 else 1, {})
    monkeypatch.undo()
    logbook.close()
    assert "about 5m06s left" in caplog.text

"""The configuration of a run, as it is found from the run or from a checkpoint, whatever version wrote it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import yaml

from s2s_ray import storage
from s2s_ray.config import Config, load_config
from s2s_ray.errors import ConfigError, DamagedError, StateError
from s2s_ray.model.checkpoint import save_state
from s2s_ray.training.run import config_of, load_run_config, run_uri, save_config


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config("tiny", [f"train.storage={tmp_path}", "train.batch=3"])


def put_checkpoint(folder: Path, uri: str, **meta: object) -> None:
    save_state({"weight": torch.zeros(1)}, {"model": {}, **meta}, folder)
    storage.publish(folder, uri)


def test_config_of_a_run_and_of_a_checkpoint_in_it(config: Config, tmp_path: Path) -> None:
    save_config(config)
    run = run_uri(config)
    inside = storage.join(run, "checkpoints", "00000004")
    put_checkpoint(tmp_path / "built", inside, config={"broken": True})  # the run's own file comes first
    assert config_of(run) == config_of(inside) == load_run_config(run) == config


def test_config_of_a_checkpoint_that_was_moved(config: Config, tmp_path: Path) -> None:
    moved, imported = str(tmp_path / "moved"), str(tmp_path / "imported")
    put_checkpoint(tmp_path / "built", moved, config=config.model_dump(mode="json"))
    put_checkpoint(tmp_path / "built2", imported)
    assert config_of(moved) == config
    assert config_of(imported) is None
    assert config_of(str(tmp_path / "nothing")) is None


def test_keys_of_a_newer_version_are_logged_and_left_out(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    tree = config.model_dump(mode="json")
    tree["train"]["warmup"] = 5
    tree["source"]["weather"] = "rain"
    tree["extra"] = {"a": 1}
    before = yaml.safe_dump(tree)
    with caplog.at_level(logging.WARNING, "s2s_ray"):
        assert Config.from_stored(tree, "RUN/config.yaml") == config
    assert yaml.safe_dump(tree) == before
    assert {"train.warmup", "source.weather", "extra"} == set(caplog.messages[0].rpartition(": ")[2].split(", "))


def test_errors_name_the_file(config: Config) -> None:
    tree = config.model_dump(mode="json")
    with pytest.raises(StateError, match=r"RUN/config.yaml has format 2, .* upgrade s2s-ray"):
        Config.from_stored({**tree, "format": 2}, "RUN/config.yaml")
    with pytest.raises(ConfigError, match="holds list"):
        Config.from_stored([], "RUN/config.yaml")
    with pytest.raises(ConfigError, match=r"train\.batch=0"):
        Config.from_stored({**tree, "train": {**tree["train"], "batch": 0}}, "RUN/config.yaml")
    storage.write_bytes(storage.join(run_uri(config), "config.yaml"), b"a: [")
    with pytest.raises(DamagedError, match="not YAML"):
        load_run_config(run_uri(config))

"""Configurations that some version of the program wrote, and overrides on top of them."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import yaml

from s2s_ray.config import Config, ManifestSourceConfig, load_config, load_stored, with_overrides
from s2s_ray.errors import ConfigError, DamagedError, StateError

URI = "runs/run/config.yaml"


def stored(*overrides: str) -> dict[str, Any]:
    return load_config("tiny", overrides).model_dump(mode="json")


def test_what_to_yaml_writes_is_read_back() -> None:
    config = load_config("tiny", ["source.kind=manifest", "source.uri=a.csv", "train.seed=5"])
    assert load_stored(config.to_yaml().encode(), URI) == config
    assert Config.from_stored({}, URI) == Config()


def test_keys_of_a_newer_version_are_ignored_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    tree = stored("source.kind=manifest", "source.uri=a.csv")
    newer = copy.deepcopy(tree)
    newer["colour"] = {"gamma": 2}
    newer["train"]["warm_up"] = 3
    newer["source"]["focal_length"] = 24
    newer["tune"]["space"]["loss.alpha"] = {"low": 2.0, "high": 50.0, "log": True, "quantile": 0.5}
    before = copy.deepcopy(newer)
    with caplog.at_level(logging.WARNING):
        config = Config.from_stored(newer, URI)
    assert newer == before, "the caller's tree was changed"
    assert config.source == ManifestSourceConfig(uri="a.csv")
    assert config.train == Config.from_tree(tree).train
    assert config.tune.space["loss.alpha"].low == 2.0
    [message] = caplog.messages
    assert message.startswith(f"{URI}: ignored keys that this version does not know: ")
    named = set(message.rpartition(": ")[2].split(", "))
    assert named == {"colour", "train.warm_up", "source.focal_length", "tune.space.loss.alpha.quantile"}


def test_what_a_person_types_is_still_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.warm_up=3: unknown key"):
        load_config("tiny", ["train.warm_up=3"])
    with pytest.raises(ConfigError, match=r"train\.warm_up=3: unknown key"):
        with_overrides(load_config("tiny"), ["train.warm_up=3"])


def test_nothing_is_logged_about_a_configuration_without_unknown_keys(caplog: pytest.LogCaptureFixture) -> None:
    assert Config.from_stored(stored(), URI) == load_config("tiny")
    assert caplog.messages == []


@pytest.mark.parametrize("newer", [{}, {"colour": 1}])
def test_a_value_that_is_not_allowed_is_refused_and_the_file_named(newer: dict[str, Any]) -> None:
    tree = {**stored(), "model": {"height": 7}, **newer}
    with pytest.raises(ConfigError, match=rf"^{URI}: model\.height=7: must be a multiple of 8"):
        Config.from_stored(tree, URI)


def test_the_format_of_a_newer_version_is_refused() -> None:
    assert Config.from_stored({**stored(), "format": 1}, URI) == load_config("tiny")
    with pytest.raises(StateError, match=rf"^{URI} has format 2, this version reads 1: upgrade s2s-ray$"):
        Config.from_stored({**stored(), "format": 2}, URI)


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe\xfa", b"day: 2024-13-01"])
def test_a_stored_file_that_is_not_yaml_is_damaged(content: bytes) -> None:
    with pytest.raises(DamagedError, match=rf"^{URI} is not YAML"):
        load_stored(content, URI)


@pytest.mark.parametrize("content", [b"- 1\n", b"", b"text"])
def test_a_stored_file_that_is_no_mapping_is_named(content: bytes) -> None:
    with pytest.raises(ConfigError, match=rf"^{URI} holds \w+, expected a mapping of sections$"):
        load_stored(content, URI)


def test_overrides_change_a_stored_configuration() -> None:
    config = load_config("tiny", ["train.seed=5", "source.seed=3"])
    changed = with_overrides(config, ["train.batch=6", "source.kind=manifest", "source.uri=b.csv"])
    assert changed.train == config.train.model_copy(update={"batch": 6})
    assert changed.source == ManifestSourceConfig(uri="b.csv")
    assert changed.model == config.model
    assert yaml.safe_load(with_overrides(config, []).to_yaml()) == yaml.safe_load(config.to_yaml())


def test_an_empty_path_that_an_earlier_version_stored_is_none() -> None:
    tree = stored("source.kind=manifest", "source.uri=a.csv")
    tree["evaluation"]["weights"] = tree["data"]["cache_dir"] = tree["source"]["tiles"] = tree["tune"]["study"] = ""
    config = Config.from_stored(tree, URI)
    assert config == load_config("tiny", ["source.kind=manifest", "source.uri=a.csv"])
    tree["data"]["uri"] = ""
    with pytest.raises(ConfigError, match=r"data\.uri=''"):
        Config.from_stored(tree, URI)


@pytest.mark.parametrize(
    "override", ["data.uri=${env:X}/d", "data={uri: '${env:X}/d'}", "tune.sampler_options={a: .inf}"]
)
def test_an_override_of_a_stored_configuration_is_as_strict_as_any(override: str) -> None:
    for attempt in (lambda: load_config("tiny", [override]), lambda: with_overrides(load_config("tiny"), [override])):
        with pytest.raises(ConfigError, match=r"not in a path|finite"):
            attempt()
    tree = stored()
    tree["evaluation"]["weights"] = "${env:X}/old"
    assert with_overrides(Config.from_stored(tree, URI), ["train.batch=3"]).train.batch == 3

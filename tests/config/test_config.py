"""The configuration: presets, overrides, and errors that name the key, the value and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from s2s_ray.config import (
    Config,
    ManifestSourceConfig,
    SyntheticSourceConfig,
    load_config,
    preset_names,
)
from s2s_ray.errors import ConfigError
from s2s_ray.evaluation.protocols import grid_of
from s2s_ray.service.settings import ServeArgs

PAPER = {
    "model.height": 112,
    "model.width": 616,
    "model.channels": 32,
    "model.residual_blocks": 6,
    "model.discriminator_channels": 64,
    "model.discriminator_variant": "paper",
    "model.street_blocks": (3, 4, 6),
    "model.masks": 8,
    "model.descriptor_size": 2048,
    "loss.lambda_gan": 1.0,
    "loss.lambda_ret": 1000.0,
    "loss.lambda_l1": 100.0,
    "loss.alpha": 10.0,
    "loss.real_label": 0.9,
    "mining.start": "plateau",
    "train.epochs": 200,
    "train.batch": 32,
    "train.lr_generator": 1e-4,
    "train.lr_discriminator": 1e-4,
    "train.lr_retrieval": 1e-4,
    "train.betas": (0.5, 0.999),
    "data.flip": 0.5,
}


def value_of(config: Config, key: str) -> object:
    node: object = config
    for part in key.split("."):
        node = getattr(node, part)
    return node


def error_of(*overrides: str, config: str | Path = "paper") -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(config, overrides)
    return str(caught.value)


@pytest.mark.parametrize(("key", "value"), PAPER.items())
def test_the_paper_preset_has_the_values_of_the_supplement(key: str, value: object) -> None:
    found = value_of(load_config("paper"), key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("name", ["paper", "small", "tiny", "field", "field-tiny"])
def test_every_preset_loads(name: str) -> None:
    assert name in preset_names()
    assert isinstance(load_config(name), Config)


def test_field_presets_keep_the_networks_and_the_budget_of_their_models() -> None:
    for name, of in (("field", "paper"), ("field-tiny", "tiny")):
        field, base = load_config(name), load_config(of)
        same = {"pooling": base.model.pooling, "circular": base.model.circular}
        assert field.model.model_copy(update=same) == base.model
        assert field.train.epochs == base.train.epochs
        assert field.source == base.source
        assert field.augmentation.offcentre_m <= field.prepare.margin_m
        offcentre = 16.0  # the protocol offcentre=16: cameras in a disc, and a grid around each tile's centre
        assert offcentre + grid_of(offcentre, field.evaluation.offcentre_step_m).max() <= field.prepare.margin_m


def test_tiny_is_a_smaller_model_of_the_same_kind() -> None:
    paper, tiny = load_config("paper").model, load_config("tiny").model
    assert tiny.height * tiny.width < paper.height * paper.width
    assert tiny.channels < paper.channels
    assert sum(tiny.street_blocks) < sum(paper.street_blocks)
    assert tiny.street_weights == "random"  # there is no ImageNet of that shape


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.batch=16", "train.batch", 16),
        ("train.lr_generator=1e-4", "train.lr_generator", 1e-4),
        ("train.lr_generator=2.5e-3", "train.lr_generator", 2.5e-3),
        ("train.epochs=1e2", "train.epochs", 100),
        ("train.betas=[0.9,0.99]", "train.betas", (0.9, 0.99)),
        ("mining.discard=[50, 80]", "mining.discard", (50.0, 80.0)),
        ("mining.start=never", "mining.start", "never"),
        ("mining.start=12", "mining.start", 12),
        ("train.use_gpu=false", "train.use_gpu", False),
        ("loss.negative_min_distance_m=25", "loss.negative_min_distance_m", 25.0),
        ("loss.negative_min_distance_m=null", "loss.negative_min_distance_m", None),
        ("data.uri=s3://bucket/a=b", "data.uri", "s3://bucket/a=b"),
        ("train.resources_per_worker.CPU=2", "train.resources_per_worker", {"CPU": 2.0}),
        ("train.resources_per_worker={GPU: 0.5}", "train.resources_per_worker", {"GPU": 0.5}),
    ],
)
def test_an_override_changes_its_key_and_nothing_else(override: str, key: str, value: object) -> None:
    before, after = load_config("paper"), load_config("paper", [override])
    assert value_of(after, key) == value
    section, field = key.split(".")[:2]
    restored = getattr(after, section).model_copy(update={field: value_of(before, key)})
    assert after.model_copy(update={section: restored}) == before


def test_the_last_of_several_overrides_holds() -> None:
    assert load_config("paper", ["train.batch=16", "train.batch=8"]).train.batch == 8


def test_a_field_of_the_default_source_can_be_set() -> None:
    source = load_config("paper", ["source.seed=3"]).source
    assert source == SyntheticSourceConfig(seed=3)


def test_another_kind_of_source_starts_afresh() -> None:
    overrides = ["source.kind=synthetic", "source.seed=3", "source.kind=manifest", "source.uri=pairs.csv"]
    assert load_config("paper", overrides).source == ManifestSourceConfig(uri="pairs.csv")
    assert load_config("paper", overrides[1:]).source == ManifestSourceConfig(uri="pairs.csv")


def test_naming_the_same_kind_of_source_keeps_what_was_set() -> None:
    source = load_config("paper", ["source.kind=synthetic", "source.seed=3", "source.kind=synthetic"]).source
    assert source == SyntheticSourceConfig(seed=3)


def test_a_file_starts_from_a_preset(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("preset: paper\ntrain:\n  batch: 8\n  lr_generator: 2e-4\nsource: {kind: manifest, uri: a.csv}\n")
    config, paper = load_config(path, ["train.seed=5"]), load_config("paper")
    assert config.train == paper.train.model_copy(update={"batch": 8, "lr_generator": 2e-4, "seed": 5})
    assert config.source == ManifestSourceConfig(uri="a.csv")
    assert config.model == paper.model


def test_a_file_without_a_preset_starts_from_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model: {masks: 3}\n")
    assert load_config(path) == Config.from_tree({"model": {"masks": 3}})
    path.write_text("")
    assert load_config(path) == Config()


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["source.kind=manifest", "source.uri=s3://bucket/pairs.csv", "source.panorama_rows=[0.1, 0.9]"],
        ["loss.negative_min_distance_m=25", "mining.start=7", "train.resources_per_worker={CPU: 2}", "data.flip=0.1"],
    ],
)
def test_yaml_gives_back_an_equal_configuration(overrides: list[str], tmp_path: Path) -> None:
    config = load_config("paper", overrides)
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert load_config(path) == config
    assert set(yaml.safe_load(config.to_yaml())) == set(Config.model_fields)  # resolved: nothing is left out


def test_the_configuration_is_frozen() -> None:
    config = load_config("paper")
    with pytest.raises(ValidationError, match="frozen"):
        config.train.batch = 3
    with pytest.raises(ValidationError, match="frozen"):
        config.model = config.model
    assert config.train.batch == 32


@pytest.mark.parametrize(
    ("override", "shown"),
    [
        ("model.hight=112", ["model.hight=112", "unknown key", "height", "width"]),
        ("modle.height=112", ["modle", "unknown key", "model", "train"]),
        ("train.lr=1e-3", ["train.lr=0.001", "unknown key", "lr_generator"]),
        ("train.=3", ["train.=3", "unknown key", "batch"]),
        ("model.height=100", ["model.height=100", "multiple of 8", "at least 32"]),
        ("model.width=617", ["model.width=617", "multiple of 8", "at least 32"]),
        ("model.height=24", ["model.height=24", "multiple of 8", "at least 32"]),
        ("model.channels=6", ["model.channels=6", "multiple of 4"]),
        ("model.discriminator_variant=mine", ["model.discriminator_variant='mine'", "'paper'", "'released'"]),
        ("model.street_blocks=[3,4]", ["model.street_blocks"]),
        ("train.batch=many", ["train.batch='many'", "integer"]),
        ("train.batch=1", ["train.batch=1", "greater than or equal to 2"]),
        ("train.epochs=1.5", ["train.epochs=1.5", "integer"]),
        ("train.lr_generator=0", ["train.lr_generator=0", "greater than 0"]),
        ("train.lr_generator=.nan", ["train.lr_generator=nan", "finite"]),
        ("train.name=../mine", ["train.name='../mine'", "match pattern"]),
        ("train.workers=33", ["workers=33", "batch=32"]),
        ("train.betas=[0.5]", ["train.betas"]),
        ("train.betas=[0.5,1.0]", ["train.betas", "1.0", "less than 1"]),
        ("mining.discard=[100]", ["mining.discard", "100", "less than 100"]),
        ("mining.start=sometimes", ["mining.start='sometimes'", "never", "plateau"]),
        ("mining.start=-1", ["mining.start=-1", "0"]),
        ("loss.real_label=1.5", ["loss.real_label=1.5", "less than or equal to 1"]),
        ("source.kind=video", ["source", "video", "synthetic", "manifest"]),
        ("source={kind: synthetic, panorama_heading: .nan}", ["source.panorama_heading=nan", "finite"]),
        ("source={kind: manifest}", ["source.uri", "missing"]),
        ("source={kind: manifest, uri: a.csv, seed: 3}", ["source.seed=3", "unknown key", "panorama_rows"]),
        ("source={kind: manifest, uri: a, panorama_rows: [0.8, 0.2]}", ["source.panorama_rows", "[0.8, 0.2]", "below"]),
        ("train=3", ["train=3"]),
    ],
)
def test_an_error_names_the_key_the_value_and_what_is_allowed(override: str, shown: list[str]) -> None:
    message = error_of(override)
    assert [part for part in shown if part not in message] == []


def test_imagenet_weights_need_a_resnet34() -> None:
    message = error_of("model.street_weights=imagenet", "model.street_blocks=[1,1,1]")
    assert "street_weights" in message
    assert "[3, 4, 6]" in message
    overrides = ["model.street_weights=random", "model.street_blocks=[1,1,1]"]
    assert load_config("paper", overrides).model.street_blocks == (1, 1, 1)


def test_pieces_of_a_batch_need_frozen_statistics() -> None:
    message = error_of("train.micro_batch=4")
    assert "train.micro_batch=4" in message
    assert "set model.street_batchnorm=frozen" in message
    assert load_config("paper", ["train.micro_batch=4", "model.street_batchnorm=frozen"]).train.micro_batch == 4


@pytest.mark.parametrize("changes", [["loss.retrieval=infonce"], ["model.pooling=azimuth"], []])
def test_a_turned_loss_needs_descriptors_that_turn(changes: list[str]) -> None:
    message = error_of("loss.turned=0.5", "mining.start=never", *changes)
    assert "loss.turned=0.5 compares turned descriptors" in message
    assert "set loss.retrieval=infonce and model.pooling=azimuth" in message
    works = ["loss.turned=0.5", "mining.start=never", "loss.retrieval=infonce", "model.pooling=azimuth"]
    assert load_config("paper", works).loss.turned == 0.5


@pytest.mark.parametrize("start", ["plateau", "3"])
def test_mining_needs_the_triplet_loss(start: str) -> None:
    message = error_of("loss.retrieval=infonce", f"mining.start={start}")
    assert f"mining.start={start!r} discards easy triplets" in message.replace("=3 ", "='3' ")
    assert "loss.retrieval='infonce' has none" in message
    assert load_config("paper", ["loss.retrieval=infonce", "mining.start=never"]).loss.retrieval == "infonce"


def test_every_fault_is_reported_at_once() -> None:
    message = error_of("model.height=7", "train.batch=1", "data.colour=red")
    assert len(message.splitlines()) == 3
    assert [key for key in ("model.height=7", "train.batch=1", "data.colour='red'") if key not in message] == []


@pytest.mark.parametrize(
    "override",
    [
        "train.batch",
        "=3",
        "train.batch=[1",
        "train.batch.size=3",
        "train.batch=2024-13-01",
        "train.batch=" + "[" * 5000,
    ],
)
def test_a_malformed_override_is_named(override: str) -> None:
    assert override.split("=", maxsplit=1)[0] in error_of(override)


@pytest.mark.parametrize("name", ["no-such", "no/such", "nul\0"])
def test_neither_preset_nor_file(name: str) -> None:
    message = error_of(config=name)
    assert repr(name) in message
    assert "paper" in message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\xfa")
    message = error_of(config=path)
    assert str(path) in message
    assert "cannot be read" in message


@pytest.mark.parametrize(
    ("text", "shown"),
    [("- 1\n", "list"), ("a: [\n", "not YAML"), ("preset: no-such\n", "no-such"), ("model:\n", "model=None")],
)
def test_a_file_that_is_no_configuration_is_named(text: str, shown: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert shown in error_of(config=path)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"tune": {"space": {"loss.alpha": {"lo": 3, "high": 5}}}}, "unknown key; valid keys: low, high, log"),
        ({"source": {"kind": "cvusa", "uri": "a", "x": 2}}, "unknown key; valid keys: kind, uri, polar_contrast"),
        ({"source": {"x": 2}}, "unknown key; valid keys: kind, seed"),
        ({1: 2}, "^1: expected a name as the key, in quotes if"),
        ({"tune": {"sampler_options": {1: 2}}}, r"^tune\.sampler_options\.1: expected a name as the key"),
    ],
)
def test_an_unknown_key_is_refused_with_those_of_its_section(tree: dict[Any, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.from_tree(tree)


def test_an_unknown_key_in_a_list_is_refused_with_those_of_its_section() -> None:
    with pytest.raises(ConfigError, match=r"tokens\.0\.nme='x': unknown key; valid keys: name, sha256, admin"):
        ServeArgs.parse({"registry": "a", "name": "b", "tokens": [{"nme": "x"}]})


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("augmentation.fov=90", r"augmentation\.fov=90.*\[70, 360\]"),
        ("augmentation.fov=[90]", r"augmentation\.fov.*\[70, 360\]"),
        ("evaluation.protocols=heading,fov=90", r"evaluation\.protocols=.*\[heading, fov=90\]"),
    ],
)
def test_a_list_that_is_none_is_told_its_form(override: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_config("tiny", [override])

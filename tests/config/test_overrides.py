"""Overrides: the text of a string as typed, YAML 1.2 elsewhere, and the same keys as sweeps and studies."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from s2s_ray.config import Config, load_config, load_stored, value_at, with_overrides, with_values
from s2s_ray.config.annotations import alternatives, is_optional, is_text
from s2s_ray.config.section import NAME
from s2s_ray.errors import ConfigError, DamagedError
from s2s_ray.secrets import REFERENCE, holds_secret
from s2s_ray.service.settings import ServeArgs
from s2s_ray.sweep.origin import SweepOrigin

FREE_TEXT = [
    "runs #1 ü?x", "&a b", "*a", "12:30:45", "a: b", '"quoted"', "'quoted'", " both ends ", "~/x", "[1, 2]", "{a: b}",
    "1e5", "007", "0x1F", "on", "no", "nan", ".inf", "infinity", "2024-11-28", "2024-13-01", "true", "!tag x", "| x",
    "a=b", "a\nb", "\t", "- x", "%x", "@x", "`x`", "=", "<<", "a #b", "0o17", "1_000", "€", "\u2028", "\x85", "\ufeff",
]  # fmt: skip
NAMES = ["12e4567", "2024-11-28", "007", "on", "nan", "infinity", "1e5", "0x1F", "true", "null", "1_000", "1.5", "0o17"]


def models_of(annotation: Any) -> list[type[BaseModel]]:
    return [kind for kind in alternatives(annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]


def text_fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every field whose values are strings: its key and its information."""
    for name, info in model.model_fields.items():
        if is_text(info.annotation):
            yield f"{prefix}{name}", info
        elif len(inner := models_of(info.annotation)) == 1:
            yield from text_fields(inner[0], f"{prefix}{name}.")


def free(fields: Iterable[tuple[str, FieldInfo]]) -> dict[str, bool]:
    """Return the fields that have neither a pattern nor a list of values, and whether each is optional."""
    return {
        key: is_optional(info.annotation)
        for key, info in fields
        if not info.metadata and all(isinstance(kind, type) for kind in alternatives(info.annotation))
    }


FIELDS = list(text_fields(Config))
FREE = free(FIELDS)
SOURCES = {
    kind.model_fields["kind"].default: free(text_fields(kind, "source."))
    for kind in models_of(Config.model_fields["source"].annotation)
}
NAMED = [key for key, info in FIELDS if any(getattr(item, "pattern", None) == NAME for item in info.metadata)]
SHORT = settings(max_examples=15)  # a configuration is long to write and read as YAML


def found(key: str, text: str) -> Any:
    return value_at(load_config("tiny", [f"{key}={text}"]), key)


def is_allowed(text: str) -> bool:
    """Return whether a text may be a path: not empty, and neither a secret nor a reference, nor file:// with a host."""
    remote = text.startswith("file://") or "://" in text
    return bool(text.strip()) and not remote and not holds_secret(text) and not REFERENCE.search(text)


def test_the_fields_that_take_text_are_found() -> None:
    assert {"train.name", "tune.name", "ablate.name"} == set(NAMED)
    assert {"data.uri", "data.cache_dir", "train.storage", "tune.study", "tune.sampler"} <= set(FREE)
    assert {"source.uri", "source.tiles", "source.geotiff"} == set(SOURCES["manifest"])


@pytest.mark.parametrize("key", NAMED)
@pytest.mark.parametrize("text", NAMES)
def test_a_name_is_the_text_as_typed(key: str, text: str) -> None:
    assert found(key, text) == text


@pytest.mark.parametrize("text", FREE_TEXT)
def test_a_string_is_the_text_as_typed(text: str) -> None:
    for key in ("train.storage", "data.uri", "tune.sampler", "evaluation.weights"):
        if text.strip() or key == "tune.sampler":
            assert found(key, text) == text


@SHORT
@given(st.sampled_from(sorted(SOURCES)), st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1))
@example("manifest", "~")
@example("cvusa", "null")
def test_any_text_is_taken_as_typed_and_stored_so(kind: str, text: str) -> None:
    assume(is_allowed(text))
    keys = {**FREE, **SOURCES[kind]}
    if kind == "manifest":  # tiles are cut from one of two
        del keys["source.geotiff"]
    given = [f"source.kind={kind}", *(["source.zoom=3", "source.tile_m=8"] if kind == "manifest" else [])]
    expected = {key: None if optional and text in ("~", "null") else text for key, optional in keys.items()}
    if kind == "manifest" and expected["source.uri"] is None:  # imagery alone
        given[1:] = ["source.geotiff=a.tif"]
        del keys["source.tiles"], expected["source.tiles"]
    config = load_config("paper", [*given, *(f"{key}={text}" for key in keys)])
    assert {key: value_at(config, key) for key in keys} == expected
    assert load_stored(config.to_yaml().encode(), "config.yaml") == config


@SHORT
@given(st.from_regex(re.compile(NAME.replace("$", r"\Z"), re.ASCII)))
def test_any_name_is_taken_as_typed_and_read_back_from_a_file(tmp_path_factory: Any, text: str) -> None:
    config = load_config("tiny", [f"{key}={text}" for key in NAMED])
    assert {value_at(config, key) for key in NAMED} == {text}
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    path.write_text(config.to_yaml())
    assert load_config(path) == config
    assert Config.from_tree(yaml.safe_load(config.to_yaml())) == config  # other readers have YAML 1.1


@pytest.mark.parametrize("text", ["~", "null"])
def test_a_string_that_may_be_missing_can_be_removed(text: str) -> None:
    given = load_config("tiny", ["data.cache_dir=cache", "tune.study=sqlite:///a.db"])
    assert with_overrides(given, [f"data.cache_dir={text}"]).data.cache_dir is None
    assert with_overrides(given, [f"tune.study={text}"]).tune.study is None
    assert load_config("tiny", [f"train.storage={text}"]).train.storage == text


@pytest.mark.parametrize("key", ["data.uri", "data.cache_dir", "tune.study", "train.storage", "model.street_weights"])
@pytest.mark.parametrize("text", ["", "  "])
def test_a_path_is_not_empty(key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}='{text}': expected a path or a URI, found nothing"):
        load_config("paper", [f"{key}={text}"])


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.storage="):
        load_config("tiny", ["train.storage=a\udcffb"])


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("mining.discard.0=80", [80.0, 95.0, 99.0]),
        ("mining.discard.2=1e1", [90.0, 95.0, 10.0]),
        ("mining.start=7", 7),
        ("mining.start=1e1", 10),
        ("train.betas.1=0.9", [0.5, 0.9]),
        ("train.batch=010", 10),
        ("train.use_gpu=yes", True),
        ("prepare.splits.1=test", ["train", "test", "test"]),
        ("ablate.seeds.0=7", [7, 1, 2]),
        ("tune.sampler_options.n_startup_trials=3", {"n_startup_trials": 3}),
        ("tune.sampler_options={a: on, b: 12:30, c: 1e-4}", {"a": "on", "b": "12:30", "c": 1e-4}),
        ("ablate.differences.v1.2.loss.alpha=2e1", {"v1.2": {"loss.alpha": 20.0}}),
        ("ablate.differences.old.mining.discard.0=5", {"old": {"mining.discard.0": 5}}),
        ("ablate.differences.x.model.street_weights=007", {"x": {"model.street_weights": "007"}}),
        ("prepare.resources.GPU=0.5", {"GPU": 0.5}),
    ],
)
def test_keys_lead_into_lists_and_mappings(override: str, value: object) -> None:
    section, field = override.split("=")[0].split(".")[:2]
    assert value_at(load_config("tiny", [override]), f"{section}.{field}") == value


def test_keys_of_a_sweep() -> None:
    config = load_config(
        "tiny",
        [
            "tune.space.mining.start={choices: [never, plateau]}",
            "tune.space.mining.start.choices.1=5",
            "tune.space.mining.discard.0={low: 50, high: 97}",
            "tune.space.mining.discard.0.high=98",
            "tune.space.mining.discard.0.when.mining.start=[never]",
            "tune.space.mining.discard.0.when.mining.start.0=5",
        ],
    )
    assert list(config.tune.space) == ["mining.start", "mining.discard.0"]
    assert config.tune.space["mining.start"].choices == ("never", 5)
    assert config.tune.space["mining.discard.0"].high == 98
    assert config.tune.space["mining.discard.0"].when == {"mining.start": (5,)}
    assert value_at(config, "tune.space.mining.discard.0.high") == 98


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "mining.discard.3=80",
            r"mining\.discard\.3: unknown key; '3' is none of 0 to 2, .* 3 values in mining",
        ),
        ("mining.discard.-1=80", r"'-1' is none of 0 to 2"),
        ("mining.discard.first=80", r"'first' is none of 0 to 2"),
        ("train.betas.2=0.9", r"'2' is none of 0 to 1"),
        ("train.trackers.0=mlflow", r"it has no positions of the 0 values in train\.trackers"),
        ("train.batch.size=3", r"train\.batch is a single value"),
        ("train.name.x=3", r"train\.name is a single value"),
    ],
)
def test_a_position_that_a_list_does_not_have_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("tiny", [override])
    key, _, value = override.partition("=")
    with pytest.raises(ConfigError, match=message):
        with_values(load_config("tiny"), {key: value})


def numbers(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Yield the fields below the sections whose single values are numbers."""
    for name, info in model.model_fields.items():
        kinds = alternatives(info.annotation)
        if isinstance(kinds[0], type) and issubclass(kinds[0], BaseModel):
            yield from numbers(kinds[0], f"{prefix}{name}.")
        elif int in kinds or float in kinds:
            yield f"{prefix}{name}"


@pytest.mark.parametrize("text", ["true", "false"])
def test_a_bool_is_no_number(text: str, tmp_path: Path) -> None:
    keys, value = list(numbers()), text == "true"
    path, tree = tmp_path / "mine.yaml", {}  # type: Path, dict[str, dict[str, bool]]
    for key in keys:
        section, _, field = key.partition(".")
        tree.setdefault(section, {})[field] = value
    path.write_text(yaml.safe_dump(tree))
    expected = [f"{key}={value}: expected a number, not true or false" for key in keys]
    for attempt in (
        lambda: load_config("tiny", [f"{key}={text}" for key in keys]),
        lambda: with_values(Config(), dict.fromkeys(keys, value)),
        lambda: load_config(path),
    ):
        with pytest.raises(ConfigError) as refused:
            attempt()
        assert str(refused.value).splitlines() == expected


@pytest.mark.parametrize(
    "override",
    [
        "mining.discard=[true]",
        "train.betas=[0.5, false]",
        "train.resources_per_worker={CPU: true}",
        "ablate.seeds=[true]",
    ],
)
def test_a_bool_is_no_number_inside_lists_and_mappings(override: str) -> None:
    with pytest.raises(ConfigError, match="expected a number, not true or false"):
        load_config("tiny", [override])


@pytest.mark.parametrize("text", ["nan", ".nan", "inf", ".inf", "-.inf", "12e4567"])
def test_every_number_is_finite(text: str) -> None:
    keys = list(numbers())
    with pytest.raises(ConfigError) as refused:
        with_overrides(Config(), [f"{key}={text}" for key in keys])
    assert [line.partition("=")[0] for line in str(refused.value).splitlines()] == keys


def test_a_file_is_yaml_1_2(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    for text in ("on", "2024-11-28", "12e", "1_0"):
        path.write_text(f"train: {{name: {text}, storage: 12:30:45, lr_generator: 1e-4, epochs: 010, use_gpu: on}}\n")
        train = load_config(path).train
        assert (train.name, train.storage, train.use_gpu) == (text, "12:30:45", True)
        assert (train.lr_generator, train.epochs) == (1e-4, 10)


def test_the_settings_of_the_service_follow_the_same_rules() -> None:
    release = {"registry": "registry", "name": "city"}
    for key, value in (("threads", True), ("poll_s", False), ("street", {"num_cpus": True})):
        with pytest.raises(ConfigError, match="expected a number, not true or false"):
            ServeArgs.parse({**release, key: value})
    for key in ("poll_s", "timeout_s", "max_upload_mb"):
        with pytest.raises(ConfigError, match="finite"):
            ServeArgs.parse({**release, key: float("inf")})
    with pytest.raises(ConfigError, match="registry='': expected a path or a URI"):
        ServeArgs.parse({**release, "registry": ""})


def test_a_key_that_a_file_has_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("train: {batch: 8}\nmodel: {masks: 3}\ntrain: {epochs: 2}\n")
    with pytest.raises(ConfigError, match="key 'train' appears twice"):
        load_config(path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "tune.space={mining.min_gain: {choices: [0.01, .inf]}}",
            "tune.space.mining.min_gain.choices=.*: expected finite",
        ),
        ("tune.space.loss.alpha.when={mining.min_gain: [.nan]}", "tune.space.loss.alpha.when=.*: expected finite"),
        ("tune.sampler_options={a: [{b: .inf}]}", "tune.sampler_options=.*: expected finite numbers"),
        ("ablate.differences={a: {loss.alpha: -.inf}}", "ablate.differences=.*: expected finite numbers"),
        ("tune.space={train.name: {choices: [007, 12e4567]}}", "tune.space.train.name.choices=.*: .*; quote text"),
        ("tune.space={train.name: {choices: ['a', 007]}}", "tune.space.train.name.choices: 7 is no text.*in quotes"),
        ("ablate.differences={a: {train.name: 1e3}}", "ablate.differences.a.train.name: 1000.0 is no text.*in quotes"),
        ("ablate.differences={a: {model.ablation: false}}", "ablate.differences.a.model.ablation: False is no text"),
    ],
)
def test_values_to_try_are_finite_and_text_where_text_is_taken(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("tiny", [override])


def test_values_to_try_are_read_back_as_they_were() -> None:
    config = load_config(
        "tiny",
        [
            "tune.space={train.name: {choices: ['007', '12e4567', a]}, loss.alpha: {choices: [1, 2.5]}}",
            "ablate.differences={a: {model.street_weights: random, data.cache_dir: ~, mining.discard.0: 7}}",
        ],
    )
    assert config.tune.space["train.name"].choices == ("007", "12e4567", "a")
    assert load_stored(config.to_yaml().encode(), "config.yaml") == config


def test_numbers_of_an_old_configuration_may_be_infinite() -> None:
    tree = {"tune": {"sampler_options": {"a": float("inf")}}, "ablate": {"differences": {"a": {"train.name": 7}}}}
    assert Config.from_stored(tree, "config.yaml").tune.sampler_options["a"] == float("inf")


@pytest.mark.parametrize(
    ("text", "override", "message"),
    [
        ("train: [1]", "train.batch=3", "train.batch=3: train is not a section"),
        ("train: 5", "train.batch=3", "train.batch=3: train is not a section"),
        (
            "tune: {space: [5]}",
            "tune.space.loss.alpha.low=3",
            "tune.space.loss.alpha.low=3: tune.space is not a section",
        ),
        ("source: [1]", "source.kind=manifest", "source.kind='manifest': source is not a section"),
        ("mining: {discard: 5}", "mining.discard.0=80", "mining.discard.0: mining.discard is not a list"),
        ("mining: {discard: {a: 5}}", "mining.discard.0=80", "mining.discard.0: mining.discard is not a list"),
        ("mining: {discard: abc}", "mining.discard.0=80", "mining.discard.0: mining.discard is not a list"),
        ("tune: {sampler_options: [1]}", "tune.sampler_options.0=3", "tune.sampler_options is not a section"),
        ("ablate: {differences: {a: [1]}}", "ablate.differences.a.loss.alpha=3", "differences.a is not a section"),
        ("{}", f"mining.discard.{'9' * 5000}=3", "is none of 0 to 2, the positions"),
    ],
)
def test_a_file_with_something_else_on_the_way_to_a_key_is_refused(
    text: str, override: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(path, [override])


@pytest.mark.parametrize(
    "text",
    ["!!bool x", "!!bool [1]", "!!timestamp x", "!!map x", "&a [*a]", "&a {a: [*a]}", "!!int 0b", "[" * 60 + "]" * 60],
)
def test_yaml_that_stands_for_no_value_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    for key in ("train.batch", "tune.sampler_options.a", "source"):
        for attempt in (load_config, lambda _, given: with_overrides(load_config("tiny"), given)):
            with pytest.raises(ConfigError, match=f"--set .*{key}=.*: the value is not YAML"):
                attempt("tiny", [f"{key}={text}"])
        path.write_text(f"{key}: {text}")
        with pytest.raises(ConfigError, match=r"mine\.yaml is not YAML"):
            load_config(path)
        for read in (load_stored, SweepOrigin.from_yaml):
            with pytest.raises(DamagedError, match=r"a\.yaml is not YAML"):
                read(path.read_bytes(), "a.yaml")


def test_an_anchor_may_be_used_twice(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("tune: {sampler_options: {a: &a [1], b: *a, c: {d: *a}}}")
    assert load_config(tmp_path / "mine.yaml").tune.sampler_options == {"a": [1], "b": [1], "c": {"d": [1]}}

"""Paths and URIs of the configuration and of the service's settings: each has a type that makes it absolute."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from s2s_ray.config import Config, load_config
from s2s_ray.config.annotations import alternatives, element, entry, is_text
from s2s_ray.config.frozen import FrozenDict
from s2s_ray.config.tune import DatabaseUrl
from s2s_ray.service.settings import ServeArgs
from s2s_ray.sweep.space import Space
from s2s_ray.uri import Uri

PATHS = {
    "data.uri", "data.cache_dir", "source.uri", "source.tiles", "source.geotiff", "model.street_weights",
    "train.storage", "evaluation.weights", "tune.storage", "tune.study", "tune.registry", "ablate.storage",
    "registry", "checkpoint", "index", "calibration",
}  # fmt: skip
# They look like one and are none: a URL that browsers read, and names of classes and backbones.
OTHERS = {"base_map_url"}
NAME_OF_A_PATH = re.compile(r"(?:^|_)(?:uri|url|dir|directory|file|folder|geotiff|path|root|storage|tiles|weights)$")
TEXT_ABOUT_A_PATH = re.compile(r"\b(?:URI|URL|file names?|files|paths?|GeoTIFF)\b|(?<!of a )\b(?:directory|folder)\b")


def strings(annotation: Any, key: str, description: str) -> Iterator[tuple[str, str, Any]]:
    """Yield every field below an annotation that takes text: its key, its description and its type."""
    for kind in alternatives(annotation):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            for name, info in kind.model_fields.items():
                yield from strings(info.annotation, f"{key}.{name}".lstrip("."), info.description or "")
        elif isinstance(kind, type) and issubclass(kind, str):
            yield key, description, kind
        elif (inner := element(kind, 0) if entry(kind) is None else entry(kind)) is not None and is_text(inner):
            yield from strings(inner, key, description)


FIELDS = [*strings(Config, "", ""), *strings(ServeArgs, "", "")]


def test_every_field_that_looks_like_a_path_is_a_uri() -> None:
    looks = {
        key: kind
        for key, description, kind in FIELDS
        if NAME_OF_A_PATH.search(key.rpartition(".")[2]) or TEXT_ABOUT_A_PATH.search(description)
    }
    assert looks.keys() - OTHERS == PATHS
    assert [key for key in PATHS if not issubclass(looks[key], Uri)] == []


def relative(config: BaseModel, prefix: str = "") -> Iterator[str]:
    """Yield the keys of the values that are relative paths."""
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            yield from relative(value, f"{prefix}{name}.")
        elif isinstance(value, Uri) and value not in ("random", "imagenet") and not re.search("/", value):
            yield f"{prefix}{name}"


def test_all_of_them_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    keys = sorted(key for key in PATHS if "." in key and key not in ("source.geotiff", "tune.study"))
    source = ["source.kind=manifest", "source.uri=a", "source.zoom=3", "source.tile_m=8"]
    config = load_config("paper", [*source, *(f"{key}=place {k}" for k, key in enumerate(keys))])
    assert set(relative(config)) == set(keys)
    located = config.located()
    assert set(relative(located)) == set()
    tree = located.model_dump(mode="json")
    for k, key in enumerate(keys):
        section, field = key.split(".")
        assert tree[section][field] == str(tmp_path / f"place {k}")
    assert located.located() == located
    assert set(relative(config)) == set(keys), "the configuration itself was changed"


def test_the_places_that_a_sweep_or_a_study_tries_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = f"{tmp_path}/a.pt"
    choices = ["a.pt", "random", "s3://b/c.pt"]
    space = {
        "model.street_weights": {"choices": choices},
        "loss.alpha": {"low": 3, "high": 20, "when": {"model.street_weights": ["a.pt"]}},
        "train.no_such_key": {"choices": ["a.pt", ""]},
        "mining.start": {"choices": ["never", "plateau"]},
    }
    given = {"train.name": "a", "source.tiles": None, "data.nothing.a": "a"}
    differences = {"a": {**given, "model.street_weights": "a.pt", "source.uri": "a.pt"}}
    model = {"street_weights": "a.pt", "channels": 32, "street_blocks": [3, 4, 6]}
    source = {"kind": "cvusa", "uri": "a"}
    tree = {"model": model, "source": source, "tune": {"space": space}, "ablate": {"differences": differences}}
    located = Config.from_tree(tree).located()
    searched = located.tune.space
    assert searched["model.street_weights"].choices == (weights, "random", "s3://b/c.pt")
    assert searched["loss.alpha"].when == {"model.street_weights": (weights,)}
    assert searched["loss.alpha"].low == 3
    assert searched["train.no_such_key"].choices == ("a.pt", "")
    assert searched["mining.start"].choices == ("never", "plateau")
    assert located.ablate.differences["a"] == {**given, "model.street_weights": weights, "source.uri": weights}
    assert Config.from_tree(located.model_dump(mode="json")) == located
    only = {key: searched[key] for key in ("model.street_weights", "loss.alpha")}
    tune = located.tune.model_copy(update={"space": FrozenDict(only)})
    assert Space(located.model_copy(update={"tune": tune})).start()["model.street_weights"] == weights


def test_addresses_and_names_of_weights_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["data.uri=s3://b/data", "train.storage=/runs", "model.street_weights=imagenet"]
    located = load_config("paper", given).located()
    assert (located.data.uri, located.train.storage, located.model.street_weights) == (
        "s3://b/data",
        "/runs",
        "imagenet",
    )
    assert load_config("tiny").located().model.street_weights == "random"


def test_a_template_of_map_tiles_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = [
        "source.kind=manifest",
        "source.uri=a.csv",
        "source.zoom=3",
        "source.tile_m=8",
        "source.tiles={z}/{x}/{-y}.png",
    ]
    assert load_config("tiny", given).located().source.model_dump()["tiles"] == f"{tmp_path}/{{z}}/{{x}}/{{-y}}.png"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///a b.db", "sqlite:///{here}/a b.db"),
        ("sqlite+pysqlite:///sub/a.db?timeout=3", "sqlite+pysqlite:///{here}/sub/a.db?timeout=3"),
        ("sqlite:////a.db", "sqlite:////a.db"),
        ("sqlite://", "sqlite://"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("postgresql://h/db", "postgresql://h/db"),
        ("oracle+cx_oracle://h/db", "oracle+cx_oracle://h/db"),
        ("${env:STUDY}", "${env:STUDY}"),
    ],
)
def test_the_file_of_a_study_becomes_absolute(
    url: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config("tiny", [f"tune.study={url}"]).located().tune.study == expected.replace("{here}", str(tmp_path))
    assert DatabaseUrl(url) == url


def test_the_service_finds_relative_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ServeArgs(registry=Uri("releases"), name="city").located().registry == str(tmp_path / "releases")
    args = ServeArgs.parse({"checkpoint": "a", "index": "s3://b/c"}).located()
    assert (args.checkpoint, args.index) == (str(tmp_path / "a"), "s3://b/c")


def test_mappings_do_not_change() -> None:
    given = ["train.resources_per_worker={CPU: 2}", "ablate.differences={a: {loss.alpha: 2}}"]
    config = load_config("tiny", given)
    for mapping in (
        config.tune.space,
        config.train.resources_per_worker,
        config.ablate.differences,
        config.tune.sampler_options,
    ):
        with pytest.raises(TypeError):
            mapping["x"] = 1  # type: ignore[index]
        with pytest.raises(AttributeError):
            mapping.update({})  # type: ignore[attr-defined]
        with pytest.raises(AttributeError):
            mapping._items = {}  # type: ignore[attr-defined]
    again = pickle.loads(pickle.dumps(config))
    assert again == config
    assert again.train.resources_per_worker == {"CPU": 2.0}
    assert config.model_dump(mode="json")["ablate"]["differences"] == {"a": {"loss.alpha": 2}}
    assert Config.from_tree(config.model_dump()) == config
    assert config.model_copy(deep=True) == config
    source = {"CPU": 2.0}
    copied = Config.from_tree({"train": {"resources_per_worker": source}})
    source["CPU"] = 3.0
    assert copied.train.resources_per_worker["CPU"] == 2.0

"""The Serve application as it is built for a release."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.serve import Application

from s2s_ray import registry
from s2s_ray.errors import ConfigError, ReferenceIndexError
from s2s_ray.geo.views import ViewGeometry
from s2s_ray.service.app import build
from s2s_ray.service.rollout.releases import ReleaseKey
from s2s_ray.service.rollout.served_release import resolve
from s2s_ray.service.settings import ServeArgs
from tests.support.models import tiny_model
from tests.support.stored_model import stored_model

TINY = tiny_model(width=72)


def test_serve_recognises_the_typed_argument_of_build() -> None:
    """With a string annotation, Serve would pass a dictionary."""
    assert build.__annotations__["args"] is ServeArgs


def test_build_serves_a_release_of_a_registry_or_two_uris(tmp_path: Path) -> None:
    checkpoint, index = stored_model(tmp_path)
    root = str(tmp_path / "registry")
    release = registry.promote(root, "demo", registry.publish(root, "demo", checkpoint, index).id)
    by_name = resolve(ServeArgs(registry=root, name="demo"))
    by_uri = resolve(ServeArgs(checkpoint=checkpoint, index=index))
    assert by_name.id == by_uri.id == release.id
    assert by_name.key == ReleaseKey(release.id, release.checkpoint_uri, str(release.index_uri))
    assert by_name.geometry == ViewGeometry(TINY.height, TINY.width)
    assert by_name.description.metrics == {"psnr": None}
    assert isinstance(build(ServeArgs(registry=root, name="demo")), Application)


@pytest.mark.parametrize(("setting", "heading"), [(None, None), (30, 30.0), ("unknown", None)])
def test_the_settings_may_say_the_default_heading(tmp_path: Path, setting: object, heading: float | None) -> None:
    checkpoint, index = stored_model(tmp_path, meta={"dataset": {"uri": "cvusa", "geometry": {}}})
    args = ServeArgs.parse({"checkpoint": checkpoint, "index": index, "default_heading": setting})
    release = resolve(args)
    expected = 0.0 if setting is None else heading
    assert release.geometry.default_heading == release.description.default_heading == expected


def test_a_wrong_default_heading_is_refused() -> None:
    for value in (361, "north", float("nan")):
        with pytest.raises(ConfigError, match="default_heading"):
            ServeArgs.parse({"checkpoint": "c", "index": "i", "default_heading": value})


def test_build_rejects_an_index_of_another_model(tmp_path: Path) -> None:
    checkpoint, index = stored_model(tmp_path / "a", fingerprint="0" * 64)
    with pytest.raises(ReferenceIndexError, match="built with checkpoint 00000000"):
        build(ServeArgs(checkpoint=checkpoint, index=index))
    checkpoint, index = stored_model(tmp_path / "b", dimension=3)
    with pytest.raises(ReferenceIndexError, match="descriptors of 3 numbers"):
        build(ServeArgs(checkpoint=checkpoint, index=index))

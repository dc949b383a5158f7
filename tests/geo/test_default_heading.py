"""The default heading: the meaning of `auto` for panoramas of the whole horizon without a heading in their file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from s2s_ray.config import ManifestSourceConfig, SyntheticSourceConfig
from s2s_ray.data.sources.manifest import ManifestSource
from s2s_ray.data.sources.synthetic import SyntheticSource
from s2s_ray.errors import ViewError
from s2s_ray.geo.metadata import PhotoMetadata
from s2s_ray.geo.query import Query, settle
from s2s_ray.geo.views import ViewGeometry
from tests.support.models import tiny_model

PICTURE = np.zeros((60, 120, 3), np.uint8)


@pytest.mark.parametrize(("fov", "origin", "heading"), [(360, "release", 30), (70, None, None), (359, None, None)])
def test_it_holds_for_the_whole_horizon_only(fov: float, origin: str | None, heading: float | None) -> None:
    known = settle(Query(fov=fov, projection="equirectangular"), PICTURE, release_heading=30.0)
    assert (known.heading_origin, known.heading) == (origin, heading)
    assert known.heading_spread == (0 if origin else 180)


def test_a_photograph_without_a_compass_is_searched() -> None:
    photo = PhotoMetadata(fov=70.0, projection="rectilinear")
    assert settle(Query(), np.zeros((90, 120, 3), np.uint8), photo, release_heading=0.0).heading is None
    north = settle(Query(), PICTURE, PhotoMetadata(heading=20.0), release_heading=0.0)
    assert (north.heading, north.heading_origin) == (20, "file")


@pytest.mark.parametrize(
    ("meta", "heading"),
    [
        ({}, None),
        ({"config": {"source": {"kind": "cvusa"}}, "dataset": {"uri": "d", "geometry": {}}}, 0.0),
        ({"config": {"source": {"kind": "cvact"}}, "dataset": {"uri": "d", "geometry": {}}}, 0.0),
        ({"dataset": {"uri": "cvusa", "digest": "", "geometry": {}}}, 0.0),
        ({"config": {"source": {"kind": "manifest"}}, "dataset": {"uri": "d", "geometry": {}}}, None),
        ({"config": {"source": {"kind": "cvusa"}}, "dataset": {"geometry": {"default_heading": 7.0}}}, 7.0),
        ({"config": {"source": {"kind": "manifest"}}, "dataset": {"geometry": {"default_heading": 7.0}}}, 7.0),
    ],
)
def test_earlier_checkpoints_of_aligned_data_sets_have_one(meta: dict[str, Any], heading: float | None) -> None:
    assert ViewGeometry.of_checkpoint(tiny_model(), meta, "c").default_heading == heading


@pytest.mark.parametrize("heading", [None, -90.0])
def test_the_source_says_it(heading: float | None) -> None:
    manifest = ManifestSource(ManifestSourceConfig(uri="m.csv", query_heading=heading))
    city = SyntheticSource(SyntheticSourceConfig(query_heading=heading))
    for source in (manifest, city):
        assert source.views(32, 72).default_heading == heading


def test_a_wide_picture_of_the_models_own_shape_is_the_whole_horizon() -> None:
    open_ended = np.broadcast_to(np.arange(0, 240, 2, dtype=np.uint8)[:, None], (30, 120, 3))
    known = settle(Query(), open_ended, release_heading=0.0, model_shape=(32, 128))
    assert (known.heading, known.fov, known.fov_origin, known.projection) == (0, 360, "assumed", "equirectangular")
    assert "it has the shape of the model's own panoramas" in known.warnings[0]
    for query, shape in ((Query(), (32, 176)), (Query(projection="cylindrical"), (32, 128))):
        with pytest.raises(ViewError, match="fov is missing"):
            settle(query, open_ended, model_shape=shape)
    assert settle(Query(fov=90), open_ended, model_shape=(32, 128)).projection == "cylindrical"
    with pytest.raises(ViewError, match="fov is missing"):
        settle(Query(), open_ended[:, 20:60], model_shape=(30, 40))

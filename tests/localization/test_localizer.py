"""`Localizer.locate`: from pixels and what is known of them to a fix."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from s2s_ray.errors import InputError, RegistryError, ViewError
from s2s_ray.geo.metadata import PhotoMetadata
from s2s_ray.geo.prior import FileCircle
from s2s_ray.geo.query import Query
from s2s_ray.geo.views import ViewGeometry
from s2s_ray.index import ReferenceIndex
from s2s_ray.inference import Embedder, Localizer
from s2s_ray.localization import Calibration
from s2s_ray.model.s2s import S2S
from tests.support.calibrations import calibration
from tests.support.landscape import degrees, grid, index_of
from tests.support.models import tiny_model
from tests.support.stored_model import stored_model

MODEL = tiny_model(width=72, pooling="azimuth", circular=True)
GEOMETRY = ViewGeometry(32, 72, (0.0, 1.0))
SIDE = 6


def panoramas(count: int) -> list[np.ndarray]:
    """Return panoramas 72 x 32 pixels large with bold colours, unlike each other and in each direction."""
    random = np.random.default_rng(5)
    small = random.integers(0, 256, (count, 2, 9, 3), dtype=np.uint8)
    return [np.repeat(np.repeat(one, 16, axis=0), 8, axis=1) for one in small]


@pytest.fixture(scope="module")
def localizer() -> Localizer:
    """An index whose tiles have the descriptors of panoramas with north in the middle column."""
    torch.manual_seed(0)
    model = S2S(MODEL).eval()
    descriptors = Embedder(model, GEOMETRY).street(panoramas(SIDE**2), 0.0)
    return Localizer(model, index_of(descriptors, degrees(grid(SIDE, 60.0))), GEOMETRY, calibration("0" * 64))


def test_a_known_heading(localizer: Localizer) -> None:
    """The picture of tile 7 looks east: its columns are turned by a quarter."""
    turned = np.roll(panoramas(SIDE**2)[7], -18, axis=1)
    [found] = localizer.locate([turned], Query(heading=90.0), k=2)
    assert found.matches[0].id == "tile-7"
    assert found.matches[0].descriptor_distance == pytest.approx(0, abs=1e-4)
    assert found.fix is not None
    assert (found.fix.heading, found.fix.heading_spread) == (90, 0)
    assert found.matches[:2] == [
        (*match, 90.0) for match in localizer.index.search(localizer.embedder.street([turned], 90.0), 2)[0]
    ]


@pytest.mark.parametrize("columns", [0, 8, 40, 68])
def test_an_unknown_heading_is_found(localizer: Localizer, columns: int) -> None:
    images = [np.roll(panoramas(SIDE**2)[row], -columns, axis=1) for row in (3, 30)]
    found = localizer.locate(images, Query(heading="unknown", fov=360.0))
    assert [one.matches[0].id for one in found] == ["tile-3", "tile-30"]
    assert [one.matches[0].heading for one in found] == [columns * 5.0] * 2
    assert [len(one.matches) for one in found] == [10, 10]
    position = localizer.index.positions[30]
    assert found[1].fix is not None
    assert (found[1].fix.latitude, found[1].fix.longitude) == pytest.approx(tuple(position), abs=2e-4)


def test_the_file_says_the_heading(localizer: Localizer) -> None:
    """Within some degrees, and no others are searched."""
    picture = np.roll(panoramas(SIDE**2)[12], -40, axis=1)
    photo = PhotoMetadata(heading=200.0, heading_spread=12.0, heading_reference="magnetic")
    [found] = localizer.locate([picture], Query(fov=360.0), photos=[photo])
    assert found.matches[0].id == "tile-12"
    assert found.matches[0].heading == 200
    assert found.fix is not None
    assert found.fix.heading_spread is not None
    assert found.fix.heading_spread > 0
    assert all(164 <= match.heading <= 236 for match in found.matches)


def test_pictures_of_one_place_together(localizer: Localizer) -> None:
    images = [np.roll(panoramas(SIDE**2)[20], -columns, axis=1) for columns in (16, 48)]
    [found] = localizer.locate(images, Query(heading="unknown", fov=360.0), together=True)
    assert found.matches[0].id == "tile-20"
    assert [round(heading[0], -1) if heading else None for heading in found.headings] == [80, 240]


def test_what_cannot_be_located_is_named(localizer: Localizer) -> None:
    [picture] = panoramas(1)
    with pytest.raises(InputError, match=r"^1 photos for 2 images: give the metadata of each, or none"):
        localizer.locate([picture, picture], photos=[PhotoMetadata()])
    with pytest.raises(ViewError, match="fov"):
        localizer.locate([np.zeros((40, 30, 3), np.uint8)], Query(heading=0.0))
    with pytest.raises(InputError, match=f"^k=37: expected 1 to {SIDE**2}"):
        localizer.locate([picture], Query(heading=0.0), k=37)
    with pytest.raises(InputError, match=re.escape("images=[]")):
        localizer.locate([], together=True)
    assert localizer.locate([]) == []


def test_it_is_loaded_with_its_calibration(tmp_path: Path) -> None:
    checkpoint, index = stored_model(tmp_path)
    mine = calibration(ReferenceIndex.load(index).info.checkpoint)
    uri, other = str(tmp_path / "calibration.json"), str(tmp_path / "other.json")
    mine.write(uri)
    calibration("f" * 64).write(other)
    assert Localizer.load(checkpoint, index).calibration is None
    loaded = Localizer.load(checkpoint, index, calibration=uri)
    assert loaded.calibration == mine == Calibration.read(uri)
    with pytest.raises(RegistryError, match=f"^calibration {other} was made with checkpoint ffffffff, not"):
        Localizer.load(checkpoint, index, calibration=other)


def test_the_circle_around_the_position_in_a_file(localizer: Localizer) -> None:
    picture = panoramas(SIDE**2)[7]
    [near] = localizer.locate([picture], Query(heading=0.0), 1)
    latitude, longitude = near.matches[0].latitude, near.matches[0].longitude
    assert latitude is not None
    assert longitude is not None
    photo = PhotoMetadata(position=(latitude + 0.0005, longitude))  # 56 m to the north of tile 7
    [found] = localizer.locate([picture], Query(heading=0.0), 5, FileCircle(58.0), photos=[photo])
    assert len(found.matches) == 2, "tile 7 and the one to the north of it"
    assert found.matches[0].id == "tile-7"
    assert found.pictures[0].warnings == ()
    [found] = localizer.locate([picture], Query(heading=0.0), 5, FileCircle(58.0))
    assert len(found.matches) == 5
    assert "the file has no position" in found.pictures[0].warnings[0]


def test_how_each_picture_was_understood(localizer: Localizer) -> None:
    pictures = panoramas(SIDE**2)[3:5]
    [found] = localizer.locate(pictures, Query(heading="unknown"), 1, together=True)
    assert [(one.heading, one.fov, one.fov_origin) for one in found.pictures] == [(None, 360, "assumed")] * 2


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"query": {"heading": 0}}, "query={'heading': 0}: expected a Query"),
        ({"prior": (1, 2)}, "prior=(1, 2): expected"),
    ],
)
def test_values_of_another_type(localizer: Localizer, keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        localizer.locate(panoramas(1), k=1, **keywords)

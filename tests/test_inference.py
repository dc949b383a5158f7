"""The plain classes against the model called by hand on views prepared by hand."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from s2s_ray import registry, storage
from s2s_ray.errors import InputError, ReferenceIndexError, ViewError
from s2s_ray.geo.polar import roll_to_north
from s2s_ray.geo.prepare import prepare_polar, prepare_satellite, prepare_street
from s2s_ray.geo.views import ViewGeometry
from s2s_ray.index import (
    IndexInfo,
    ReferenceIndex,
)
from s2s_ray.inference import Embedder, Localizer, Synthesizer, Use
from s2s_ray.model.checkpoint import save_model
from s2s_ray.model.s2s import S2S
from tests.support.models import tiny_model

TINY = tiny_model(width=72)
ROWS = (0.1, 0.9)


@pytest.fixture(scope="module")
def model() -> S2S:
    torch.manual_seed(3)
    return S2S(TINY).eval()


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@torch.inference_mode()
def test_street_descriptors_are_the_models_whatever_the_batch(model: S2S) -> None:
    panoramas = [noise(40 + 2 * i, 100 + 7 * i, i) for i in range(5)]
    headings = [0.0, 45.0, -90.0, 180.0, 7.0]
    views = torch.stack([prepare_street(p, h, ROWS, 32, 72) for p, h in zip(panoramas, headings, strict=True)])
    embedder = Embedder(model, ViewGeometry(32, 72, ROWS), batch=2)
    found = embedder.street(panoramas, headings)
    np.testing.assert_allclose(found, model.embed_street(views).numpy(), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(embedder.street(panoramas[1:2], 45.0)[0], found[1], atol=1e-6)
    assert np.abs(embedder.street(panoramas[1:2], 0.0)[0] - found[1]).max() > 1e-4
    assert np.abs(embedder.street(panoramas[1:2], 45.0, (0.0, 1.0))[0] - found[1]).max() > 1e-5


@torch.inference_mode()
def test_satellite_descriptors_and_views_are_the_models(model: S2S) -> None:
    tile, polar = noise(50, 50), noise(64, 144)
    views = torch.stack([prepare_satellite(tile, 32, 72), prepare_polar(polar, 32, 72)])
    found = Embedder(model).satellite([tile, polar])
    np.testing.assert_allclose(found, model.embed_satellite(views).numpy(), atol=1e-6)
    drawn = Synthesizer(model, batch=1).street([tile, polar])
    expected = (model.synthesize(views).numpy().transpose(0, 2, 3, 1).astype(float) + 1) * 127.5
    assert drawn.shape == (2, 32, 72, 3)
    assert drawn.dtype == np.uint8
    assert np.abs(drawn - expected).max() <= 0.5 + 1e-3


def test_no_images_give_empty_results(model: S2S) -> None:
    assert Embedder(model).street([]).shape == (0, TINY.descriptor_size)
    assert Embedder(model).satellite([]).shape == (0, TINY.descriptor_size)
    assert Synthesizer(model).street([]).shape == (0, 32, 72, 3)


def test_headings_must_be_as_many_as_panoramas(model: S2S) -> None:
    with pytest.raises(InputError, match="1 headings for 2 panoramas"):
        Embedder(model).street([noise(40, 100)] * 2, [0.0])


def test_descriptors_carry_no_gradient(model: S2S) -> None:
    view = torch.zeros((1, 3, 32, 72), dtype=torch.uint8)
    assert not torch.from_numpy(Embedder(model).embed_street(view)).requires_grad


def panorama_index(model: S2S, panoramas: list[NDArray[np.uint8]], checkpoint: str = "c") -> ReferenceIndex:
    """An index that holds the panoramas' own descriptors, so that each must find itself."""
    count = len(panoramas)
    info = IndexInfo(
        dimension=TINY.descriptor_size,
        count=count,
        checkpoint=checkpoint,
        dataset="d",
        dataset_digest="x",
        split="test",
    )
    columns = {name: [float(row) for row in range(count)] for name in ("latitude", "longitude", "easting", "northing")}
    table = pa.table({"id": [str(r) for r in range(count)], **columns, "zone": pa.array([1] * count, pa.int32())})
    return ReferenceIndex.build(info, Embedder(model).street(panoramas), table)


@pytest.mark.parametrize(
    "heading", [90, np.float32(90), np.int16(90), np.array(90.0), [90.0], np.array([90], np.float32)]
)
def test_headings_are_numbers_of_any_kind(model: S2S, heading: Any) -> None:
    panorama = noise(40, 100)
    expected = Embedder(model).street([panorama], 90.0)
    assert np.array_equal(Embedder(model).street([panorama], heading), expected)


ODD = [np.array("90"), np.array(True), np.array(None), {90: 1}, {90}, bytearray(b"9")]


@pytest.mark.parametrize("heading", [True, "90", None, math.nan, np.float32("inf"), [True], ["90"], b"90", *ODD])
def test_headings_that_are_no_numbers_are_refused(model: S2S, heading: Any) -> None:
    with pytest.raises(ViewError, match=r"^heading=.*: expected a"):
        Embedder(model).street([noise(40, 100)], heading)


@pytest.mark.parametrize("k", [True, 2.0, "2", math.nan, np.float64(2)])
def test_a_number_of_tiles_is_whole(model: S2S, k: Any) -> None:
    panoramas = [noise(40, 100, seed) for seed in range(3)]
    localizer = Localizer(model, panorama_index(model, panoramas))
    assert len(localizer.street(panoramas[:1], np.int64(2))[0]) == 2
    with pytest.raises(InputError, match=r"^k=.*: expected a whole number"):
        localizer.street(panoramas[:1], k)


@pytest.mark.parametrize("batch", [0, -1, True, 2.5, math.nan])
def test_a_batch_is_a_whole_number(model: S2S, batch: Any) -> None:
    with pytest.raises(InputError, match=r"^batch="):
        Embedder(model, batch=batch)


@torch.inference_mode()
@pytest.mark.parametrize(("width", "shifts"), [(72, 8), (176, 2), (352, 1), (616, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_turned_descriptors_are_those_of_each_heading(width: int, shifts: int, masked: bool) -> None:
    """Equal steps of at most 8.2 degrees, and the rolls of images that a given heading means."""
    torch.manual_seed(3)
    config = tiny_model(width=width, circular=True)
    embedder = Embedder(S2S(config))
    views = torch.stack([torch.from_numpy(noise(32, width, seed)).permute(2, 0, 1) for seed in range(2)])
    seen = (torch.arange(width) % 50 < 40).expand(2, 32, width) if masked else None
    found, headings = embedder.embed_turned(views, seen)
    assert headings.dtype == np.float64
    np.testing.assert_allclose(headings, np.arange(len(headings)) * 360 / len(headings))
    assert 360 / len(headings) <= 8.2
    assert found.shape == (2, shifts * width // 8, config.descriptor_size)
    assert found.dtype == np.float32
    for number in range(0, len(headings), 5):
        rolled = [roll_to_north(one, headings[number]) for one in (views, views[:, 0] if seen is None else seen)]
        expected = embedder.embed_street(rolled[0], rolled[1] if masked else None)
        np.testing.assert_allclose(found[:, number], expected, atol=2e-6)
    assert embedder.embed_turned(views[:0])[0].shape == (0, *found.shape[1:])


def test_a_partial_view_is_embedded_by_what_was_seen(model: S2S) -> None:
    views = torch.stack([torch.from_numpy(noise(32, 72, seed)).permute(2, 0, 1) for seed in range(2)])
    seen = torch.zeros(2, 32, 72, dtype=torch.bool)
    seen[..., 8:40] = True
    views[1] = torch.where(seen[1], views[0], views[1])
    first, second = Embedder(model).embed_street(views, seen)
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - Embedder(model).embed_street(views)[0]).max() > 1e-4


def test_localizer_ranks_the_nearest_tiles(model: S2S) -> None:
    panoramas = [noise(40, 100, seed) for seed in range(6)]
    found = Localizer(model, panorama_index(model, panoramas)).street(panoramas[2:5], k=3)
    assert [matches[0].id for matches in found] == ["2", "3", "4"]
    assert all(len(matches) == 3 for matches in found)
    [everything] = Localizer(model, panorama_index(model, panoramas)).street(panoramas[:1])
    assert len(everything) == 6, "fewer than the default"
    assert all(a.descriptor_distance <= b.descriptor_distance for m in found for a, b in pairwise(m))


def test_loaded_from_uris_the_index_must_be_the_checkpoints(model: S2S, tmp_path: Path) -> None:
    checkpoint, good, bad = (str(tmp_path / name) for name in ("checkpoint", "good", "bad"))
    save_model(model, {"dataset": {"geometry": {"panorama_rows": list(ROWS)}}}, tmp_path / "local")
    storage.publish(tmp_path / "local", checkpoint)
    panoramas = [noise(40, 100, seed) for seed in range(3)]
    panorama_index(model, panoramas, registry.fingerprint(checkpoint)).save(good)
    panorama_index(model, panoramas, "0" * 64).save(bad)
    loaded = Localizer.load(checkpoint, good)
    assert loaded.embedder.geometry == ViewGeometry(32, 72, ROWS)
    assert loaded.street(panoramas[:1], k=1, rows=(0.0, 1.0))[0][0].id == "0"
    with pytest.raises(ReferenceIndexError, match="built with checkpoint 00000000"):
        Localizer.load(checkpoint, bad)


def test_an_index_of_another_size_is_refused(model: S2S) -> None:
    wide = S2S(TINY.model_copy(update={"masks": 3})).eval()
    with pytest.raises(ReferenceIndexError, match="the model makes 96"):
        Localizer(wide, panorama_index(model, [noise(40, 100)]))


@pytest.mark.parametrize("use", ["street", "satellite", "synthesis"])
def test_a_process_for_one_use_keeps_what_that_needs(model: S2S, use: Use) -> None:
    view = torch.from_numpy(noise(32, 72)).permute(2, 0, 1)[None]
    calls = {
        "street": lambda one: one.embed_street(view),
        "satellite": lambda one: one.embed_satellite(view),
        "synthesis": lambda one: one.synthesize(view),
    }
    special: Any = (Synthesizer if use == "synthesis" else Embedder)(copy.deepcopy(model))
    expected = calls[use](special)
    before = sum(parameter.numel() for parameter in special.model.parameters())
    special.specialise(use)
    assert sum(parameter.numel() for parameter in special.model.parameters()) < before
    assert np.abs(calls[use](special).astype(float) - expected).max() <= (1 if use == "synthesis" else 1e-6)
    other = "satellite" if use == "street" else "street"
    with pytest.raises(AttributeError):
        calls[other](Embedder(special.model))
    if use == "street":
        turned = Embedder(model).embed_turned(view)[0]
        assert np.abs(special.embed_turned(view)[0] - turned).max() <= 1e-6
    half: Any = type(special)(copy.deepcopy(model))
    half.specialise(use, "bfloat16")
    rounded = calls[use](half)
    assert rounded.dtype == expected.dtype
    assert not np.array_equal(rounded, expected)
    if use == "synthesis":
        assert np.abs(rounded.astype(float) - expected).mean() < 3
    else:
        assert float((rounded * expected).sum()) > 0.99, "the cosine of two unit descriptors"

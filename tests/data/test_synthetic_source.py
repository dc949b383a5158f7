"""The procedural city as a source: positions, coordinates, determinism; colours alone do not reveal a position."""

from __future__ import annotations

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from pyproj import Transformer

from benchmarks.colour import colour_matching_recall
from s2s_ray.city import scene, surface
from s2s_ray.config import SyntheticSourceConfig
from s2s_ray.data.schema import Pair, Record
from s2s_ray.data.sources.synthetic import SyntheticSource
from s2s_ray.errors import InputError

SMALL = SyntheticSourceConfig(
    seed=3, train_pairs=30, test_pairs=20, tile_px=48, panorama_height=20, panorama_width=72, panorama_rays=1
)


@pytest.fixture(scope="module")
def base() -> Pair:
    """The first pair of the unchanged settings."""
    return read_first(SyntheticSource(SMALL))


def read_first(source: SyntheticSource) -> Pair:
    return source.read(source.records()[0])


def points(records: list[Record]) -> np.ndarray:
    return np.array([(record.easting, record.northing) for record in records], float)


def test_shapes_and_kinds_of_both_images() -> None:
    config = SMALL.model_copy(update={"tile_px": 40, "tile_m": 50.0, "panorama_height": 24, "panorama_width": 100})
    pair = read_first(SyntheticSource(config))
    assert pair.satellite.shape == (40, 40, 3)
    assert pair.street.shape == (24, 100, 3)
    assert pair.satellite.dtype == pair.street.dtype == np.uint8
    assert min(image.std() for image in pair) > 8


def test_ids_splits_and_prefixes() -> None:
    few, many = (list(SyntheticSource(SMALL.model_copy(update={"train_pairs": n})).records()) for n in (30, 45))
    assert [record.id for record in few[:2]] == ["train-00000", "train-00001"]
    assert few[-1].id == "test-00019"
    assert [record.split for record in few] == ["train"] * 30 + ["test"] * 20
    assert few[:30] == many[:30]
    assert few[30:] == many[45:]


@pytest.mark.parametrize("spacing", [9.0, 25.0])
def test_positions_are_on_streets_apart_and_the_regions_disjoint(spacing: float) -> None:
    source = SyntheticSource(SMALL.model_copy(update={"train_pairs": 400, "test_pairs": 100, "spacing_m": spacing}))
    records = list(source.records())
    train, test = points(records[:400]), points(records[400:])
    for region in (train, test):
        gaps = np.hypot(*(region[:, None] - region).transpose(2, 0, 1)) + 1e9 * np.eye(len(region))
        assert gaps.min() >= spacing
    assert np.hypot(*(train[:, None] - test).transpose(2, 0, 1)).min() > 700
    x, y = (train - (692_000.0, 6_090_000.0)).T
    assert np.isin(source.city.plan.locate(x, y).ground, (surface.ASPHALT, surface.MARKING)).all()


def test_the_training_region_is_compact_and_spans_several_blocks() -> None:
    train = points(list(SyntheticSource(SMALL.model_copy(update={"train_pairs": 1000})).records())[:1000])
    assert len(np.unique(train // 500, axis=0)) >= 6
    assert np.ptp(train, axis=0).max() < 2500


def test_latitude_and_longitude_are_those_of_the_grid() -> None:
    for record in SyntheticSource(SMALL).records():
        easting, northing = Transformer.from_crs(4326, record.zone).transform(record.latitude, record.longitude)
        assert (easting, northing) == pytest.approx((record.easting, record.northing), abs=1e-3)
        assert record.latitude == pytest.approx(-35.3, abs=0.1)
        assert record.longitude == pytest.approx(149.1, abs=0.1)


@pytest.mark.slow
def test_pixels_do_not_depend_on_order_cache_or_process(monkeypatch: pytest.MonkeyPatch) -> None:
    records = list(SyntheticSource(SMALL).records())[:32:15]
    forward = SyntheticSource(SMALL)
    expected = [forward.read(record) for record in records]
    monkeypatch.setattr(scene, "CACHE_BYTES", 13 * scene.SIDE**2 * 9)
    backward = SyntheticSource(SMALL)
    for record, pair in reversed(list(zip(records, expected, strict=True))):
        again = backward.read(record)
        np.testing.assert_array_equal(again.satellite, pair.satellite)
        np.testing.assert_array_equal(again.street, pair.street)
    assert backward.atlas.capacity == 9
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        elsewhere = pool.submit(pickle.loads(pickle.dumps(forward)).read, records[0]).result()
    np.testing.assert_array_equal(elsewhere.satellite, expected[0].satellite)
    np.testing.assert_array_equal(elsewhere.street, expected[0].street)


@pytest.mark.slow
def test_seed_and_occlusion_change_the_pictures(base: Pair) -> None:
    for change in ({"seed": 4}, {"occlusion": 0.9}):
        other = read_first(SyntheticSource(SMALL.model_copy(update=change)))
        assert (base.street != other.street).mean() > 0.01


def test_jitter_moves_the_panorama_and_not_the_tile(base: Pair) -> None:
    moved = read_first(SyntheticSource(SMALL.model_copy(update={"jitter_m": 4.0})))
    np.testing.assert_array_equal(base.satellite, moved.satellite)
    assert (base.street != moved.street).mean() > 0.1


def test_far_away_positions_work() -> None:
    source = SyntheticSource(SMALL)
    far = Record("far", "test", easting=692_000.0 - 250_000.0, northing=6_090_000.0 + 400_000.0, zone=32755)
    assert min(image.std() for image in source.read(far)) > 3


def test_a_record_of_another_grid_is_refused() -> None:
    with pytest.raises(InputError, match=r"elsewhere.*32755"):
        SyntheticSource(SMALL).read(Record("elsewhere", "test", easting=1.0, northing=2.0, zone=32633))


@pytest.mark.slow
def test_colours_do_not_give_the_match_away() -> None:
    config = SMALL.model_copy(update={"test_pairs": 80})
    source = SyntheticSource(config)
    pairs = [source.read(record) for record in source.records() if record.split == "test"]
    tiles, streets = [pair.satellite for pair in pairs], [pair.street for pair in pairs]
    for found in (colour_matching_recall(streets, tiles), colour_matching_recall(tiles, streets, bins=4)):
        assert max(found.values()) < 0.05, found


def test_colour_matching_finds_what_colours_do_give_away() -> None:
    rng = np.random.default_rng(0)
    gallery = [rng.integers(low, low + 60, (5 + k, 9, 3)).astype(np.uint8) for k, low in enumerate(range(0, 190, 24))]
    queries = [image[::-1] for image in gallery]
    found = colour_matching_recall(queries, gallery)
    assert {name: found[name] for name in ("mean", "mean_standardised", "histogram_l1", "histogram_chi2")} == {
        "mean": 1.0,
        "mean_standardised": 1.0,
        "histogram_l1": 1.0,
        "histogram_chi2": 1.0,
    }
    assert colour_matching_recall([gallery[0]] * 4, [gallery[0]] * 4)["histogram_l1"] == 0.0
    with pytest.raises(ValueError, match="2 queries and 3"):
        colour_matching_recall(queries[:2], gallery[:3])

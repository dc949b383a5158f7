"""The choice of the validation split."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from pyproj import Geod

from s2s_ray.data.holdout import _around_the_earth, hold_out
from s2s_ray.data.schema import Record
from s2s_ray.errors import DatasetError
from s2s_ray.geo.utm import to_utm, utm_zone

WGS84 = Geod(ellps="WGS84")


def named(count: int, split: str = "train") -> list[Record]:
    return [Record(f"{split}{k}", split) for k in range(count)]  # type: ignore[arg-type]


def scattered(count: int, extent_m: float, seed: int = 0) -> list[Record]:
    places = np.random.default_rng(seed).uniform(0, extent_m, (count, 2))
    return [
        Record(f"p{k}", "train", easting=500_000 + x, northing=6_000_000 + y, zone=32632)
        for k, (x, y) in enumerate(places.tolist())
    ]


def splits(records: Sequence[Record]) -> dict[str, str]:
    return {record.id: record.split for record in records}


def test_without_coordinates_a_tenth_is_held_out_and_the_rest_is_unchanged() -> None:
    records = [*named(200), *named(50, "test")]
    found, how = hold_out(records, 0.1, 500)
    assert [record.id for record in found] == [record.id for record in records]
    assert [record.split for record in found].count("val") == 20
    assert [record.split for record in found[200:]] == ["test"] * 50
    assert how == "20 of 200 training pairs, by the hash of the id"


def test_the_choice_does_not_depend_on_the_order_of_the_records() -> None:
    records = named(100)
    assert splits(hold_out(records, 0.1, 500)[0]) == splits(hold_out(records[::-1], 0.1, 500)[0])
    places = scattered(300, 5000)
    assert splits(hold_out(places, 0.1, 500)[0]) == splits(hold_out(places[::-1], 0.1, 500)[0])


def test_with_coordinates_whole_blocks_are_held_out() -> None:
    records = scattered(1000, 5000)  # about 100 blocks of about 10 pairs
    found, how = hold_out(records, 0.1, 500)
    blocks: dict[tuple[int, int], set[str]] = {}
    for record in found:
        assert record.easting is not None
        assert record.northing is not None
        blocks.setdefault((int(record.easting // 500), int(record.northing // 500)), set()).add(record.split)
    assert all(len(members) == 1 for members in blocks.values())
    assert 100 <= [record.split for record in found].count("val") <= 200
    assert "whole blocks of 500 m" in how


BORDERS = [(48.1, 12.0), (0.0, 9.5), (0.0, 12.0), (-17.2, 180.0), (89.9999, 0.0), (84.0, 20.0), (48.0, 0.0)]


def along(latitude: float, longitude: float, metres: Sequence[float]) -> list[Record]:
    """Training pairs on the parallel or the meridian through a point, at these metres from it on either side."""
    places = [WGS84.fwd(longitude, latitude, azimuth, m)[:2] for azimuth in (45, 225) for m in metres]
    zones = [utm_zone(min(max(north, -80), 84), east) for east, north in places]
    utm = [to_utm(north, east, zone) for (east, north), zone in zip(places, zones, strict=True)]
    return [
        Record(f"p{k}", "train", north, east, float(utm[k][0]), float(utm[k][1]), zones[k])
        for k, (east, north) in enumerate(places)
    ]


@pytest.mark.parametrize(("latitude", "longitude"), BORDERS)
def test_borders_of_zones_the_equator_and_the_date_line_divide_no_block(latitude: float, longitude: float) -> None:
    """Pairs up to 7 m from a border, on both of its sides, and others some kilometres away."""
    records = along(latitude, longitude, [1, 3, 7, 20_000, 21_000, 22_000, 23_000])
    for fraction in (0.2, 0.4, 0.6):
        found, how = hold_out(records, fraction, 500)
        assert "whole blocks" in how
        near = {record.split for k, record in enumerate(found) if k % 7 < 3}
        assert len(near) == 1
        assert any(record.split == "val" for record in found)


def test_blocks_around_the_earth_have_the_side_that_is_asked_for() -> None:
    starts = np.random.default_rng(0).uniform([-80, -180], [80, 180], (20, 2))
    for latitude, longitude in starts.tolist():
        steps = np.arange(0.0, 10_000.0, 5.0)
        for azimuth in (0, 90):
            east, north, _ = WGS84.fwd(*np.full((2, len(steps)), [[longitude], [latitude]]), azimuth + 0 * steps, steps)
            records = [Record(f"{k}", "train", n, e) for k, (n, e) in enumerate(zip(north, east, strict=True))]
            names = _around_the_earth(records, 500.0)
            assert names is not None
            crossed = sum(a != b for a, b in pairwise(names))
            assert 18 <= crossed <= 24  # the parallel's own bands may be crossed once or twice on the way


def test_data_sets_begun_under_the_rule_of_zones_keep_their_blocks() -> None:
    records = [
        Record(f"{zone}-{k}", "train", easting=1, northing=1, zone=zone) for zone in (32632, 32633) for k in (1, 2)
    ]
    found, how = hold_out(records, 0.5, 500, "utm")
    held = {record.zone for record in found if record.split == "val"}
    assert len(held) == 1
    assert "blocks" in how
    within_one = scattered(300, 5000)
    assert hold_out(within_one, 0.1, 500) == hold_out(within_one, 0.1, 500, "utm")


@pytest.mark.parametrize("extent_m", [300, 800])
def test_single_pairs_are_held_out_and_logged_if_blocks_are_too_coarse(
    extent_m: float, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    found, how = hold_out(scattered(100, extent_m), 0.05, 500)
    assert [record.split for record in found].count("val") == 5
    assert "hash of the id" in how
    assert "too few or too large" in caplog.text


def test_one_pair_without_coordinates_rules_blocks_out() -> None:
    _, how = hold_out([*scattered(500, 5000), *named(1)], 0.1, 500)
    assert "hash of the id" in how


def test_a_source_with_validation_pairs_keeps_them() -> None:
    records = [*named(10), *named(2, "val"), *named(3, "test")]
    found, how = hold_out(records, 0.5, 500)
    assert found == records
    assert how == "named by the source"


@pytest.mark.parametrize(("count", "held"), [(0, 0), (1, 0), (2, 1), (3, 1), (6, 1), (25, 2)])
def test_few_pairs(count: int, held: int) -> None:
    found, _ = hold_out(named(count), 0.1, 500)
    assert [record.split for record in found].count("val") == held


def test_some_training_pairs_remain() -> None:
    found, _ = hold_out(named(3), 0.99, 500)
    assert [record.split for record in found].count("val") == 2
    found, _ = hold_out(scattered(40, 2000), 0.99, 500)
    assert [record.split for record in found].count("train") >= 1


def test_pictures_of_one_place_stay_together() -> None:
    places = [None if k % 3 else f"place-{k % 12}" for k in range(120)]  # four places of ten pictures each
    records = [Record(str(k), "train", place=place) for k, place in enumerate(places)]
    found, how = hold_out(records, 0.2, 500.0)
    held = {record.id for record in found if record.split == "val"}
    assert how == f"{len(held)} of 120 training pairs, by the hash of the id"
    assert 24 <= len(held) < 34
    for name in {place for place in places if place}:
        assert len({record.split for record in found if record.place == name}) == 1
    assert {record.split for record in found if record.place is None} == {"train", "val"}


def test_pictures_of_one_place_stay_together_in_blocks() -> None:
    rng = np.random.default_rng(0)
    records = [
        Record(f"{p}-{k}", "train", None, None, 600_000 + east + 9 * k, 5e6 + north, 32632, place=f"p{p}")
        for p, (east, north) in enumerate(rng.uniform(0, 1500, (60, 2)).tolist())
        for k in range(3)
    ]
    for order in (records, records[::-1]):
        found, how = hold_out(order, 0.2, 100.0)
        assert "whole blocks" in how
        assert splits(found) == splits(hold_out(records, 0.2, 100.0)[0])
        for p in range(60):
            assert len({record.split for record in found if record.place == f"p{p}"}) == 1


@pytest.mark.parametrize("other", ["val", "test"])
def test_a_place_in_several_splits_is_refused(other: str) -> None:
    records = [*named(5), Record("a", "train", place="square"), Record("b", other, place="square")]  # type: ignore[arg-type]
    words = f"place 'square' is in several splits, with a in train and b in {other}"
    with pytest.raises(DatasetError, match=words):
        hold_out(records, 0.2, 100.0)


def test_one_place_is_never_held_out_whole() -> None:
    records = [Record(str(k), "train", place="a") for k in range(5)]
    assert {record.split for record in hold_out(records, 0.2, 500.0)[0]} == {"train"}

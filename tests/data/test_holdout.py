"""The choice of the validation split."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pytest

from s2s_ray.data.holdout import hold_out
from s2s_ray.data.schema import Record


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


def test_the_same_corner_in_two_zones_is_two_blocks() -> None:
    records = [
        Record(f"{zone}-{k}", "train", easting=1, northing=1, zone=zone) for zone in (32632, 32633) for k in (1, 2)
    ]
    found, how = hold_out(records, 0.5, 500)
    held = {record.zone for record in found if record.split == "val"}
    assert len(held) == 1
    assert "blocks" in how


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

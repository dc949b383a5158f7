"""Recall against a triple loop over queries, tiles and dimensions, with ties, copies, radii and odd chunks."""

from __future__ import annotations

import errno
import math
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from s2s_ray.errors import DescriptorError, DiskFullError, InputError
from s2s_ray.evaluation.recall import (
    Nearby,
    nearest,
    recall_at_k,
    require_finite,
)
from s2s_ray.evaluation.rows import StoredRows
from s2s_ray.geo.places import Places


def brute_force_ranks(
    queries: Tensor, gallery: Tensor, truth: list[int] | None, nearby: Nearby | None
) -> tuple[list[int], list[int]]:
    """Rank and number of correct tiles of each query, from the definition."""
    ranks, counts = [], []
    for q, query in enumerate(queries.tolist()):
        distances, correct = [], []
        for g, tile in enumerate(gallery.tolist()):
            distances.append(math.fsum((a - b) ** 2 for a, b in zip(query, tile, strict=True)))
            correct.append(truth is not None and truth[q] == g)
            if nearby is not None and nearby.queries.frames[q] == nearby.gallery.frames[g] != 0:
                metres = math.dist(nearby.queries.points[q], nearby.gallery.points[g])
                correct[-1] |= metres <= nearby.radius_m
        best = min((d for d, c in zip(distances, correct, strict=True) if c), default=None)
        wrong = [d for d, c in zip(distances, correct, strict=True) if not c]
        ranks.append(len(gallery) + 1 if best is None else 1 + sum(d <= best + 1e-7 for d in wrong))
        counts.append(sum(correct))
    return ranks, counts


def descriptors_with_ties(n: int, m: int, seed: int) -> tuple[Tensor, Tensor]:
    """Unit descriptors on a coarse lattice, so that many distances are equal, and copies among the tiles."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randint(-1, 2, (n + m, 5), generator=generator).float()
    draw[:, 0] += 0.5  # never the zero vector
    unit = F.normalize(draw)
    unit[n + 3] = unit[n]  # exact copies in the gallery
    unit[n + m - 1] = unit[n + 1]
    return unit[:n], unit[n:]


def places(n: int, seed: int) -> Places:
    """Places in two zones with northings that float32 cannot tell apart, and some unknown."""
    rng = np.random.default_rng(seed)
    positions = np.array([690_000.0, 6_090_000.0]) + rng.integers(0, 12, (n, 2)) / 4
    zones = rng.choice([32755, 32756], n)
    positions[2], zones[2] = np.nan, 0
    positions[3], zones[3] = (690_000.0, 6_090_000.0), 0  # metres of an unknown zone say nothing
    return Places(positions, zones)


@pytest.mark.parametrize(("n", "m"), [(23, 23), (7, 23), (23, 7)])
@pytest.mark.parametrize(("chunk", "gallery_chunk"), [(1, 1), (23, 23), (11, 8), (8, 22), (24, 7), (100, 100)])
def test_ranks_equal_brute_force_for_any_chunks(n: int, m: int, chunk: int, gallery_chunk: int) -> None:
    queries, gallery = descriptors_with_ties(n, m, seed=n)
    truth = torch.randint(0, m, (n,), generator=torch.Generator().manual_seed(1))
    result = recall_at_k(queries, gallery, truth=truth, chunk=chunk, gallery_chunk=gallery_chunk)
    ranks, counts = brute_force_ranks(queries, gallery, truth.tolist(), None)
    assert result.ranks.tolist() == ranks
    assert result.correct.tolist() == counts == [1] * n
    for k in (1, 5, 10):
        assert result.recall[str(k)] == pytest.approx(sum(rank <= k for rank in ranks) / n)
    assert result.recall["1%"] == result.recall["1"]  # one percent of 7 or 23 tiles is one rank


@pytest.mark.parametrize(("chunk", "gallery_chunk"), [(1, 1), (29, 29), (10, 7), (100, 100)])
@pytest.mark.parametrize("radius", [0.0, 0.5, 1.25, 50.0])
@pytest.mark.parametrize("own_tile", [True, False])
def test_tiles_within_the_radius_are_correct(chunk: int, gallery_chunk: int, radius: float, own_tile: bool) -> None:
    n, m = 19, 29
    queries, gallery = descriptors_with_ties(n, m, seed=5)
    nearby = Nearby(places(n, 1), places(m, 2), radius)
    truth = torch.arange(n).flip(0) if own_tile else None
    result = recall_at_k(
        queries, gallery, truth=truth, nearby=nearby, chunk=chunk, gallery_chunk=gallery_chunk, ks=(1, 3, 40)
    )
    ranks, counts = brute_force_ranks(queries, gallery, None if truth is None else truth.tolist(), nearby)
    assert result.ranks.tolist() == ranks
    assert result.correct.tolist() == counts
    assert result.recall["3"] == pytest.approx(sum(rank <= 3 for rank in ranks) / n)
    assert result.recall["40"] == pytest.approx(sum(count > 0 for count in counts) / n)
    assert result.chance == pytest.approx(sum(counts) / n / m)


def test_several_correct_tiles_count_once_each_and_do_not_push_each_other_down() -> None:
    gallery = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0]]))
    here = Places(np.array([[0.0, 0.0]]), np.array([32601]))
    there = Places(np.array([[900.0, 0.0], [3.0, 4.0], [0.0, 0.0], [0.0, 9.0]]), np.array([32601] * 4))
    query = gallery[:1]
    near = recall_at_k(query, gallery, truth=torch.tensor([2]), nearby=Nearby(here, there, 5.0))
    assert near.ranks.tolist() == [2]  # behind tile 0 only: tile 1, 5 m away, is correct as well
    assert recall_at_k(query, gallery, truth=torch.tensor([2])).ranks.tolist() == [3]


def test_float32_northings_are_not_confused() -> None:
    """Six decimetres at a northing of six million metres: float32 would round them to half a metre."""
    positions = np.array([[500_000.0, 6_090_000.0], [500_000.0, 6_090_000.6]])
    spots = Places(positions, np.array([32755, 32755]))
    unit = torch.eye(2)
    assert recall_at_k(unit, unit, nearby=Nearby(spots, spots, 0.55)).correct.tolist() == [1, 1]
    assert recall_at_k(unit, unit, nearby=Nearby(spots, spots, 0.65)).correct.tolist() == [2, 2]


@pytest.mark.parametrize("noise", [0.0, 3e-8])
def test_a_collapsed_model_gets_zero(noise: float) -> None:
    """All descriptors alike but for float32 rounding: no luck, at a width where GEMM blocking could differ."""
    generator = torch.Generator().manual_seed(0)
    one = F.normalize(torch.rand(1, 2048, generator=generator))
    other = F.normalize(one + 0.5 * torch.rand(1, 2048, generator=generator))
    gallery = other.repeat(300, 1) * (1 + noise * torch.randn(300, 1, generator=generator))
    result = recall_at_k(one.repeat(300, 1), gallery, chunk=77, gallery_chunk=41)
    assert result.ranks.tolist() == [300] * 300
    assert result.recall == {"1": 0.0, "5": 0.0, "10": 0.0, "1%": 0.0}


def test_tiles_that_differ_by_more_than_rounding_are_distinguished() -> None:
    angles = torch.arange(100, dtype=torch.float64) * 0.003  # neighbours 9e-6 apart in squared distance
    unit = torch.stack([angles.cos(), angles.sin()], 1).float()
    assert recall_at_k(unit, unit).recall["1"] == 1.0


def test_both_directions_differ() -> None:
    street = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.2]]))
    satellite = F.normalize(torch.tensor([[1.0, 0.15], [0.0, 1.0]]))
    assert recall_at_k(street, satellite).ranks.tolist() == [1, 2]
    assert recall_at_k(satellite, street).ranks.tolist() == [2, 1]


@pytest.mark.parametrize(("m", "depth"), [(99, 1), (100, 1), (101, 2), (300, 3), (301, 4)])
def test_one_percent_is_rounded_up(m: int, depth: int) -> None:
    angle = torch.linspace(0, 1, m, dtype=torch.float64)
    gallery = torch.stack([angle.cos(), angle.sin()], 1)
    query = gallery[:1]
    assert recall_at_k(query, gallery, truth=torch.tensor([depth - 1])).recall["1%"] == 1.0
    assert recall_at_k(query, gallery, truth=torch.tensor([depth])).recall["1%"] == 0.0


def test_gallery_smaller_than_k() -> None:
    unit = torch.eye(3)
    result = recall_at_k(unit, unit.flip(0))
    assert result.recall["1"] == pytest.approx(1 / 3)
    assert result.recall["5"] == result.recall["10"] == 1.0


def test_a_query_without_any_correct_tile_is_never_found() -> None:
    unknown = Places(np.full((2, 2), np.nan), np.zeros(2, np.int64))
    gallery = Places(np.zeros((3, 2)), np.array([32601] * 3))
    result = recall_at_k(torch.eye(3)[:2], torch.eye(3), nearby=Nearby(unknown, gallery, 5.0))
    assert result.ranks.tolist() == [4, 4]
    assert set(result.recall.values()) == {0.0}


def test_as_dict_names_every_number() -> None:
    unit = torch.eye(4)
    tree = recall_at_k(unit, unit[[0, 1, 3, 2]]).as_dict()
    assert tree == {
        "recall_at_1": 0.5,
        "recall_at_5": 1.0,
        "recall_at_10": 1.0,
        "recall_at_1_percent": 0.5,
        "median_rank": 2.5,
        "queries": 4,
        "gallery": 4,
    }


@pytest.mark.parametrize("gallery_chunk", [1, 7, 23, 50])
def test_nearest_equals_a_full_sort(gallery_chunk: int) -> None:
    queries, gallery = descriptors_with_ties(9, 23, seed=2)
    distances, indices = nearest(queries, gallery, 6, gallery_chunk=gallery_chunk)
    full = (queries[:, None].double() - gallery[None].double()).square().sum(2)
    torch.testing.assert_close(distances, full.sort(1).values[:, :6])
    torch.testing.assert_close(full.gather(1, indices), distances)
    assert all(len(set(row)) == 6 for row in indices.tolist())
    assert nearest(queries, gallery, 40)[1].shape == (9, 23)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_descriptors_that_are_not_finite_are_named(bad: float) -> None:
    good, broken = torch.eye(4), torch.eye(4)
    broken[2, 1] = broken[3, 3] = bad
    with pytest.raises(DescriptorError, match=r"2 of 4 gallery descriptors hold NaN or infinity .first by row: 2, 3"):
        recall_at_k(good, broken)
    with pytest.raises(DescriptorError, match=r"2 of 4 street descriptors .* id: c, d"):
        require_finite(broken, "street", ["a", "b", "c", "d"])
    require_finite(good, "street")


def test_inconsistent_arguments_are_refused() -> None:
    unit = torch.eye(3)
    with pytest.raises(InputError, match="3 queries and a gallery of 2"):
        recall_at_k(unit, unit[:2])
    with pytest.raises(DescriptorError, match=r"\[3, 3\] and gallery \[3, 2\]"):
        recall_at_k(unit, unit[:, :2])
    with pytest.raises(InputError, match="one index below 2 for each"):
        recall_at_k(unit, unit[:2], truth=torch.tensor([0, 1, 2]))
    with pytest.raises(DescriptorError, match="nothing to rank"):
        recall_at_k(unit[:0], unit)
    with pytest.raises(InputError, match="expected one for each row"):
        recall_at_k(unit, unit, nearby=Nearby(places(5, 0), places(4, 0), 5.0))


@pytest.mark.parametrize("chunk", [1, 5, 100])
@pytest.mark.parametrize("gallery_chunk", [1, 4, 9, 100])
def test_the_nearest_tiles_are_the_first_ones_of_a_tie(chunk: int, gallery_chunk: int) -> None:
    queries, gallery = descriptors_with_ties(9, 40, seed=3)
    distances, tiles = nearest(queries, gallery, 6, chunk=chunk, gallery_chunk=gallery_chunk)
    table = (queries[:, None].double() - gallery[None].double()).square().sum(2)
    for q in range(9):
        rounded = [(round(float(value), 9), index) for index, value in enumerate(table[q])]
        assert tiles[q].tolist() == [index for _, index in sorted(rounded)[:6]]
    assert distances.tolist() == pytest.approx(table.gather(1, tiles), abs=1e-9)


def test_rows_in_a_file_rank_as_rows_in_memory() -> None:
    queries, gallery = descriptors_with_ties(23, 31, seed=4)
    stored = [StoredRows(*rows.shape) for rows in (queries, gallery)]
    for rows, store in zip((queries, gallery), stored, strict=True):
        for start in range(0, len(rows), 7):
            store[start : start + 7] = rows[start : start + 7]
        assert torch.equal(store[:], rows)
        assert torch.equal(store[5:5], rows[5:5])
        assert torch.equal(store[torch.tensor([3, 0, 3])], rows[[3, 0, 3]])
    near = Nearby(places(23, 1), places(31, 2), 1.25)
    options = {"truth": torch.arange(23), "nearby": near, "chunk": 6, "gallery_chunk": 5}
    one, other = recall_at_k(queries, gallery, **options), recall_at_k(*stored, **options)  # type: ignore[arg-type]
    assert torch.equal(one.ranks, other.ranks)
    assert one.recall == other.recall
    assert torch.equal(nearest(queries, gallery, 4)[1], nearest(*stored, 4, chunk=6)[1])
    stored[0][2:3] = torch.full((1, 5), math.nan)
    with pytest.raises(DescriptorError, match=r"1 of 23 query descriptors hold NaN or infinity .first by row: 2."):
        recall_at_k(*stored, truth=torch.zeros(23, dtype=torch.int64))


def test_rows_in_a_file_need_room_and_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rows = StoredRows(3, 2)
    assert len(list(tmp_path.iterdir())) == 1
    del rows
    assert not list(tmp_path.iterdir())

    def full(descriptor: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DiskFullError, match=r"no room for 152 bytes of descriptors: .*No space left"):
        StoredRows(3, 2)
    assert not list(tmp_path.iterdir())

"""Compressed search against exact search, on a few thousand vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from s2s_ray.index import vectors
from s2s_ray.index.vectors import CompressedVectors, FlatVectors

COUNT, DIMENSION, K = 6000, 96, 10


def unit(count: int, seed: int) -> NDArray[np.float32]:
    """Return unit vectors of a 24-dimensional sphere embedded in 96 dimensions, with some noise."""
    basis = np.random.default_rng(0).normal(size=(24, DIMENSION))
    generator = np.random.default_rng(seed)
    drawn = generator.normal(size=(count, 24)) @ basis + 0.3 * generator.normal(size=(count, DIMENSION))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def descriptors() -> NDArray[np.float32]:
    return unit(COUNT, 1)


@pytest.fixture(scope="module")
def compressed(descriptors: NDArray[np.float32]) -> CompressedVectors:
    return CompressedVectors.build(descriptors.astype(np.float16))


def recall(found: NDArray[np.int64], nearest: NDArray[np.int64]) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, nearest, strict=True)]))


@pytest.mark.slow
def test_nearly_all_nearest_tiles_are_found(descriptors: NDArray[np.float32], compressed: CompressedVectors) -> None:
    queries = unit(50, 2)
    right = FlatVectors.build(descriptors).search(queries, K, None)
    found = compressed.search(queries, K, None)
    assert recall(found[1], right[1]) > 0.95
    rows = np.array([5, COUNT - 1, 5])
    np.testing.assert_array_equal(compressed.rows(rows), descriptors[rows].astype(np.float16).astype(np.float32))
    same = found[1] == right[1]
    np.testing.assert_allclose(found[0][same], right[0][same], atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("exact_rows", [20_000, 100], ids=["exactly", "by candidates"])
def test_an_area_is_respected(
    descriptors: NDArray[np.float32], compressed: CompressedVectors, monkeypatch: pytest.MonkeyPatch, exact_rows: int
) -> None:
    monkeypatch.setattr(vectors, "_EXACT_ROWS", exact_rows)
    inside = np.flatnonzero(np.random.default_rng(3).random(COUNT) < 0.1)
    queries = unit(20, 4)
    found = compressed.search(queries, K, inside)[1]
    assert set(found.ravel()) <= set(inside)
    right = inside[np.argsort(-(queries @ descriptors[inside].T), axis=1)[:, :K]]
    assert recall(found, right) > 0.97
    np.testing.assert_array_equal(np.sort(compressed.search(queries, 3, inside[:3])[1]), np.tile(inside[:3], (20, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("area", [None, 10, 4], ids=["everywhere", "small area", "large area"])
def test_many_queries_at_once_find_what_each_alone_finds(
    compressed: CompressedVectors, monkeypatch: pytest.MonkeyPatch, area: int | None
) -> None:
    monkeypatch.setattr(vectors, "_EXACT_ROWS", 1000)
    monkeypatch.setattr(vectors, "_AT_ONCE", 16)
    monkeypatch.setattr(vectors, "_CHUNK", 500)
    inside = None if area is None else np.arange(0, COUNT, area)
    queries = unit(40, 9)
    similarities, rows = compressed.search(queries, 7, inside)
    alone = [compressed.search(query[None], 7, inside) for query in queries]
    np.testing.assert_allclose(similarities, np.concatenate([one[0] for one in alone]), atol=1e-5)
    assert np.mean(rows == np.concatenate([one[1] for one in alone])) > 0.99  # but for ties


@pytest.mark.parametrize("some", [None, np.array([2, 5, 7, 11, 12, 28])], ids=["all", "some"])
def test_an_exact_search_of_many_queries_is_that_of_few(
    monkeypatch: pytest.MonkeyPatch, some: NDArray[np.int64] | None
) -> None:
    monkeypatch.setattr(vectors, "_AT_ONCE", 9)
    index, queries = FlatVectors.build(unit(30, 7)), unit(25, 8)
    similarities, rows = index.search(queries, 5, some)
    for query, found, cosines in zip(queries, rows, similarities, strict=True):
        [few], [right] = index.search(query[None], 5, some)
        np.testing.assert_array_equal(found, right)
        np.testing.assert_allclose(cosines, few, atol=1e-6)


@pytest.mark.slow
def test_save_extend_and_load(compressed: CompressedVectors, tmp_path: Path) -> None:
    more = unit(40, 5)
    (tmp_path / "a").mkdir()
    compressed.save(tmp_path / "a")
    longer = CompressedVectors.load(tmp_path / "a").with_more(more)
    assert longer.shape == (COUNT + 40, DIMENSION)
    assert longer.search(more, 1, None)[1][:, 0].tolist() == list(range(COUNT, COUNT + 40))
    (tmp_path / "c").mkdir()
    longer.save(tmp_path / "c")
    loaded = CompressedVectors.load(tmp_path / "c")
    queries = unit(10, 6)
    np.testing.assert_array_equal(loaded.search(queries, K, None)[1], longer.search(queries, K, None)[1])


def test_small_galleries_are_exact() -> None:
    few = unit(30, 7)
    built = vectors.build(few)
    assert built.kind == "flat"
    similarities, rows = built.search(few[:4], 3, None)
    assert rows[:, 0].tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(similarities[:, 0], 1, atol=1e-5)
    extended = built.with_more(unit(2, 8))
    assert (built.shape, extended.shape) == ((30, DIMENSION), (32, DIMENSION))
    np.testing.assert_array_equal(extended.rows(np.array([31, 2])), np.stack([unit(2, 8)[1], few[2]]))


def test_products_with_all_and_with_some_rows(descriptors: NDArray[np.float32], compressed: CompressedVectors) -> None:
    """All rows are multiplied where FAISS keeps them; a large k is found by products, too."""
    flat, queries = FlatVectors.build(descriptors[:600]), unit(3, 11)
    for rows in (np.arange(600), np.arange(600)[::-1], np.array([5, 3, 3])):
        np.testing.assert_allclose(flat.products(rows, queries), descriptors[rows] @ queries.T, atol=1e-6)
        np.testing.assert_allclose(compressed.products(rows, queries), descriptors[rows] @ queries.T, atol=2e-3)
    similarities, found = flat.search(queries[:1], 300, None)
    right = np.sort(descriptors[:600] @ queries[0])[::-1][:300]
    np.testing.assert_allclose(similarities[0], right, atol=1e-6)
    np.testing.assert_allclose(descriptors[found[0]] @ queries[0], right, atol=1e-6)

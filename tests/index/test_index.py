"""The reference index against a brute-force search."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from s2s_ray import storage
from s2s_ray.errors import DamagedError, DescriptorError, InputError, ReferenceIndexError, StorageError
from s2s_ray.geo.prior import Box, Circle
from s2s_ray.geo.utm import to_utm
from s2s_ray.index import (
    ENTRIES_FILE,
    INDEX_FILE,
    INFO_FILE,
    IndexInfo,
    ReferenceIndex,
    read_info,
)
from s2s_ray.index.build import build_index
from s2s_ray.model.s2s import S2S
from tests.support.models import tiny_model

TINY = tiny_model(width=72)


def unit(count: int, dimension: int, seed: int = 0) -> Any:
    vectors = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def info(count: int, dimension: int = 6, **changes: Any) -> IndexInfo:
    fields = {"checkpoint": "c" * 64, "dataset": "elsewhere", "dataset_digest": "d", "split": "test", **changes}
    return IndexInfo(dimension=dimension, count=count, **fields)


def entries(count: int) -> pa.Table:
    positions = [None if row == 1 else 50.0 + row for row in range(count)]
    zones = pa.array([None if row == 1 else 32632 for row in range(count)], pa.int32())
    floats = pa.array(positions, pa.float64())
    return pa.table(
        {
            "id": [f"tile-{row}" for row in range(count)],
            "latitude": floats,
            "longitude": floats,
            "easting": floats,
            "northing": floats,
            "zone": zones,
        }
    )


def index(count: int = 9, dimension: int = 6) -> ReferenceIndex:
    return ReferenceIndex.build(info(count, dimension), unit(count, dimension), entries(count))


def test_a_tile_with_utm_coordinates_alone_has_a_position() -> None:
    table = entries(3).to_pydict()
    easting, northing = to_utm(48.1, 11.5, 32632)
    table |= {"latitude": [None, None, 52.0], "longitude": [None, None, 52.0]}
    table |= {"easting": [float(easting), None, None], "northing": [float(northing), None, None]}
    table["zone"] = [32632, None, None]
    built = ReferenceIndex.build(info(3), unit(3, 6), pa.table(table, schema=entries(3).schema))
    np.testing.assert_allclose(built.positions, [[48.1, 11.5], [np.nan, np.nan], [52.0, 52.0]], atol=1e-9)
    [[match]] = built.search(unit(3, 6)[:1], 1, Circle(48.1, 11.5, 1.0))
    assert (match.id, match.latitude, match.longitude) == ("tile-0", pytest.approx(48.1), pytest.approx(11.5))


@pytest.mark.parametrize("k", [1, 4, 9])
def test_search_is_the_sorted_list_of_squared_distances(k: int) -> None:
    queries, tiles = unit(5, 6, seed=1), unit(9, 6)
    for query, matches in zip(queries, index().search(queries, k), strict=True):
        distances = [float(((query.astype(float) - tile.astype(float)) ** 2).sum()) for tile in tiles]
        nearest = sorted(range(9), key=lambda row: distances[row])[:k]
        assert [match.id for match in matches] == [f"tile-{row}" for row in nearest]
        assert [match.rank for match in matches] == list(range(1, k + 1))
        np.testing.assert_allclose([m.descriptor_distance for m in matches], [distances[r] for r in nearest], atol=1e-5)


def test_a_tile_finds_itself_at_distance_zero_and_never_below() -> None:
    for row, matches in enumerate(index().search(unit(9, 6), 1)):
        assert matches[0].id == f"tile-{row}"
        assert 0 <= matches[0].descriptor_distance < 1e-5


def test_equal_distances_keep_the_order_of_the_data_set() -> None:
    same = ReferenceIndex.build(info(4), np.repeat(unit(1, 6), 4, axis=0), entries(4))
    assert [match.id for match in same.search(unit(1, 6), 4)[0]] == [f"tile-{row}" for row in range(4)]


@pytest.mark.parametrize("prior", [None, Box(52, 52, 55, 55), Box(0, 0, 1, 1)], ids=["all", "four tiles", "none"])
def test_rows_of_many_queries_are_those_of_a_brute_force(prior: Box | None) -> None:
    queries, tiles, gallery = unit(30, 6, seed=1), unit(9, 6), index()
    allowed = [row for row in range(9) if prior is None or (row != 1 and prior.west <= 50 + row <= prior.east)]
    similarities, rows = gallery.search_rows(queries, 6, prior)
    assert (similarities.dtype, rows.dtype) == (np.float32, np.int64)
    assert similarities.shape == rows.shape == (30, min(6, len(allowed)))
    for query, found, cosines in zip(queries, rows, similarities, strict=True):
        right = sorted(allowed, key=lambda row: -float(query.astype(float) @ tiles[row].astype(float)))[:6]
        assert found.tolist() == right
        np.testing.assert_allclose(cosines, tiles[right] @ query, atol=1e-6)


def test_rows_become_matches_positions_and_descriptors() -> None:
    gallery, queries = index(), unit(2, 6, seed=1)
    similarities, rows = gallery.search_rows(queries, 4)
    matches = [gallery.matches(*one) for one in zip(rows, similarities, strict=True)]
    assert matches == gallery.search(queries, 4)
    np.testing.assert_array_equal(gallery.descriptors(rows[0]), unit(9, 6)[rows[0]])
    assert gallery.positions.shape == (9, 2)
    assert np.isnan(gallery.positions[1]).all()
    for match, row in zip(matches[0], rows[0], strict=True):
        assert match.latitude is None if row == 1 else gallery.positions[row].tolist() == [match.latitude] * 2
    assert gallery.matches(rows[0][:0], similarities[0][:0]) == []
    assert len(gallery.search_rows(queries[:0], 4)[1]) == 0


def test_unknown_positions_are_none() -> None:
    [matches] = index().search(unit(9, 6)[1:2], 1)
    assert matches[0][1:7] == ("tile-1", None, None, None, None, None)
    [matches] = index().search(unit(9, 6)[2:3], 1)
    assert matches[0][1:7] == ("tile-2", 52.0, 52.0, 52.0, 52.0, 32632)


@pytest.mark.parametrize("k", [0, -1, 10])
def test_k_out_of_range(k: int) -> None:
    with pytest.raises(InputError, match=rf"k={k}: expected 1 to 9"):
        index().search(unit(1, 6), k)


def test_queries_that_do_not_fit() -> None:
    with pytest.raises(DescriptorError, match=r"shape \(2, 5\): this index needs B x 6"):
        index().search(unit(2, 5), 1)
    with pytest.raises(DescriptorError, match=r"shape \(6,\)"):
        index().search(unit(1, 6)[0], 1)
    with pytest.raises(DescriptorError, match="not finite"):
        index().search(np.full((1, 6), np.nan, np.float32), 1)


def test_another_model_or_checkpoint_is_refused() -> None:
    info(9).require(6)
    info(9).require(6, "c" * 64)
    with pytest.raises(ReferenceIndexError, match="descriptors of 6 numbers, the model makes 16"):
        info(9).require(16)
    with pytest.raises(ReferenceIndexError, match="checkpoint cccccccc, the model is checkpoint 00000000"):
        info(9).require(6, "0" * 64)


def test_a_loaded_index_gives_the_same_matches(tmp_path: Path) -> None:
    uri = str(tmp_path / "index")
    index().save(uri)
    loaded = ReferenceIndex.load(uri)
    assert loaded.info == index().info == read_info(uri)
    assert loaded.search(unit(3, 6, seed=2), 5) == index().search(unit(3, 6, seed=2), 5)


def test_damage_is_named(tmp_path: Path) -> None:
    uri = str(tmp_path / "index")
    with pytest.raises(ReferenceIndexError, match="holds no complete index"):
        read_info(uri)
    index().save(uri)
    (tmp_path / "index" / INDEX_FILE).write_bytes(b"x")
    with pytest.raises(StorageError, match=INDEX_FILE):
        ReferenceIndex.load(uri)


def test_a_newer_format_and_contradicting_files_are_refused(tmp_path: Path) -> None:
    def republish(changes: dict[str, Any]) -> str:
        index().save(str(tmp_path / "index"))
        path = tmp_path / "index" / INFO_FILE
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        storage.publish(tmp_path / "index", str(tmp_path / "again"), replace=True)
        return str(tmp_path / "again")

    with pytest.raises(
        ReferenceIndexError, match=rf"{INFO_FILE} has format 2, this program reads 1 and earlier: upgrade"
    ):
        ReferenceIndex.load(republish({"format": 2}))
    with pytest.raises(
        DamagedError,
        match=rf"{INFO_FILE} is damaged: it is not a description of an index that any version writes \(count: ",
    ):
        ReferenceIndex.load(republish({"count": "many"}))
    with pytest.raises(
        ReferenceIndexError, match=rf"9 vectors of 6 numbers .* {ENTRIES_FILE} has 9 rows.* says 8 of 6"
    ):
        ReferenceIndex.load(republish({"count": 8}))


def test_build_embeds_every_tile_in_order_whatever_the_batch() -> None:
    torch.manual_seed(0)
    model = S2S(TINY).eval()
    polar = torch.randint(0, 256, (5, 3, 32, 72), dtype=torch.uint8)
    dataset: Any = Tiles(polar)
    built = build_index(model, dataset, split="test", batch=2, checkpoint_fingerprint="f" * 64)
    with torch.inference_mode():
        queries = model.embed_satellite(polar).numpy()
    found = built.search(queries, 1)
    assert [matches[0].id for matches in found] == dataset.ids
    assert max(matches[0].descriptor_distance for matches in found) < 1e-5
    assert [matches[0].latitude for matches in found] == [40.0, 41.0, None, 43.0, 44.0]
    assert [matches[0].zone for matches in found] == [32630, 32630, None, 32630, 32630]
    assert (built.info.checkpoint, built.info.dataset, built.info.split) == ("f" * 64, "memory", "test")
    assert (built.info.dataset_digest, len(built), built.info.dimension) == ("digest", 5, TINY.descriptor_size)


def test_only_new_tiles_are_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = S2S(TINY).eval()
    polar = torch.randint(0, 256, (5, 3, 32, 72), dtype=torch.uint8)
    first: Any = Tiles(polar[:3])
    everything: Any = Tiles(polar)
    checkpoint = {"checkpoint_fingerprint": "f" * 64}
    whole = build_index(model, everything, **checkpoint)
    shorter = build_index(model, first, **checkpoint)
    embedded: list[int] = []
    embed = model.embed_satellite
    monkeypatch.setattr(model, "embed_satellite", lambda views: embedded.append(len(views)) or embed(views))
    longer = build_index(model, everything, batch=64, extends=shorter, **checkpoint)
    assert embedded == [2]
    queries = unit(4, TINY.descriptor_size)
    assert [[match.id for match in one] for one in longer.search(queries, 5)] == [
        [match.id for match in one] for one in whole.search(queries, 5)
    ]
    assert len(build_index(model, everything, extends=longer, **checkpoint)) == 5
    with pytest.raises(ReferenceIndexError, match="built with checkpoint ffffffff, the model is checkpoint eeeeeeee"):
        build_index(model, everything, extends=shorter, checkpoint_fingerprint="e" * 64)


def test_an_empty_split_is_refused() -> None:
    empty: Any = Tiles(torch.empty((0, 3, 32, 72), dtype=torch.uint8))
    with pytest.raises(ReferenceIndexError, match=r"data set memory has no pairs to index \(split: val\)"):
        build_index(S2S(TINY).eval(), empty, split="val", checkpoint_fingerprint="f")


class Tiles:
    """A data set in memory, with the attributes of `PairDataset` that indexing reads."""

    uri = "memory"
    info = SimpleNamespace(digest="digest")

    def __init__(self, polar: torch.Tensor) -> None:
        self._polar = polar
        count = len(polar)
        self.ids = [f"t{row}" for row in range(count)]
        self.latlon = np.stack([np.arange(40.0, 40 + count), np.arange(count)], axis=1)
        self.positions = np.zeros((count, 2))
        self.zones = np.full(count, 32630, np.int64)
        if count:
            self.latlon[2] = np.nan
            self.zones[2] = 0

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> SimpleNamespace:
        return SimpleNamespace(polar=self._polar[row])


def test_only_tiles_inside_the_prior_are_found() -> None:
    """Tile r lies at 50 + r degrees; tile 1 nowhere."""
    box = Box(0, 51.5, 90, 55.5)
    for k in (1, 3, 9):
        found = {match.id for match in index().search(unit(1, 6), k, box)[0]}
        assert found <= {f"tile-{row}" for row in (2, 3, 4, 5)}
        assert len(found) == min(k, 4)
    [matches] = index().search(unit(1, 6), 9, box)
    everywhere = [match for match in index().search(unit(1, 6), 9)[0] if match.id in {one.id for one in matches}]
    assert [match.id for match in matches] == [match.id for match in everywhere]
    assert index().search(unit(2, 6), 3, Box(0, 0, 1, 1)) == [[], []]


def test_tiles_are_added_without_building_again(tmp_path: Path) -> None:
    more = entries(2).set_column(0, "id", pa.array(["new-0", "new-1"]))
    longer = index().with_more(unit(2, 6, seed=9), more)
    assert (len(index()), len(longer)) == (9, 11)
    assert longer.search(unit(2, 6, seed=9), 1)[1][0].id == "new-1"
    longer.save(str(tmp_path / "longer"))
    assert ReferenceIndex.load(str(tmp_path / "longer")).search(unit(1, 6), 4) == longer.search(unit(1, 6), 4)
    with pytest.raises(ReferenceIndexError, match="1 tiles are in the index already: tile-1"):
        longer.with_more(unit(1, 6), entries(2).slice(1))


def test_an_index_of_version_0_1_0_is_written_as_it_was(tmp_path: Path) -> None:
    [written] = (Path(__file__).parents[1] / "fixtures" / "written_by_0.1.0").glob("registry/city/releases/*/index")
    ReferenceIndex.load(str(written)).save(str(tmp_path / "again"))
    for name in (INFO_FILE, INDEX_FILE, ENTRIES_FILE):
        assert (tmp_path / "again" / name).read_bytes() == (written / name).read_bytes()

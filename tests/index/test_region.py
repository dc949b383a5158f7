"""The tiles of a region against a direct evaluation of what imagery shows, and the index that is built of them."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from s2s_ray import storage
from s2s_ray.config import ManifestSourceConfig, SyntheticSourceConfig
from s2s_ray.data.schema import TileSize
from s2s_ray.errors import ConfigError, PriorError, ReferenceIndexError, UnreadableImageError
from s2s_ray.geo.images import Pixels, Seen
from s2s_ray.geo.lattice import Lattice
from s2s_ray.geo.offsets import east_north, moved
from s2s_ray.geo.prior import Box
from s2s_ray.geo.region import Region
from s2s_ray.geo.utm import to_utm, utm_zone
from s2s_ray.geo.views import ViewGeometry
from s2s_ray.index import ReferenceIndex, read_info
from s2s_ray.index import region as module
from s2s_ray.index.build import build
from s2s_ray.index.forecast import forecast
from s2s_ray.index.info import IndexInfo, RegionInfo
from s2s_ray.index.parts import Build, PartWriter, build_in_parts
from s2s_ray.index.region import RegionTiles, expected_tiles, read_region, tile_size
from s2s_ray.model.checkpoint import save_model
from s2s_ray.model.checkpoint_meta import fingerprint
from s2s_ray.model.s2s import S2S
from tests.support.models import tiny_model

SOURCE = ManifestSourceConfig(geotiff="painted.tif")
VIEWS = ViewGeometry(32, 40)
SIZE = TileSize(24.0, 16)
TINY = tiny_model()
WAVES = ((40.0, 0.0), (0.0, 50.0), (35.0, 45.0))
"""Metres from crest to crest in each colour, to the north and to the east; 0: no waves in this direction."""


class Painted:
    """Imagery of smooth waves around an origin, turned by some degrees, without what is east of an edge."""

    def __init__(self, origin: tuple[float, float], edge_m: float = math.inf, turned: float = 0.0) -> None:
        self.origin, self.edge_m, self.reads = origin, edge_m, 0
        self.turned = math.radians(turned)
        self.bounds: Box | None = None

    def colours(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        east, north = east_north(*self.origin, *positions.T).T
        phases = [sum(metres / wave for metres, wave in zip((north, east), one, strict=True) if wave) for one in WAVES]
        return np.stack([127 + 100 * np.sin(2 * np.pi * phase) for phase in phases], axis=-1)

    def points(self, latitude: float, longitude: float, metres: float, px: int) -> NDArray[np.float64]:
        """Return latitudes and longitudes of the pixels of a tile, px * px 2."""
        steps = ((np.arange(px) + 0.5) / px - 0.5) * metres
        across, along = np.meshgrid(steps, -steps)
        east = across * math.cos(self.turned) + along * math.sin(self.turned)
        north = along * math.cos(self.turned) - across * math.sin(self.turned)
        return np.stack(moved(latitude, longitude, east, north), axis=-1).reshape(-1, 2)

    def cut_seen(self, latitude: float, longitude: float, metres: float, px: int) -> tuple[Pixels, Seen]:
        self.reads += 1
        points = self.points(latitude, longitude, metres, px)
        east = east_north(*self.origin, *points.T)[:, 0]
        pixels = self.colours(points).round().astype(np.uint8).reshape(px, px, 3)
        return pixels, (east <= self.edge_m).reshape(px, px)

    def covers(self, positions: NDArray[np.float64]) -> NDArray[np.bool_]:
        covered: NDArray[np.bool_] = east_north(*self.origin, *positions.T)[:, 0] <= self.edge_m
        return covered

    def offsets(self, latitude: float, longitude: float, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        east, north = east_north(latitude, longitude, *positions.T).T
        cosine, sine = math.cos(self.turned), math.sin(self.turned)
        return np.stack([east * cosine - north * sine, north * cosine + east * sine], axis=-1)


def square(latitude: float, longitude: float, side_m: float) -> Region:
    """Return a square region around a position."""
    latitudes, longitudes = moved(latitude, longitude, [-side_m / 2, side_m / 2], [-side_m / 2, side_m / 2])
    return Region.parse(",".join(str(edge) for edge in (longitudes[0], latitudes[0], longitudes[1], latitudes[1])))


@pytest.fixture
def paint(monkeypatch: pytest.MonkeyPatch) -> Any:
    def painted(*arguments: Any, **more: Any) -> Painted:
        imagery = Painted(*arguments, **more)
        monkeypatch.setattr(module, "open_imagery", lambda _config: imagery)
        return imagery

    return painted


@pytest.mark.parametrize(
    ("latitude", "longitude", "every_m", "turned"),
    [
        (48.1, 11.6, 6.0, 0.0),
        (-35.3, 149.1, 7.3, -1.2),
        (64.2, -21.9, 12.0, 0.0),
        (48.1, 11.6, 40.0, 0.0),
        (-16.5, 180.0, 8.0, 0.0),
        (0.0, 0.0, 8.0, 3.0),
    ],
    ids=["north", "south, another north", "far north", "apart", "date line", "equator, another north"],
)
def test_a_tile_shows_what_is_around_its_point(
    paint: Any, latitude: float, longitude: float, every_m: float, turned: float
) -> None:
    imagery = paint((latitude, longitude), turned=turned)
    tiles = RegionTiles(SOURCE, square(latitude, longitude, 170.0), every_m, SIZE, VIEWS)
    assert len(tiles.ids) == len(set(tiles.ids)) == pytest.approx((170 / every_m) ** 2, rel=0.4)
    table = tiles.entries(range(len(tiles.ids))).to_pydict()
    positions = np.stack([table["latitude"], table["longitude"]], axis=-1)
    steepest = 2 * np.pi * 100 * max(math.hypot(*(1 / wave for wave in one if wave)) for one in WAVES)
    half_a_pixel = math.sqrt(2) * SIZE.metres / SIZE.px / 2 * steepest + 1
    for row in np.random.default_rng(0).permutation(len(positions))[:12]:
        shown = tiles.tile(row).reshape(-1, 3)
        right = imagery.colours(imagery.points(*positions[row], *SIZE))
        assert np.abs(shown - right).max() <= half_a_pixel


def test_the_imagery_is_read_in_blocks(paint: Any) -> None:
    imagery = paint((48.1, 11.6))
    tiles = RegionTiles(SOURCE, square(48.1, 11.6, 170.0), 10.0, SIZE, VIEWS)
    for row in range(len(tiles.ids)):
        tiles.tile(row)
    assert imagery.reads == len(tiles.blocks()) <= 9
    assert [row for block in tiles.blocks() for row in block] == list(range(len(tiles.ids)))
    assert len(tiles.ids) > 250
    apart = RegionTiles(SOURCE, square(48.1, 11.6, 170.0), 20.0, SIZE, VIEWS)
    assert len(apart.blocks()) == len(apart.ids)


def test_tiles_have_the_same_ids_and_pixels_in_every_region(paint: Any) -> None:
    paint((48.1, 11.6))
    large = RegionTiles(SOURCE, square(48.1, 11.6, 160.0), 6.0, SIZE, VIEWS)
    triangle = [[11.5996, 48.0996], [11.6009, 48.0998], [11.6, 48.1008], [11.5996, 48.0996]]
    small = RegionTiles(SOURCE, Region.of_geojson({"type": "Polygon", "coordinates": [triangle]}), 6.0, SIZE, VIEWS)
    assert set(small.ids) < set(large.ids)
    copy = pickle.loads(pickle.dumps(small))
    assert (copy.ids, copy.fingerprint) == (small.ids, small.fingerprint) != (large.ids, large.fingerprint)
    for row in np.random.default_rng(0).permutation(len(small.ids))[:8].tolist():
        other = large.ids.index(small.ids[row])
        np.testing.assert_array_equal(small.tile(row), large.tile(other))
        np.testing.assert_array_equal(copy.tile(row), small.tile(row))


def test_ids_and_positions_are_those_of_the_lattice(paint: Any) -> None:
    paint((48.1, 12.0))
    tiles = RegionTiles(SOURCE, square(48.1, 12.0, 60.0), 10.0, SIZE, VIEWS)  # zones 32 and 33 meet there
    rows = list(range(len(tiles.ids)))[::-1]
    table = tiles.entries(rows).to_pydict()
    zones = set()
    for k, row in enumerate(rows):
        spacing, north, east = tiles.ids[row].split("_")
        [(latitude, longitude)] = Lattice(10.0).positions(np.array([[int(north), int(east)]]))
        assert (spacing, table["id"][k]) == ("10m", tiles.ids[row])
        assert (table["latitude"][k], table["longitude"][k]) == (latitude, longitude)
        easting, northing = to_utm(latitude, longitude, utm_zone(latitude, longitude))
        assert table["zone"][k] == utm_zone(latitude, longitude)
        assert (table["easting"][k], table["northing"][k]) == pytest.approx((float(easting), float(northing)))
        zones.add(table["zone"][k])
    assert zones == {32632, 32633}
    paint((86.0, 12.0))
    polar = RegionTiles(SOURCE, square(86.0, 12.0, 60.0), 20.0, SIZE, VIEWS)
    table = polar.entries(range(len(polar.ids))).to_pydict()
    assert {*table["zone"], *table["easting"], *table["northing"]} == {None}


def test_points_without_imagery_are_left_out(paint: Any) -> None:
    paint((48.1, 11.6), edge_m=20.0)
    region = square(48.1, 11.6, 100.0)
    tiles = RegionTiles(SOURCE, region, 5.0, SIZE, VIEWS)
    assert len(tiles.ids) + tiles.outside == len(region.grid(5.0))
    assert 0.2 < tiles.outside / len(region.grid(5.0)) < 0.4
    east = [east_north(48.1, 11.6, *one)[0, 0] for one in _positions(tiles)]
    for row, metres in enumerate(east):
        if metres > 20 - SIZE.metres / 2 + 1:
            with pytest.raises(
                UnreadableImageError, match=r"there is no imagery of \d+% of the tile in .*painted\.tif"
            ):
                tiles.tile(row)
        elif metres < 20 - SIZE.metres / 2 - 1:
            tiles.tile(row)


def test_a_region_may_be_much_larger_than_the_imagery(paint: Any) -> None:
    imagery = paint((48.1, 11.6), edge_m=20.0)
    whole = RegionTiles(SOURCE, square(48.1, 11.6, 100.0), 5.0, SIZE, VIEWS)
    imagery.bounds = square(48.1, 11.6, 100.0).bounds
    country = Region.parse("5,47,15,55")
    tiles = RegionTiles(SOURCE, country, 5.0, SIZE, VIEWS)  # of 26 thousand million points
    assert tiles.ids == whole.ids
    assert tiles.outside == pytest.approx(country.area_m2 / 25, rel=1e-3)
    assert expected_tiles(imagery, country, 5.0) == pytest.approx(400, rel=1e-3)
    assert expected_tiles(imagery, square(48.1, 11.6, 10.0), 5.0) == pytest.approx(4, rel=1e-3)
    with pytest.raises(PriorError, match="region 5,50,15,55: there is no imagery of it"):
        RegionTiles(SOURCE, Region.parse("5,50,15,55"), 5.0, SIZE, VIEWS)


def _positions(tiles: RegionTiles) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    table = tiles.entries(range(len(tiles.ids))).to_pydict()
    for latitude, longitude in zip(table["latitude"], table["longitude"], strict=True):
        yield np.array([latitude]), np.array([longitude])


def test_a_region_without_imagery_or_points_is_refused(paint: Any) -> None:
    paint((48.1, 11.6), edge_m=-500.0)
    with pytest.raises(PriorError, match=r"region 11\.59.*: there is no imagery of it in .*painted\.tif"):
        RegionTiles(SOURCE, square(48.1, 11.6, 100.0), 5.0, SIZE, VIEWS)
    with pytest.raises(PriorError, match=r"no point of a lattice of 5000 m lies in it"):
        RegionTiles(SOURCE, square(48.1, 11.6, 100.0), 5000.0, SIZE, VIEWS)
    for every_m in (0.0, -8.0, math.nan):
        with pytest.raises(PriorError, match=f"every={every_m:g}"):
            RegionTiles(SOURCE, square(48.1, 11.6, 100.0), every_m, SIZE, VIEWS)


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    torch.manual_seed(0)
    save_model(S2S(TINY).eval(), {"run": "r", "step": 1, "metrics": {}}, tmp_path / "local")
    storage.publish(tmp_path / "local", str(tmp_path / "checkpoint"))
    return str(tmp_path / "checkpoint")


def model() -> S2S:
    torch.manual_seed(0)
    return S2S(TINY).eval()


def content(folder: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if not path.name.startswith(".")}


def test_an_index_in_parts_has_the_same_bytes_as_one_at_once(paint: Any, checkpoint: str, tmp_path: Path) -> None:
    paint((48.1, 11.6), edge_m=30.0)
    tiles = RegionTiles(SOURCE, square(48.1, 11.6, 80.0), 8.0, SIZE, VIEWS)
    whole, faults = build(model(), tiles, checkpoint_fingerprint=fingerprint(checkpoint), batch=4)
    whole.save(str(tmp_path / "whole"))
    planned = Build(checkpoint, pickle.loads(pickle.dumps(tiles)), str(tmp_path / "parts"), batch=4, part=40)
    index, left_out = build_in_parts(planned, parallel=False)
    assert len(index) + len(left_out) == len(tiles.ids)
    assert left_out == faults != []
    assert content(tmp_path / "parts") == content(tmp_path / "whole")

    loaded = ReferenceIndex.load(str(tmp_path / "parts"))
    found = loaded.info.region
    assert found is not None
    assert (found.every_m, found.tile_m, found.region) == (8.0, 24.0, tiles.region.region)
    row = 17
    [[match]] = loaded.search(model().embed_satellite(tiles.polar(row)[None]).detach().numpy(), 1)
    assert match.id == tiles.ids[row]
    assert loaded.pictures is not None
    assert loaded.pictures.examples() == []
    assert loaded.pictures.thumbnail(len(loaded) - 1) is not None
    assert loaded.pictures.thumbnail(len(loaded)) is None


def test_an_index_is_extended_by_another_region(
    paint: Any, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint((48.1, 11.6))
    west = RegionTiles(SOURCE, square(48.1, 11.6, 60.0), 6.0, SIZE, VIEWS)
    east = RegionTiles(SOURCE, square(48.1, 11.6004, 60.0), 6.0, SIZE, VIEWS)
    common, every = set(west.ids) & set(east.ids), set(west.ids) | set(east.ids)
    assert common < set(west.ids)
    first, _ = build_in_parts(Build(checkpoint, west, str(tmp_path / "west"), batch=4), parallel=False)
    counts = []
    write = PartWriter.__call__

    def counted(self: PartWriter, row: dict[str, Any]) -> dict[str, Any]:
        done = write(self, row)
        counts.append(done["tiles"])
        return done

    monkeypatch.setattr(PartWriter, "__call__", counted)
    planned = Build(checkpoint, east, str(tmp_path / "both"), batch=4, extends=str(tmp_path / "west"))
    both, _ = build_in_parts(planned, parallel=False)
    assert sum(counts) == len(east.ids) - len(common) == len(both) - len(first)
    assert both.ids() == every
    found = read_info(str(tmp_path / "both")).region
    assert found is not None
    assert found.region == west.region.region.joined(east.region.region)
    assert found.bounds == pytest.approx((*west.region.bounds[:2], *east.region.bounds[2:]), abs=1e-6)
    for every_m, size, message in (
        (5.0, SIZE, "has a tile every 6 m, the region to add every 5 m"),
        (6.0, TileSize(30.0, 16), "has a tile of 24 m, the region to add of 30 m"),
    ):
        other = RegionTiles(SOURCE, square(48.1, 11.6, 60.0), every_m, size, VIEWS)
        misfit = Build(checkpoint, other, planned.out, extends=str(tmp_path / "west"))
        with pytest.raises(ReferenceIndexError, match=message):
            build_in_parts(misfit, parallel=False)


def test_the_region_is_recorded_only_if_there_is_one() -> None:
    described = IndexInfo(dimension=4, count=1, checkpoint="c", dataset="d", dataset_digest="x", split="test")
    assert "region" not in described.tree()
    assert described.with_region(None) is None
    area = RegionInfo.of(Region.parse("179,-17,-179,-16"), 8.0, 64.0)
    assert area.bounds == (179, -17, -179, -16)
    with pytest.raises(ReferenceIndexError, match="holds the tiles of d, not those of a region"):
        described.with_region(area)
    recorded = described.model_copy(update={"region": area})
    read = IndexInfo.parse(json.loads(recorded.to_bytes()), "index.json")
    assert read == recorded
    with pytest.raises(ReferenceIndexError, match="holds the tiles of a region, 8 m apart"):
        read.with_region(None)


@pytest.mark.parametrize("known", [0, 500])
def test_the_forecast_is_about_right(paint: Any, checkpoint: str, tmp_path: Path, known: int) -> None:
    paint((48.1, 11.6))
    tiles = RegionTiles(SOURCE, square(48.1, 11.6, 70.0), 6.0, SIZE, VIEWS)
    expected = forecast(model(), tiles, range(len(tiles.ids)), known=known, batch=8, device="cpu")
    assert 0 < expected.seconds < 120
    if not known:
        build(model(), tiles, checkpoint_fingerprint="c")[0].save(str(tmp_path / "index"))
        stored = sum(map(len, content(tmp_path / "index").values()))
        assert stored / 2 < expected.bytes < 2 * stored
    assert str(expected._replace(seconds=7500.0, bytes=3_100_000_000)) == "about 2 h in one process, about 3 GB"
    assert forecast(model(), tiles, [], known=known, batch=8, device="cpu").seconds == 0


@pytest.mark.parametrize(
    ("given", "trained", "size", "warned"),
    [
        ({"geotiff": "a.tif"}, {"tile_m": 64.0, "tile_px": 128}, (64.0, 128), False),
        ({"geotiff": "a.tif", "tile_m": 50.0}, {"tile_m": 64.0, "tile_px": 128}, (50.0, 128), True),
        ({"geotiff": "a.tif", "tile_m": 64.0, "tile_px": 256}, {"tile_m": 64.0, "tile_px": 128}, (64.0, 256), False),
        ({"geotiff": "a.tif", "tile_m": 50.0}, {}, (50.0, 512), False),
        ({"geotiff": "a.tif", "tile_m": 50.0}, {"tile_m": None, "tile_px": 300}, (50.0, 300), False),
    ],
)
def test_tiles_have_the_size_of_those_in_training(
    given: dict[str, Any],
    trained: dict[str, Any],
    size: tuple[float, int],
    warned: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert tile_size(ManifestSourceConfig(**given), {"config": {"source": trained}}) == size
    assert ("tiles of 64 m" in caplog.text) == warned
    assert tile_size(SyntheticSourceConfig(), {"config": {"source": trained}})[0] == 64.0


def test_an_unknown_size_of_tiles_is_refused() -> None:
    synthetic = SyntheticSourceConfig().model_dump(mode="json")
    other = {"kind": "manifest", "tile_m": 64.0, "tile_px": 128}
    for meta in (
        {},
        {"config": None},
        {"config": {"source": {"kind": "cvusa"}}},
        {"config": {"source": synthetic}},
        {"config": {"source": other, "augmentation": {}}, "dataset": {"uri": "data/cvusa"}},
    ):
        with pytest.raises(ConfigError, match=r"source\.tile_m is missing"):
            tile_size(ManifestSourceConfig(geotiff="a.tif"), meta)


def test_a_region_is_numbers_or_a_file(tmp_path: Path) -> None:
    box = read_region("11.5,48.1,11.6,48.2")
    path = tmp_path / "region, with a comma.geojson"
    path.write_text("\ufeff" + json.dumps({"type": "Feature", "properties": {}, "geometry": box.geojson()}))
    assert read_region(str(path)) == box


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("11.5,48.1,11.6", "region='11.5,48.1,11.6': expected WEST,SOUTH,EAST,NORTH"),
        (" ", "region='': expected WEST,SOUTH,EAST,NORTH in degrees, or GeoJSON"),
        ("1,2,3,x", "region=1,2,3,x: expected WEST,SOUTH,EAST,NORTH in degrees or a GeoJSON file"),
        ("nothing.geojson", "there is no such file"),
        ("text.geojson", "the file is not JSON"),
        ("bytes.geojson", "the file is not JSON"),
        ("point.geojson", "region.type='Point': expected a Polygon"),
        ("1,3,2,nan", "latitude nan"),
        ("1,3,2,1", "south=3 is above north=1"),
    ],
)
def test_wrong_regions_are_named(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.geojson").write_text("WEST")
    Path("bytes.geojson").write_bytes(b"\xff\xfe\x00\xd8")
    Path("point.geojson").write_text('{"type": "Point", "coordinates": [1, 2]}')
    with pytest.raises(PriorError) as raised:
        read_region(text)
    assert message in str(raised.value)

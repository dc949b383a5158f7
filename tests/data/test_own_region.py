"""Satellite tiles cut from map tiles and GeoTIFFs around positions, and panoramas of a part of the horizon."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pyproj import Geod

from s2s_ray.config import (
    Config,
    ManifestSourceConfig,
)
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.prepare import prepare
from s2s_ray.data.schema import Pair, Record
from s2s_ray.data.shard import prepare_pair
from s2s_ray.data.sources.geotiff import GeoTiff
from s2s_ray.data.sources.manifest import (
    ManifestSource,
)
from s2s_ray.data.sources.map_tiles import MapTiles
from s2s_ray.data.verify import verify
from s2s_ray.errors import ConfigError, DatasetError, ManifestError, UnreadableImageError
from s2s_ray.geo.utm import to_utm
from s2s_ray.geo.views import ViewGeometry

LATITUDE, LONGITUDE = -35.3, 149.1
MARKS = ((0.0, 40.0), (90.0, 40.0), (200.0, 45.0))  # bearing and metres of a mark in each channel
GEOD = Geod(ellps="WGS84")


def assert_marks(tile: NDArray[np.uint8], metres: float) -> None:
    """Each channel's mark is at its bearing and distance from the centre, to a pixel and a half."""
    px = tile.shape[0]
    assert tile.shape == (px, px, 3)
    for channel, (bearing, distance) in enumerate(MARKS):
        rows, columns = np.nonzero(tile[..., channel] > 100)
        assert len(rows), channel
        step = distance * px / metres
        assert rows.mean() + 0.5 == pytest.approx(px / 2 - step * math.cos(math.radians(bearing)), abs=1.5)
        assert columns.mean() + 0.5 == pytest.approx(px / 2 + step * math.sin(math.radians(bearing)), abs=1.5)


def marked(place: tuple[float, float], bearing: float, distance: float) -> tuple[float, float]:
    longitude, latitude, _ = GEOD.fwd(place[1], place[0], bearing, distance)
    return latitude, longitude


@pytest.fixture
def map_tiles(tmp_path: Path) -> Path:
    """5 x 5 map tiles of zoom 18 around the position, with each mark projected."""
    zoom, size = 18, 256
    count = 2**zoom

    def world(latitude: float, longitude: float) -> tuple[float, float]:
        phi = math.radians(latitude)
        y = (1 - math.log(math.tan(phi) + 1 / math.cos(phi)) / math.pi) / 2
        return (longitude + 180) / 360 * count, y * count

    x0, y0 = (int(v) - 2 for v in world(LATITUDE, LONGITUDE))
    mosaic = np.zeros((5 * size, 5 * size, 3), np.uint8)
    for channel, mark in enumerate(MARKS):
        x, y = world(*marked((LATITUDE, LONGITUDE), *mark))
        column, row = int((x - x0) * size), int((y - y0) * size)
        mosaic[row - 2 : row + 3, column - 2 : column + 3, channel] = 255
    for i in range(5):
        for j in range(5):
            path = tmp_path / "tiles" / str(zoom) / str(x0 + j) / f"{y0 + i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mosaic[i * size : (i + 1) * size, j * size : (j + 1) * size]).save(path)
    return tmp_path / "tiles"


class TestMapTiles:
    def test_a_tile_is_stitched_around_its_position(self, map_tiles: Path) -> None:
        assert_marks(MapTiles(str(map_tiles), 18).cut(LATITUDE, LONGITUDE, 120.0, 240), 120.0)
        assert_marks(MapTiles(str(map_tiles / "{z}/{x}/{y}.png"), 18).cut(LATITUDE, LONGITUDE, 100.0, 100), 100.0)

    def test_rows_from_the_south(self, map_tiles: Path) -> None:
        for column in (map_tiles / "18").iterdir():
            for path in column.iterdir():
                path.rename(column / f"tms-{2**18 - 1 - int(path.stem)}.png")
        template = str(map_tiles / "{z}/{x}/tms-{-y}.png")
        assert_marks(MapTiles(template, 18).cut(LATITUDE, LONGITUDE, 120.0, 240), 120.0)

    def test_missing_and_broken_map_tiles_are_named(self, map_tiles: Path) -> None:
        tiles = MapTiles(str(map_tiles), 18)
        with pytest.raises(UnreadableImageError, match=r"map tile 18/\d+/\d+ is missing"):
            tiles.cut(LATITUDE, LONGITUDE + 0.01, 120.0, 240)
        for path in map_tiles.rglob("*.png"):
            path.write_bytes(path.read_bytes()[:50])
        with pytest.raises(UnreadableImageError, match=r"map tile .*png is damaged"):
            MapTiles(str(map_tiles), 18).cut(LATITUDE, LONGITUDE, 120.0, 240)
        with pytest.raises(UnreadableImageError, match="latitude 86 is beyond Web Mercator"):
            tiles.cut(86.0, 0.0, 120.0, 240)
        with pytest.raises(ConfigError, match=r"source.tiles='/x/\{z\}.png'.* needs \{x\} and either"):
            MapTiles("/x/{z}.png", 18)


@pytest.mark.parametrize("projection", ["EPSG:32755", "EPSG:4326", "EPSG:3857"])
def test_a_tile_is_cut_from_a_geotiff_of_any_projection(projection: str, tmp_path: Path) -> None:
    assert_marks(GeoTiff(geotiff(tmp_path, projection)).cut(LATITUDE, LONGITUDE, 120.0, 240), 120.0)


def geotiff(folder: Path, projection: str) -> str:
    """A raster of 500 x 500 m around the position, half a metre per pixel, with the marks."""
    rasterio = pytest.importorskip("rasterio")  # an optional extra
    from pyproj import Transformer
    from rasterio.transform import from_bounds

    to = Transformer.from_crs("EPSG:4326", projection, always_xy=True)
    corners = [marked((LATITUDE, LONGITUDE), bearing, 354.0) for bearing in (225, 45)]
    (west, south), (east, north) = (to.transform(longitude, latitude) for latitude, longitude in corners)
    frame = from_bounds(west, south, east, north, 1000, 1000)
    pixels = np.zeros((3, 1000, 1000), np.uint8)
    for channel, mark in enumerate(MARKS):
        latitude, longitude = marked((LATITUDE, LONGITUDE), *mark)
        column, row = (int(v) for v in ~frame @ to.transform(longitude, latitude))
        pixels[channel, row - 2 : row + 3, column - 2 : column + 3] = 255
    path = folder / "region.tif"
    shape = {"driver": "GTiff", "width": 1000, "height": 1000, "count": 3, "dtype": "uint8"}
    with rasterio.open(path, "w", crs=projection, transform=frame, **shape) as file:
        file.write(pixels)
    return str(path)


class TestGeoTiff:
    def test_beyond_its_edge(self, tmp_path: Path) -> None:
        raster = GeoTiff(geotiff(tmp_path, "EPSG:32755"))
        latitude, longitude = marked((LATITUDE, LONGITUDE), 0.0, 250.0)
        with pytest.raises(UnreadableImageError, match=r"satellite tile: 5\d% of it is outside .*region.tif"):
            raster.cut(latitude, longitude, 120.0, 64)

    def test_grey_becomes_rgb(self, tmp_path: Path) -> None:
        rasterio = pytest.importorskip("rasterio")
        from rasterio.transform import from_origin

        easting, northing = to_utm(LATITUDE, LONGITUDE, 32755)
        frame = from_origin(float(easting) - 100, float(northing) + 100, 1.0, 1.0)
        shape = {"driver": "GTiff", "width": 200, "height": 200, "count": 1, "crs": "EPSG:32755", "transform": frame}
        with rasterio.open(tmp_path / "grey.tif", "w", dtype="uint8", **shape) as file:
            file.write(np.full((1, 200, 200), 77, np.uint8))
        assert (GeoTiff(str(tmp_path / "grey.tif")).cut(LATITUDE, LONGITUDE, 50.0, 32) == 77).all()
        with rasterio.open(tmp_path / "deep.tif", "w", dtype="uint16", **shape) as file:
            file.write(np.full((1, 200, 200), 777, np.uint16))
        with pytest.raises(ConfigError, match=r"deep.tif' has pixels of uint16: expected 8 bits"):
            GeoTiff(str(tmp_path / "deep.tif"))

    def test_files_that_are_not_usable_rasters(self, tmp_path: Path) -> None:
        pytest.importorskip("rasterio")
        (tmp_path / "x.tif").write_bytes(b"no raster")
        with pytest.raises(ConfigError, match=r"x.tif' cannot be read"):
            GeoTiff(str(tmp_path / "x.tif"))
        with pytest.raises(ConfigError, match=r"absent.tif' cannot be read"):
            GeoTiff(str(tmp_path / "absent.tif"))

    def test_a_raster_in_local_coordinates(self, tmp_path: Path) -> None:
        rasterio = pytest.importorskip("rasterio")
        from rasterio.transform import from_origin

        shape = {"driver": "GTiff", "width": 8, "height": 8, "count": 1, "dtype": "uint8"}
        shape["transform"] = from_origin(100.0, 200.0, 0.5, 0.5)
        with rasterio.open(tmp_path / "site.tif", "w", crs='LOCAL_CS["site",UNIT["metre",1]]', **shape) as file:
            file.write(np.zeros((1, 8, 8), np.uint8))
        with pytest.raises(ConfigError, match="has a local coordinate system"):
            GeoTiff(str(tmp_path / "site.tif"))

    def test_a_damaged_raster(self, tmp_path: Path) -> None:
        path = Path(geotiff(tmp_path, "EPSG:32755"))
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 3])
        with pytest.raises(UnreadableImageError, match=r"satellite tile: .* cannot be read there \("):
            GeoTiff(str(path)).cut(LATITUDE, LONGITUDE, 120.0, 240)

    def test_without_rasterio(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "rasterio", None)
        with pytest.raises(ConfigError, match=r"needs rasterio, which is not installed: pip install 's2s-ray\[geo\]'"):
            GeoTiff("region.tif")


def manifest(folder: Path, text: str, **options: object) -> ManifestSourceConfig:
    (folder / "pairs.csv").write_text(text)
    return ManifestSourceConfig(uri=str(folder / "pairs.csv"), **options)  # type: ignore[arg-type]


def test_a_data_set_with_stitched_tiles(map_tiles: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 80, 3), 90, np.uint8)).save(tmp_path / "p.png")
    near = [marked((LATITUDE, LONGITUDE), 90.0, 5.0 * k) for k in range(4)]
    rows = [f"{k},p.png,{('train', 'train', 'val', 'test')[k]},{place[0]},{place[1]}" for k, place in enumerate(near)]
    text = "\n".join(["id,street,split,latitude,longitude", *rows, f"far,p.png,train,{LATITUDE + 1},{LONGITUDE}"])
    source = manifest(tmp_path, text, tiles=str(map_tiles), zoom=18, tile_m=100.0, tile_px=64)
    tree = {
        "model": {"height": 32, "width": 80},
        "source": source.model_dump(),
        "data": {"uri": str(tmp_path / "set")},
        "prepare": {"parallel": False, "keep_tiles": True},
    }
    found = prepare(Config.from_tree(tree))
    assert [entry.id for entry in found.quarantine] == ["far"]
    assert "map tile 18/" in found.quarantine[0].reason
    tile = PairDataset(str(tmp_path / "set"), "test").tile(0)
    assert tile is not None
    assert np.array_equal(tile, MapTiles(str(map_tiles), 18).cut(*near[3], 100.0, 64))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tiles": "t", "zoom": 3}, "tile_m is missing"),
        ({"tiles": "t", "tile_m": 9}, "tiles and zoom go together"),
        ({"tiles": "t", "zoom": 3, "tile_m": 9, "geotiff": "g"}, "cut from one of them, not both"),
    ],
)
def test_contradictions_in_the_imagery(options: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Config.from_tree({"source": {"kind": "manifest", "uri": "x.csv", **options}})


def test_rows_without_a_position_have_no_tile(tmp_path: Path) -> None:
    text = "id,street,split,latitude,longitude\na,p.png,train,,\n"
    source = ManifestSource(manifest(tmp_path, text, tiles="t", zoom=3, tile_m=9.0))
    with pytest.raises(ManifestError, match="row 1: latitude is empty"):
        source.records()


class TestPanoramas:
    shape = ViewGeometry(20, 80)

    def street(self, panorama: NDArray[np.uint8], **record: float) -> NDArray[np.uint8]:
        pair = Pair(np.zeros((24, 24, 3), np.uint8), panorama)
        return prepare_pair(pair, Record("a", "train", **record), self.shape)[1]

    def test_spheres_are_cropped_and_wider_panoramas_are_not(self) -> None:
        sphere = np.zeros((40, 80, 3), np.uint8)
        sphere[10:30] = 200
        assert self.street(sphere).min() == 200
        wide = np.full((20, 110, 3), 200, np.uint8)
        wide[0] = 0
        assert self.street(wide)[0].max() == 0

    def test_a_part_of_the_horizon_lies_at_its_bearing_on_black(self) -> None:
        """90 degrees around east: on a canvas with north in the middle, from 5/8 to 7/8 of the width."""
        found = self.street(np.full((20, 20, 3), 200, np.uint8), fov=90.0, heading=90.0)
        assert (found[:, 50:70] == 200).all()
        assert found[:, :50].max() == found[:, 70:].max() == 0

    def test_the_report_says_what_was_done(self, tmp_path: Path) -> None:
        rows = ["id,satellite,street,split,fov"]
        sizes = {"a": (40, 80), "b": (20, 110), "c": (40, 80), "d": (30, 40), "e": (20, 110)}
        Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(tmp_path / "s.png")
        for id, (height, width) in sizes.items():
            Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(tmp_path / f"{id}.png")
            rows.append(f"{id},s.png,{id}.png,{'test' if id == 'e' else 'train'},{'90' if id == 'd' else ''}")
        tree = {
            "model": {"height": 32, "width": 80},
            "source": manifest(tmp_path, "\n".join(rows)).model_dump(),
            "data": {"uri": str(tmp_path / "set")},
            "prepare": {"parallel": False},
        }
        assert prepare(Config.from_tree(tree)).panoramas == {"cropped": 2, "part": 1, "sphere": 2}
        assert [line for line in verify(str(tmp_path / "set")).lines() if line.startswith("panoramas")] == [
            "panoramas: 2 with the whole horizon, wider than 2:1, all rows kept",
            "panoramas: 1 with a part of the horizon, the remainder unseen, rows kept as above",
            "panoramas: 2 full spheres, the middle half of the rows kept",
        ]

    def test_narrow_panoramas_need_a_field_of_view(self, tmp_path: Path) -> None:
        with pytest.raises(UnreadableImageError, match="expected the whole horizon, at least twice as wide as high"):
            self.street(np.full((20, 30, 3), 200, np.uint8))

    def test_the_column_of_the_field_of_view(self, tmp_path: Path) -> None:
        text = "id,satellite,street,split,fov\na,s,p,train,90\nb,s,p,train,\n"
        assert [record.fov for record in ManifestSource(manifest(tmp_path, text)).records()] == [90.0, 360.0]
        for value in ("0", "361"):
            text = f"id,satellite,street,split,fov\na,s,p,train,{value}\n"
            with pytest.raises(ManifestError, match=rf"row 1: fov={value}\b.*360 degrees"):
                ManifestSource(manifest(tmp_path, text)).records()

    def test_another_field_of_view_is_another_data_set(self, tmp_path: Path) -> None:
        Image.fromarray(np.full((40, 80, 3), 90, np.uint8)).save(tmp_path / "p.png")
        Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(tmp_path / "s.png")
        tree = {
            "model": {"height": 32, "width": 80},
            "data": {"uri": str(tmp_path / "set")},
            "prepare": {"parallel": False},
        }
        rows = [
            "id,satellite,street,split,fov",
            "a,s.png,p.png,train,{}",
            "b,s.png,p.png,train,",
            "d,s.png,p.png,train,",
        ]
        text = "\n".join([*rows, "c,s.png,p.png,test,\n"])
        prepare(Config.from_tree(tree | {"source": manifest(tmp_path, text.format("90")).model_dump()}))
        with pytest.raises(DatasetError, match=r"already holds another data set .the source's records changed."):
            prepare(Config.from_tree(tree | {"source": manifest(tmp_path, text.format("91")).model_dump()}))

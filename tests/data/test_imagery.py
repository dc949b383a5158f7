"""Imagery of every kind of bands and transparency: the colours are right, and a missing part is never black."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from s2s_ray.data.sources.map_tiles import MapTiles
from s2s_ray.errors import ConfigError, StorageError, UnreadableImageError
from s2s_ray.geo.images import Pixels
from s2s_ray.geo.utm import to_degrees

rasterio = pytest.importorskip("rasterio")  # an optional extra
from s2s_ray.data.sources.geotiff import GeoTiff  # noqa: E402

SIDE = 400  # metres and pixels of a raster whose north-western corner is at 500000 E 5300000 N in zone 32
RGB = ("red", "green", "blue")
ABOUT_HALF = r"satellite tile: (48|49|50)% of it is outside .* or has no data"
BANDS = np.random.default_rng(0).integers(100, 200, (5, SIDE, SIDE), dtype=np.uint8)
WEST_MISSING = np.repeat(np.where(np.arange(SIDE) < SIDE / 2, 0, 255).astype(np.uint8)[None], SIDE, 0)


def raster(
    path: Path,
    bands: NDArray[np.uint8],
    colours: Sequence[str] = (),
    *,
    mask: NDArray[np.uint8] | None = None,
    palette: dict[int, tuple[int, int, int, int]] | None = None,
    projection: str = "EPSG:32632",
    **more: object,
) -> str:
    """Write a raster with these bands."""
    from rasterio.enums import ColorInterp
    from rasterio.transform import from_bounds, from_origin
    from rasterio.warp import transform_bounds

    frame = from_origin(500000, 5300000, 1, 1)
    if projection != "EPSG:32632":
        west, south, east, north = transform_bounds("EPSG:32632", projection, 500000, 5299600, 500400, 5300000)
        frame = from_bounds(west, south, east, north, SIDE, SIDE)
    shape = {"driver": "GTiff", "height": SIDE, "width": SIDE, "count": len(bands), "dtype": "uint8"}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", crs=projection, transform=frame, **shape, **more) as file,
    ):
        file.write(bands)
        if colours:
            file.colorinterp = [ColorInterp[colour] for colour in colours]
        if palette is not None:
            file.write_colormap(1, palette)
        if mask is not None:
            file.write_mask(mask)
    return str(path)


def cut(uri: str, east: float = 300.0) -> Pixels:
    """Cut a tile of 100 m, `east` metres from the western edge of the raster."""
    latitude, longitude = to_degrees(np.array([500000.0 + east]), np.array([5299800.0]), 32632)
    return GeoTiff(uri).cut(float(latitude[0]), float(longitude[0]), 100.0, 64)


KINDS: dict[str, tuple[list[int | None], tuple[str, ...], dict[str, Any]]] = {
    "rgb": ([0, 1, 2], RGB, {}),
    "rgb and infrared": ([0, 1, 2, 3], (*RGB, "undefined"), {"photometric": "RGB"}),
    "rgb and two more": ([0, 1, 2, 3, 4], (*RGB, "undefined", "undefined"), {}),
    "infrared first": ([3, 0, 1, 2], ("undefined", *RGB), {}),
    "blue, green, red": ([2, 1, 0], ("blue", "green", "red"), {}),
    "no interpretation": ([0, 1, 2], ("gray", "undefined", "undefined"), {}),
    "four without interpretation": ([0, 1, 2, 3], ("gray", "undefined", "undefined", "undefined"), {}),
    "rgba": ([0, 1, 2, None], (*RGB, "alpha"), {}),
    "bgra": ([2, 1, 0, None], ("blue", "green", "red", "alpha"), {}),
    "argb": ([None, 0, 1, 2], ("alpha", *RGB), {}),
    "rgb, infrared and alpha": ([0, 1, 2, 3, None], (*RGB, "undefined", "alpha"), {}),
    "alpha and infrared": ([0, 1, 2, None, 3], (*RGB, "alpha", "undefined"), {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_colours_are_found_and_what_is_missing_is_not_black(kind: str, tmp_path: Path) -> None:
    order, colours, more = KINDS[kind]
    expected = cut(raster(tmp_path / "rgb.tif", BANDS[:3], RGB))
    bands = np.stack([WEST_MISSING if number is None else BANDS[number] for number in order])
    uri = raster(tmp_path / "kind.tif", bands, colours, **more)
    assert np.array_equal(cut(uri), expected)
    for east, missing in ((400.0, "49%"), (800.0, "100%"), *([(200.0, "49%")] if None in order else [])):
        with pytest.raises(UnreadableImageError, match=f"satellite tile: {missing} of it is outside .* or has no data"):
            cut(uri, east)


@pytest.mark.parametrize(
    ("bands", "colours", "more"),
    [
        ([0], ("gray",), {"mask": WEST_MISSING}),
        ([0, None], ("gray", "alpha"), {"alpha": "YES"}),
        ([None, 0], ("alpha", "gray"), {}),
        ([0, 1], ("gray", "undefined"), {}),
        ([0, 1], ("gray", "undefined"), {"mask": WEST_MISSING}),
        ([0, 1, None], ("gray", "undefined", "alpha"), {}),
    ],
)
def test_grey_with_any_kind_of_transparency(
    bands: list[int | None], colours: tuple[str, ...], more: dict[str, Any], tmp_path: Path
) -> None:
    expected = cut(raster(tmp_path / "grey.tif", BANDS[:1], ["gray"]))
    layers = np.stack([WEST_MISSING if number is None else BANDS[number] for number in bands])
    uri = raster(tmp_path / "kind.tif", layers, colours, **more)
    assert np.array_equal(cut(uri), expected)
    with pytest.raises(UnreadableImageError, match=ABOUT_HALF):
        cut(uri, 400.0)
    if None in bands or "mask" in more:
        with pytest.raises(UnreadableImageError, match=ABOUT_HALF):
            cut(uri, 200.0)


@pytest.mark.parametrize("count", [3, 4, 5])
@pytest.mark.parametrize("how", ["mask", "nodata"])
def test_masks_and_no_data_are_missing_imagery(how: str, count: int, tmp_path: Path) -> None:
    colours = (*RGB, "alpha", "undefined")[:count]
    expected = cut(raster(tmp_path / "rgb.tif", BANDS[:3], RGB))
    bands = BANDS[:count].copy()
    if how == "mask":
        uri = raster(tmp_path / "m.tif", bands, colours, mask=WEST_MISSING)
    else:
        bands[:, WEST_MISSING == 0] = 0
        uri = raster(tmp_path / "m.tif", bands, colours, nodata=0)
    assert np.array_equal(cut(uri), expected)
    with pytest.raises(UnreadableImageError, match=ABOUT_HALF):
        cut(uri, 200.0)


@pytest.mark.parametrize("projection", ["EPSG:32632", "EPSG:4326", "EPSG:3857"])
def test_a_palette_is_applied(projection: str, tmp_path: Path) -> None:
    table = {value: (255 - value, value, 0, 255) for value in range(256)}
    chosen = np.where(WEST_MISSING == 0, 0, 10).astype(np.uint8)[None]
    uri = raster(tmp_path / "p.tif", chosen, palette=table, projection=projection)
    assert (cut(uri) == [245, 10, 0]).all()
    assert (cut(uri, 100.0) == [255, 0, 0]).all()
    with pytest.raises(UnreadableImageError, match=ABOUT_HALF):
        cut(uri, 400.0)
    options: tuple[dict[str, Any], ...] = ({"nodata": 0}, {"mask": WEST_MISSING})
    for more in options:
        uri = raster(tmp_path / "q.tif", chosen, palette=table, projection=projection, **more)
        assert (cut(uri) == [245, 10, 0]).all()
        with pytest.raises(UnreadableImageError, match=ABOUT_HALF):
            cut(uri, 200.0)


def test_grey_whose_white_is_zero_is_inverted(tmp_path: Path) -> None:
    uri = raster(tmp_path / "w.tif", np.full((1, SIDE, SIDE), 55, np.uint8), photometric="MINISWHITE")
    assert (cut(uri) == 200).all()


@pytest.mark.parametrize(
    "colours", [("hue", "saturation", "lightness"), ("red", "green"), ("nir", "red", "green"), ("alpha",)]
)
def test_bands_of_other_colours_are_refused(colours: tuple[str, ...], tmp_path: Path) -> None:
    uri = raster(tmp_path / "o.tif", BANDS[: len(colours)], colours)
    with pytest.raises(ConfigError, match=f"has bands of {', '.join(colours)}: expected red, green and blue, or grey"):
        GeoTiff(uri)


def test_pixels_of_fewer_bits_are_refused_unless_they_are_a_palette(tmp_path: Path) -> None:
    pixels = np.ones((1, SIDE, SIDE), np.uint8)
    with pytest.raises(ConfigError, match="has pixels of 4 bits: expected 8 bits"):
        GeoTiff(raster(tmp_path / "grey.tif", pixels, nbits=4))
    table = {0: (0, 0, 0, 255), 1: (9, 8, 7, 255)}
    assert (cut(raster(tmp_path / "palette.tif", pixels, palette=table, nbits=4)) == [9, 8, 7]).all()
    assert (cut(raster(tmp_path / "bits.tif", pixels, nbits=1)) == 255).all()


def test_a_raster_that_disappears_is_not_a_missing_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rasterio import vrt
    from rasterio.errors import RasterioIOError

    tiff = GeoTiff(raster(tmp_path / "rgb.tif", BANDS[:3], RGB))

    def fail(*args: object, **options: object) -> None:
        raise RasterioIOError("read failed")

    monkeypatch.setattr(vrt, "WarpedVRT", fail)
    with pytest.raises(UnreadableImageError, match="cannot be read there"):
        tiff.cut(48.0, 9.0, 100.0, 64)
    (tmp_path / "rgb.tif").unlink()
    with pytest.raises(StorageError, match=r"rgb.tif has disappeared"):
        tiff.cut(48.0, 9.0, 100.0, 64)


def test_a_raster_says_what_it_has(tmp_path: Path) -> None:
    seen = np.zeros((SIDE, SIDE), np.uint8)
    seen[:, SIDE // 2 :] = 255
    tiff = GeoTiff(raster(tmp_path / "half.tif", BANDS[:3], RGB, mask=seen))
    eastings, northings = np.array([200.0, 300.0, -1.0, 401.0, 200.0, 399.0]), np.array([200.0, 200.0, 9, 9, -1, 399])
    positions = np.stack(to_degrees(500000 + eastings, 5299600 + northings, 32632), axis=-1)
    assert tiff.covers(positions).tolist() == [True, True, False, False, False, True]
    assert not tiff.covers(np.array([[-89.0, 190.0], [48.0, -171.0]])).any()
    (west_edge, inside) = (tiff.cut_seen(*position, 80.0, 40) for position in positions[:2])
    assert inside[1].all()
    np.testing.assert_array_equal(inside[0], tiff.cut(*positions[1], 80.0, 40))
    assert west_edge[1][:, 20:].all()
    assert not west_edge[1][:, :19].any()
    assert tiff.bounds is not None
    assert tiff.bounds.mask(*positions.T).tolist() == tiff.covers(positions).tolist()
    metres = tiff.offsets(*positions[0], positions[:2])
    # the grid's north is that of its meridian there, and its scale 0.9996
    np.testing.assert_allclose(metres, [[0, 0], [100 / 0.9996, 0]], atol=0.01)


@pytest.mark.parametrize("west", [179.996, -180.004])
def test_a_raster_across_the_date_line(west: float, tmp_path: Path) -> None:
    from rasterio.transform import from_bounds

    frame = from_bounds(west, -16.504, west + 0.008, -16.496, SIDE, SIDE)
    shape = {"driver": "GTiff", "height": SIDE, "width": SIDE, "count": 3, "dtype": "uint8"}
    pixels = np.repeat(np.arange(SIDE, dtype=np.float64)[None] / 2, SIDE, 0).astype(np.uint8)
    with rasterio.open(tmp_path / "line.tif", "w", crs="EPSG:4326", transform=frame, **shape) as file:
        file.write(np.stack([pixels] * 3))
    tiff = GeoTiff(str(tmp_path / "line.tif"))
    assert tiff.bounds is not None
    assert (tiff.bounds.west, tiff.bounds.east) == pytest.approx((179.996, -179.996))
    positions = np.array([[-16.5, 179.999], [-16.5, -179.999], [-16.5, 180.0], [-16.5, -179.99], [-16.5, 0.0]])
    assert tiff.covers(positions).tolist() == [True, True, True, False, False]
    for (latitude, longitude), column in zip(positions[:3], (150, 250, 200), strict=True):
        assert tiff.cut(latitude, longitude, 60.0, 60).mean() == pytest.approx(column / 2, abs=1)


ZOOM, LATITUDE, LONGITUDE = 19, 48.1, 11.5


def map_tile(folder: Path, dx: int, dy: int, image: Image.Image, suffix: str) -> None:
    """Write the map tile that is `dx` and `dy` tiles from the one in the middle."""
    import math

    count = 2**ZOOM
    x = int((LONGITUDE + 180) / 360 * count)
    y = int((1 - math.asinh(math.tan(math.radians(LATITUDE))) / math.pi) / 2 * count)
    path = folder / str(ZOOM) / str(x + dx) / f"{y + dy}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def neighbours() -> list[tuple[int, int]]:
    return [(dx, dy) for dx in (-2, -1, 0, 1, 2) for dy in (-2, -1, 0, 1, 2)]


@pytest.mark.parametrize("order", [1, -1])
def test_map_tiles_of_several_kinds_in_one_folder(order: int, tmp_path: Path) -> None:
    suffixes = ("png", "jpg", "jpeg", "webp")[::order]
    for number, (dx, dy) in enumerate(neighbours()):
        map_tile(tmp_path, dx, dy, Image.new("RGB", (256, 256), (120, 120, 120)), suffixes[number % 4])
    assert np.abs(MapTiles(str(tmp_path), ZOOM).cut(LATITUDE, LONGITUDE, 60.0, 64).astype(int) - 120).max() <= 1


def test_a_map_tile_of_two_kinds_does_not_depend_on_what_was_read_before(tmp_path: Path) -> None:
    for dx, dy in neighbours():
        if dx < 0:
            map_tile(tmp_path, dx, dy, Image.new("RGB", (256, 256), (10, 10, 10)), "webp")
        else:
            map_tile(tmp_path, dx, dy, Image.new("RGB", (256, 256), (120, 120, 120)), "png")
            map_tile(tmp_path, dx, dy, Image.new("RGB", (256, 256), (30, 30, 30)), "webp")
    tiles = MapTiles(str(tmp_path), ZOOM)
    tile = tiles.cut(LATITUDE, LONGITUDE, 100.0, 64)
    assert set(np.unique(tile[:, [0, -1]])) == {10, 120}
    assert np.array_equal(tiles.cut(LATITUDE, LONGITUDE, 100.0, 64), tile)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_map_tiles_are_missing_imagery(mode: str, tmp_path: Path) -> None:
    for alpha, folder in ((0, "holes"), (1, "whole")):
        for dx, dy in neighbours():
            tile = Image.new("RGBA", (256, 256), (120, 120, 120, alpha if dx < 0 else 255))
            map_tile(tmp_path / folder, dx, dy, tile.convert(mode), "png")
    if mode != "P":
        assert (MapTiles(str(tmp_path / "whole"), ZOOM).cut(LATITUDE, LONGITUDE, 60.0, 64) == 120).all()
    with pytest.raises(UnreadableImageError, match=r"satellite tile: \d+% of it has no imagery \(the map tiles are tr"):
        MapTiles(str(tmp_path / "holes"), ZOOM).cut(LATITUDE, LONGITUDE, 60.0, 64)


@pytest.mark.parametrize("template", ["", "/{z}/{x}/{y}.png"])
def test_map_tiles_that_disappear_are_not_missing(template: str, tmp_path: Path) -> None:
    map_tile(tmp_path / "tiles", 9, 9, Image.new("RGB", (256, 256)), "png")
    tiles = MapTiles(f"{tmp_path}/tiles{template}", ZOOM)
    with pytest.raises(UnreadableImageError, match="is missing"):
        tiles.cut(LATITUDE, LONGITUDE, 60.0, 64)
    shutil.rmtree(tmp_path / "tiles")
    with pytest.raises(StorageError, match="tiles has disappeared while its images were read"):
        tiles.cut(LATITUDE, LONGITUDE, 60.0, 64)


def test_map_tiles_say_what_they_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for dx, dy in neighbours():
        alpha = np.full((256, 256), 255, np.uint8)
        alpha[:40] = 0 if (dx, dy) == (0, 0) else 255
        pixels = np.dstack([np.full((256, 256, 3), 120, np.uint8), alpha])
        if dx < 2:
            map_tile(tmp_path, dx, dy, Image.fromarray(pixels), "png")
    whole, tiles = MapTiles(str(tmp_path), ZOOM), MapTiles(str(tmp_path), ZOOM)
    count = 2**ZOOM
    west = (int((LONGITUDE + 180) / 360 * count) + 2) / count * 360 - 180  # of the column that is missing
    reads = []
    read = MapTiles._read
    monkeypatch.setattr(MapTiles, "_read", lambda self, x, y: reads.append((x, y)) or read(self, x, y))
    for _ in range(2):
        pixels, seen = tiles.cut_seen(LATITUDE, west, 60.0, 60)
    assert len(reads) == len(set(reads)) > 1, "a missing map tile is looked up once"
    assert not seen[:, 31:].any()
    assert np.abs(pixels[seen].astype(int) - 120).max() <= 3  # the filter overshoots beside an edge
    assert 0.1 < seen.mean() < 0.5
    with pytest.raises(UnreadableImageError, match="is missing"):
        whole.cut(LATITUDE, west, 60.0, 60)
    pixels, seen = tiles.cut_seen(LATITUDE, LONGITUDE, 100.0, 64)
    assert 0.5 < seen.mean() < 1
    assert np.abs(pixels[seen].astype(int) - 120).max() <= 3
    _, nothing = tiles.cut_seen(LATITUDE, LONGITUDE + 1, 100.0, 64)
    assert not nothing.any()
    assert tiles.covers(np.array([[86.0, 0.0], [85.0, 0.0], [-86.0, 0.0]])).tolist() == [False, True, False]

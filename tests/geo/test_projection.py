"""Projected pictures against the colours that the world has in each pixel's direction."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from s2s_ray.city.city import City
from s2s_ray.city.light import draw_light
from s2s_ray.city.noise import generator
from s2s_ray.city.panorama import render_panorama
from s2s_ray.city.scene import Atlas
from s2s_ray.city.traffic import no_traffic
from s2s_ray.errors import ViewError
from s2s_ray.geo.camera import Crop, Projection
from s2s_ray.geo.prepare import prepare_street
from s2s_ray.geo.query import Known, Query
from s2s_ray.geo.views import View, ViewGeometry

H, W = 32, 176
GEOMETRY = ViewGeometry(H, W)
Floats = NDArray[np.float64]


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def colours(directions: Floats) -> Floats:
    """A smooth world: the colour is the direction (east, north, up)."""
    return 127.5 + 120 * directions


def axes(heading: float, pitch: float, roll: float) -> tuple[Floats, Floats, Floats]:
    """Right, forward and up of a camera: turned to the heading, tilted up, then turned clockwise about its axis."""
    h, p, r = map(math.radians, (heading, pitch, roll))
    forward = np.array([math.sin(h) * math.cos(p), math.cos(h) * math.cos(p), math.sin(p)])
    right = np.array([math.cos(h), -math.sin(h), 0.0])
    up = np.cross(right, forward)
    return right * math.cos(r) - up * math.sin(r), forward, up * math.cos(r) + right * math.sin(r)


def take(
    height: int, width: int, projection: Projection, fov: float, heading: float, pitch: float, roll: float
) -> NDArray[np.uint8]:
    """Take a picture of the smooth world."""
    x = ((np.arange(width) + 0.5) / width * 2 - 1)[None, :] * np.ones((height, 1))
    y = (1 - (np.arange(height) + 0.5) / height * 2)[:, None] * np.ones((1, width)) * height / width
    half = math.radians(fov / 2)
    if projection == "rectilinear":
        rays = np.stack([x * math.tan(half), np.ones_like(x), y * math.tan(half)], -1)
    elif projection == "cylindrical":
        rays = np.stack([np.sin(x * half), np.cos(x * half), y * half], -1)
    else:
        level = np.cos(y * half)
        rays = np.stack([np.sin(x * half) * level, np.cos(x * half) * level, np.sin(y * half)], -1)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    return np.rint(colours(rays @ np.stack(axes(heading, pitch, roll)))).astype(np.uint8)


def directions(height: int = H, width: int = W, top: float = 45.0, bottom: float = -45.0) -> Floats:
    """The directions of a view's pixels: east, north, up."""
    bearings = np.radians((np.arange(width) + 0.5) / width * 360 - 180)[None, :]
    elevations = np.radians(top + (np.arange(height) + 0.5) / height * (bottom - top))[:, None]
    level = np.cos(elevations)
    return np.stack([level * np.sin(bearings), level * np.cos(bearings), np.sin(elevations) + 0 * bearings], -1)


def shown(view: View) -> tuple[Floats, NDArray[np.bool_]]:
    seen = np.ones(view.pixels.shape[-2:], bool) if view.seen is None else view.seen.numpy()
    return view.pixels.permute(1, 2, 0).numpy().astype(float), seen


def project(pixels: NDArray[np.uint8], query: Query, geometry: ViewGeometry = GEOMETRY) -> View:
    return geometry.of_query(pixels, geometry.settle(query, pixels))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("projection", ["rectilinear", "cylindrical"])
def test_every_pixel_has_the_colour_of_its_direction(projection: Projection, seed: int) -> None:
    rng = np.random.default_rng(seed)
    fov = rng.uniform(35, 140 if projection == "rectilinear" else 350)
    heading, pitch, roll = rng.uniform(-360, 360), rng.uniform(-40, 40), rng.uniform(-180, 180)
    height, width = rng.integers(100, 300, 2)
    picture = take(height, width, projection, fov, heading, pitch, roll)
    pixels, seen = shown(project(picture, Query(heading, fov, projection, pitch, roll)))

    right, forward, up = (directions() @ axis for axis in axes(heading, pitch, roll))
    half = math.radians(fov / 2)
    if projection == "rectilinear":
        reach = math.tan(half)
        inside = (forward > 0) & (abs(right) <= reach * forward) & (abs(up) <= reach * height / width * forward)
    else:
        inside = (abs(np.arctan2(right, forward)) <= half) & (
            abs(up) <= half * height / width * np.hypot(right, forward)
        )
    assert (seen != inside).mean() < 0.005  # pixels that are cut in half
    both = seen & inside
    assert both.any()
    assert np.abs(pixels - colours(directions()))[both].max() < 6
    assert np.abs(pixels - colours(directions()))[both].mean() < 0.5
    assert not pixels[~seen].any()


@pytest.mark.parametrize("seed", range(4))
def test_a_tilted_sphere_is_levelled(seed: int) -> None:
    rng = np.random.default_rng(seed)
    heading, pitch, roll = rng.uniform(0, 360), rng.uniform(-90, 90), rng.uniform(-180, 180)
    picture = take(128, 256, "equirectangular", 360, heading, pitch, roll)
    pixels, seen = shown(project(picture, Query(heading, pitch=pitch, roll=roll)))
    assert seen.all()
    assert np.abs(pixels - colours(directions())).max() < 2


@pytest.mark.parametrize("elevations", [None, (60.0, -20.0)])
def test_an_object_20_degrees_up_lands_where_a_sphere_has_it(elevations: tuple[float, float] | None) -> None:
    geometry = ViewGeometry(90, 360, elevations=elevations)
    top, bottom = geometry.span
    row, column = (top - 20) / (top - bottom) * 90, 180 + 72 + 25
    fov, width, height = 80.0, 400, 300  # the camera looks at 72 degrees; the object is 25 degrees to its right
    focal = width / 2 / math.tan(math.radians(fov / 2))
    x = width / 2 + focal * math.tan(math.radians(25))
    y = height / 2 - focal * math.tan(math.radians(20)) / math.cos(math.radians(25))
    picture = np.zeros((height, width, 3), np.uint8)
    picture[round(y) - 2 : round(y) + 2, round(x) - 2 : round(x) + 2] = 255
    pixels, _ = shown(project(picture, Query(72, fov), geometry))
    weights = pixels[..., 0] / pixels[..., 0].sum()
    assert (weights.sum(1) @ (np.arange(90) + 0.5)) == pytest.approx(row, abs=0.2)
    assert (weights.sum(0) @ (np.arange(360) + 0.5)) == pytest.approx(column, abs=0.2)


def test_a_level_panorama_is_prepared_as_ever() -> None:
    for picture, rows in ((noise(88, 176), (0.25, 0.75)), (noise(44, 176), (0.0, 1.0)), (noise(64, 352), (0.0, 1.0))):
        for heading in (0.0, 37.5):
            view = project(picture, Query(heading))
            assert view.seen is None
            assert torch.equal(view.pixels, prepare_street(picture, heading, rows, H, W))
    view = project(noise(88, 176), Query(90, rows=(0.1, 0.6)))
    assert torch.equal(view.pixels, prepare_street(noise(88, 176), 90, (0.1, 0.6), H, W))


def test_an_unknown_heading_is_prepared_as_north() -> None:
    sphere = take(88, 176, "equirectangular", 360, 0, 0, 0)
    view = project(sphere, Query("unknown"))
    assert torch.equal(view.pixels, prepare_street(sphere, 0, (0.25, 0.75), H, W))
    photo = noise(30, 40)
    one, two = project(photo, Query("unknown", 60)), project(photo, Query(0, 60))
    assert torch.equal(one.pixels, two.pixels)


def test_a_part_of_a_panorama_is_that_part_of_the_view() -> None:
    picture = noise(2 * H, W)  # twice the view's resolution
    view = project(picture, Query(90, 180, "equirectangular"))
    whole = prepare_street(picture, 90, (0, 1), H, W, fov=180)
    assert view.seen is not None
    columns = view.seen.all(0)
    assert torch.equal(columns, view.seen.any(0))
    # the part from 0 to 180 degrees, by a smoother filter than the mean over the area
    assert columns.nonzero().flatten().tolist() == list(range(W // 2, W))
    difference = (view.pixels.float() - whole.float())[..., columns]
    assert difference.abs().mean() < 0.5 * whole[..., columns].float().std()


@pytest.mark.parametrize("elevations", [None, (50.0, -30.0)])
@pytest.mark.parametrize(("height", "width", "fov"), [(100, 200, 90), (60, 600, 300), (60, 80, 150), (60, 480, 360)])
def test_rows_of_a_part_of_a_panorama_have_the_scale_of_its_columns(
    height: int, width: int, fov: float, elevations: tuple[float, float] | None
) -> None:
    geometry = ViewGeometry(H, W, elevations=elevations)
    picture = take(height, width, "equirectangular", fov, 77, 0, 0)
    pixels, seen = shown(project(picture, Query(77, fov, "equirectangular"), geometry))
    top, bottom = geometry.span
    up = top + (np.arange(H) + 0.5) / H * (bottom - top)
    around = abs(((np.arange(W) + 0.5) / W * 360 - 180 - 77 + 180) % 360 - 180)
    inside = (abs(up) <= fov * height / width / 2)[:, None] & (around <= fov / 2)
    edge = (abs(abs(up) - fov * height / width / 2) < 90 / H)[:, None] | (abs(around - fov / 2) < 360 / W)
    assert edge.mean() < 0.2
    assert np.array_equal(seen[~edge], inside[~edge])
    assert np.abs(pixels - colours(directions(top=top, bottom=bottom)))[seen].max() < 6


def test_a_sphere_follows_the_elevations_unless_a_heading_is_given_alone() -> None:
    geometry = ViewGeometry(H, W, panorama_rows=(0.0, 1.0), elevations=(32.7, -32.7), default_heading=0.0)
    sphere = take(180, 360, "equirectangular", 360, 0, 0, 0)
    expected = colours(directions(top=32.7, bottom=-32.7))
    for query in (Query(), Query(0, "auto"), Query(0, 360), Query("unknown")):
        pixels, seen = shown(project(sphere, query, geometry))
        assert seen.all()
        assert np.abs(pixels - expected).max() < 3
    assert torch.equal(project(sphere, Query(0), geometry).pixels, prepare_street(sphere, 0, (0.0, 1.0), H, W))
    own = take(H, W, "equirectangular", 360, 0, 0, 0)
    for query in (Query(), Query(0), Query(0, 360)):
        assert torch.equal(project(own, query, geometry).pixels, prepare_street(own, 0, (0.0, 1.0), H, W))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("projection", ["rectilinear", "cylindrical", "equirectangular"])
def test_transparent_pixels_are_unseen(projection: Projection, seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (300, 600) if projection == "equirectangular" else (300, 400)
    fov = 360 if projection == "equirectangular" else 100
    pitch, roll = (0.0, 0.0) if seed == 0 else rng.uniform(-20, 20, 2)
    picture = take(height, width, projection, fov, 40, pitch, roll)
    opaque = np.ones((height, width), bool)
    for _ in range(3):
        row, column = rng.integers(0, height * 2 // 3), rng.integers(0, width * 2 // 3)
        opaque[row : row + height // 3, column : column + width // 3] = False
    hidden = np.where(opaque[..., None], picture, rng.integers(0, 256, 3, dtype=np.uint8))
    known = GEOMETRY.settle(Query(40, fov, projection, pitch, roll), picture)
    pixels, seen = shown(GEOMETRY.of_query(hidden, known, opaque))
    whole, reach = shown(GEOMETRY.of_query(picture, known))
    # the mask as a picture of the same kind
    white = np.repeat(np.where(opaque, 255, 0).astype(np.uint8)[..., None], 3, -1)
    share = shown(GEOMETRY.of_query(white, known))[0][..., 0] / 255
    inner = np.all([np.roll(reach, shift, (0, 1)) for shift in np.ndindex(3, 3)], axis=0)
    inner = np.roll(inner, (-1, -1), (0, 1)) & ((share > 0.7) | (share < 0.3))
    assert np.array_equal(seen[inner], (share > 0.5)[inner])
    assert inner.sum() > 0.7 * reach.sum()
    assert 0.2 < seen.sum() / reach.sum() < 0.95
    assert np.abs(pixels - colours(directions()))[seen].max() < 10
    assert np.abs(pixels - whole)[seen].mean() < 1
    assert not pixels[~seen].any()


def test_opaque_pixels_change_nothing() -> None:
    sphere = noise(88, 176)
    known = GEOMETRY.settle(Query(10), sphere)
    view = GEOMETRY.of_query(sphere, known, np.ones((88, 176), bool))
    assert view.seen is None
    assert torch.equal(view.pixels, GEOMETRY.of_query(sphere, known).pixels)
    with pytest.raises(ViewError, match="all of its pixels are transparent"):
        GEOMETRY.of_query(sphere, known, np.zeros((88, 176), bool))
    with pytest.raises(ViewError, match=r"shown has shape \(176, 88\): expected \(88, 176\)"):
        GEOMETRY.of_query(sphere, known, np.ones((176, 88), bool))


def test_a_crop_of_a_sphere_is_placed_by_its_edges() -> None:
    sphere = take(256, 512, "equirectangular", 360, 30, 5, -8)
    crop = sphere[64:192, 128:384]  # 180 degrees around the axis, 45 degrees up and down
    known = Known(30, "file", 0, 180, "file", "equirectangular", "file", 5, -8, crop=Crop(-90, 90, 45, -45))
    pixels, seen = shown(GEOMETRY.of_query(crop, known))
    assert np.abs(pixels - colours(directions()))[seen].max() < 5
    assert 0.4 < seen.mean() < 0.52
    high = sphere[32:128]  # 67.5 degrees up to the horizon
    known = Known(30, "file", 0, 360, "file", "equirectangular", "file", 5, -8, crop=Crop(-180, 180, 67.5, 0))
    pixels, seen = shown(GEOMETRY.of_query(high, known))
    assert np.abs(pixels - colours(directions()))[seen].max() < 5
    level = take(256, 512, "equirectangular", 360, 30, 0, 0)
    known = Known(30, "file", 0, 360, "file", "equirectangular", "file", crop=Crop(-180, 180, 67.5, -67.5))
    view = GEOMETRY.of_query(level[32:224], known)
    expected = prepare_street(level, 30, (0.25, 0.75), H, W)
    assert (view.pixels.int() - expected.int()).abs().max() <= 1
    assert view.seen is None


def test_rows_of_a_photograph_are_the_part_that_shows_something() -> None:
    photo = take(120, 160, "rectilinear", 80, 10, 0, 0)
    whole, upper = project(photo, Query(10, 80)), project(photo, Query(10, 80, rows=(0, 0.5)))
    assert whole.seen is not None
    assert upper.seen is not None
    assert not upper.seen[H // 2 :].any()
    assert (upper.seen[: H // 2] != whole.seen[: H // 2]).float().mean() < 0.01
    both = upper.seen & whole.seen
    assert (upper.pixels.int() - whole.pixels.int())[:, both].abs().max() <= 2


def test_fine_detail_is_averaged() -> None:
    checks = np.indices((900, 1200)).sum(0) % 2 * 255
    picture = np.repeat(checks.astype(np.uint8)[..., None], 3, -1)
    for query in (Query(0, 70), Query(0, 120, "rectilinear", 10, 20), Query(0, 200, "cylindrical")):
        pixels, seen = shown(project(picture, query))
        assert np.abs(pixels[seen] - 127.5).max() < 8


def test_the_horizon_of_a_closed_picture_has_no_seam() -> None:
    sphere = take(100, 200, "equirectangular", 360, 123, 20, 10)
    pixels, seen = shown(project(sphere, Query(123, pitch=20, roll=10)))
    assert seen.all()
    assert np.abs(pixels - colours(directions())).max() < 2


def test_a_picture_of_the_sky_alone_is_refused() -> None:
    with pytest.raises(ViewError, match=r"no pixel of the view, .* 45 to -45 degrees: correct fov=40, pitch=85"):
        project(noise(40, 40), Query(0, 40, pitch=85))
    with pytest.raises(ViewError, match="at least 16"):
        project(noise(15, 40), Query(0, 40))


@pytest.fixture(scope="module")
def panorama() -> NDArray[np.uint8]:
    """A panorama of the procedural city, 45 degrees up and down."""
    scene = Atlas(City(3, 0.5), 1.0).scene(120.0, -40.0, 102.0)
    return render_panorama(scene, draw_light(generator(5)), no_traffic(), 120.0, -40.0, 192, 768)


@pytest.mark.parametrize(("heading", "fov"), [(75.0, 70.0), (-160.0, 100.0)])
def test_a_photograph_in_the_city_agrees_with_its_panorama(
    panorama: NDArray[np.uint8], heading: float, fov: float
) -> None:
    height, width = 90, 120
    focal = width / 2 / math.tan(math.radians(fov / 2))
    photo = np.zeros((height, width, 3), np.uint8)
    for row in range(height):
        for column in range(width):
            right, up = (column + 0.5 - width / 2) / focal, (height / 2 - row - 0.5) / focal
            bearing = heading + math.degrees(math.atan(right))
            elevation = math.degrees(math.atan(up / math.hypot(1, right)))
            i = int((45 - elevation) / 90 * 192)
            j = int(((bearing + 180) % 360) / 360 * 768)
            photo[row, column] = panorama[min(max(i, 0), 191), j]
    pixels, seen = shown(project(photo, Query(heading, fov)))
    expected = prepare_street(panorama, 0, (0, 1), H, W).permute(1, 2, 0).numpy().astype(float)
    assert seen.mean() == pytest.approx(fov / 360 * 0.75, rel=0.25)
    assert np.abs(pixels - expected)[seen].mean() < 0.15 * expected[seen].std()
    assert np.abs(np.roll(pixels, 4, 1) - expected)[np.roll(seen, 4, 1)].mean() > 0.3 * expected[seen].std()

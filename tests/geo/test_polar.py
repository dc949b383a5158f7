"""Geometry against direct evaluations of its formulas, pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from s2s_ray.errors import ViewError
from s2s_ray.geo.polar import flip_pair, panorama_canvas, panorama_crop, polar_transform, resize_area, roll_to_north
from tests.conformance.seeded_checkpoint import SEED, expected, picked


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def polar_by_hand(tile: Tensor, height: int, width: int) -> Tensor:
    """The formula of the specification for one C S S tile: four taps, those out of range count as zero."""
    size = tile.shape[-1]
    polar = torch.zeros(tile.shape[0], height, width, dtype=torch.float64)
    for i in range(height):
        for j in range(width):
            radius = size / (2 * height) * (height - 1 - i)
            row = size / 2 + radius * math.cos(2 * math.pi * j / width)
            column = size / 2 - radius * math.sin(2 * math.pi * j / width)
            top, left = math.floor(row), math.floor(column)
            for r, row_weight in ((top, top + 1 - row), (top + 1, row - top)):
                for c, column_weight in ((left, left + 1 - column), (left + 1, column - left)):
                    if 0 <= r < size and 0 <= c < size:
                        polar[:, i, j] += row_weight * column_weight * tile[:, r, c]
    return polar


@pytest.mark.parametrize(("channels", "size", "height", "width"), [(3, 17, 7, 12), (1, 16, 9, 11), (5, 9, 16, 40)])
def test_polar_transform_is_its_formula(channels: int, size: int, height: int, width: int) -> None:
    tile = noise(channels, size, size) + 1  # no zeros: a tap wrongly counted as zero shows
    torch.testing.assert_close(
        polar_transform(tile, height, width), polar_by_hand(tile, height, width), atol=1e-12, rtol=0
    )


def test_taps_outside_the_tile_count_as_zero() -> None:
    # The top row of column 0 lies at row S/2 + S/2 (H-1)/H, past the last pixel's centre once H > S/2.
    polar = polar_transform(torch.ones(1, 8, 8, dtype=torch.float64), 16, 4)
    assert polar[0, 0, 0] == pytest.approx(0.25)  # 7.75: three quarters of the weight fall on pixel 8
    assert polar[0, 0, 2] == pytest.approx(1.0)  # 0.25: both taps inside


def test_polar_transform_takes_leading_dimensions_one_by_one() -> None:
    tiles = noise(2, 4, 3, 12, 12)
    polar = polar_transform(tiles, 8, 20)
    assert polar.shape == (2, 4, 3, 8, 20)
    for i in range(2):
        for j in range(4):
            torch.testing.assert_close(polar[i, j], polar_transform(tiles[i, j], 8, 20), atol=0, rtol=0)


def test_polar_transform_keeps_dtype_and_units() -> None:
    tile = noise(3, 33, 33) * 255
    single = polar_transform(tile.float(), 16, 40)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), polar_transform(tile, 16, 40), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("direction", "row", "column"), [("south", 34, 24), ("west", 24, 14), ("north", 14, 24), ("east", 24, 34)]
)
def test_a_landmark_lands_in_the_column_of_its_bearing(direction: str, row: int, column: int) -> None:
    """A bright dot 10 px from the centre of a 48 px tile; rows of the polar image are 2 px of radius apart."""
    height, width = 12, 40
    tile = torch.zeros(1, 48, 48, dtype=torch.float64)
    tile[0, row, column] = 1.0
    polar = polar_transform(tile, height, width)[0]
    quarter = ["south", "west", "north", "east"].index(direction)
    assert divmod(int(polar.argmax()), width) == (height - 1 - 5, quarter * width // 4)
    assert polar.max() == pytest.approx(1.0)


def test_the_bottom_row_is_the_centre() -> None:
    tile = noise(2, 14, 14)
    polar = polar_transform(tile, 8, 24)
    torch.testing.assert_close(polar[:, -1], tile[:, 7, 7][:, None].expand(2, 24), atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [(3, 10, 12), (12, 12), (3, 12, 10)])
def test_polar_transform_refuses_tiles_that_are_not_square(shape: tuple[int, ...]) -> None:
    with pytest.raises(ViewError, match="C S S") as error:
        polar_transform(torch.zeros(shape), 8, 16)
    assert str(shape) in str(error.value)


def test_polar_transform_refuses_integers() -> None:
    with pytest.raises(ViewError, match="uint8"):
        polar_transform(torch.zeros(3, 12, 12, dtype=torch.uint8), 8, 16)


def test_polar_transform_gives_the_authors_values() -> None:
    recorded = expected("polar")["values"]
    tile = np.random.RandomState(SEED + 13).randint(0, 256, (256, 256, 3)).astype(np.uint8)
    polar = polar_transform(torch.tensor(tile).permute(2, 0, 1).double(), 112, 616)
    np.testing.assert_allclose(picked(polar.permute(1, 2, 0), len(recorded)), recorded, atol=1e-6, rtol=0)


def test_the_middle_half_of_a_cvact_panorama() -> None:
    rows = torch.arange(832).view(1, 832, 1).expand(3, 832, 4)
    cropped = panorama_crop(rows, (0.25, 0.75))
    assert cropped.shape == (3, 416, 4)
    assert cropped[0, :, 0].tolist() == list(range(208, 624))


@pytest.mark.parametrize(
    ("fractions", "first", "last"), [((0.0, 1.0), 0, 10), ((0.0, 0.3), 0, 3), ((0.5, 1.0), 5, 10), ((0.26, 0.54), 3, 5)]
)
def test_panorama_crop_rounds_to_whole_rows(fractions: tuple[float, float], first: int, last: int) -> None:
    rows = torch.arange(10).view(10, 1).expand(10, 3)
    assert panorama_crop(rows, fractions)[:, 0].tolist() == list(range(first, last))


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.8, 0.2), (-0.1, 0.5), (0.5, 1.2), (0.50, 0.51)])
def test_panorama_crop_refuses_invalid_rows(fractions: tuple[float, float]) -> None:
    with pytest.raises(ViewError, match="panorama_rows") as error:
        panorama_crop(torch.zeros(3, 10, 4), fractions)
    assert str(list(fractions)) in str(error.value)


@pytest.mark.parametrize("heading", [0.0, 90.0, 180.0, 270.0, -90.0, 30.0, 360.0])
def test_rolled_to_north_every_column_has_its_bearing(heading: float) -> None:
    """The columns hold their compass bearing; a width of 24 makes 15 degrees per column."""
    middle = torch.arange(24) - 12
    panorama = ((heading + 15.0 * middle) % 360).expand(3, 5, 24)
    rolled = roll_to_north(panorama, heading)
    assert rolled.shape == (3, 5, 24)
    assert rolled[1, 2].tolist() == ((15.0 * middle) % 360).tolist()
    assert rolled[0, 0, 12] == 0  # north in the middle
    assert rolled[0, 0, 0] == 180  # south in column 0


def area_by_hand(image: Tensor, height: int, width: int) -> Tensor:
    """Split every pixel into target x target equal parts, then average whole blocks of source x source of them."""
    fine = image.repeat_interleave(height, -2).repeat_interleave(width, -1)
    blocks = fine.reshape(*image.shape[:-2], height, image.shape[-2], width, image.shape[-1])
    return blocks.mean((-3, -1))


@pytest.mark.parametrize(
    ("source", "target"),
    [((12, 18), (4, 6)), ((7, 11), (3, 5)), ((9, 16), (8, 9)), ((5, 6), (7, 13)), ((4, 9), (4, 9)), ((6, 12), (3, 4))],
)
def test_resize_area_averages_what_a_pixel_covers(source: tuple[int, int], target: tuple[int, int]) -> None:
    image = noise(2, 3, *source)
    torch.testing.assert_close(resize_area(image, *target), area_by_hand(image, *target), atol=1e-12, rtol=0)


def test_resize_area_keeps_dtype_and_a_constant() -> None:
    resized = resize_area(torch.full((3, 10, 14), 0.3), 7, 9)
    assert resized.dtype == torch.float32
    torch.testing.assert_close(resized, torch.full((3, 7, 9), 0.3))


def test_a_flipped_pair_is_mirrored_together() -> None:
    satellite, street = noise(3, 4, 10), noise(3, 4, 10, seed=1)
    flipped = flip_pair(satellite, street)
    for before, after in zip((satellite, street), flipped, strict=True):
        for column in range(10):
            assert torch.equal(after[..., column], before[..., 9 - column])
    for before, again in zip((satellite, street), flip_pair(*flipped), strict=True):
        assert torch.equal(before, again)


def test_a_flipped_polar_image_shows_the_mirrored_world() -> None:
    """Mirrored east to west about the tile's centre (pixel S/2), azimuth phi becomes -phi: column j becomes W - j.

    `flip_pair` sends j to W - 1 - j in both views: the mirrored world, turned by one column in both alike.
    """
    tile = noise(3, 18, 18)
    tile[..., 0] = 0  # its mirror image would be column S, outside the tile
    mirrored = torch.zeros_like(tile)
    mirrored[..., 1:] = tile[..., 1:].flip(-1)
    polar, mirror = polar_transform(tile, 10, 28), polar_transform(mirrored, 10, 28)
    flipped, _ = flip_pair(polar, polar)
    torch.testing.assert_close(flipped, mirror.roll(-1, dims=-1), atol=1e-12, rtol=0)
    assert (flipped - mirror).abs().max() > 0.1  # the mirror image is shifted by that column


def test_a_field_of_view_that_would_fill_the_memory_is_refused() -> None:
    with pytest.raises(ViewError, match=r"fov=0.0001 with 44 x 20 pixels makes a horizon of 3.17e\+09 pixels"):
        panorama_canvas(torch.zeros(3, 20, 44), 0.0001)

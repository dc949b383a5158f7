"""Views against pixel-by-pixel evaluations in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from s2s_ray.data.schema import Pair, Record
from s2s_ray.data.shard import prepare_pair
from s2s_ray.errors import ViewError
from s2s_ray.geo.prepare import prepare_polar, prepare_satellite, prepare_street
from s2s_ray.geo.views import ViewGeometry, to_pixels


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def polar_by_hand(tile: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float64]:
    """The formula of the specification, one output pixel at a time."""
    size = tile.shape[0]
    out = np.zeros((height, width, 3))
    for i in range(height):
        for j in range(width):
            radius = size / (2 * height) * (height - 1 - i)
            row = size / 2 + radius * np.cos(2 * np.pi * j / width)
            column = size / 2 - radius * np.sin(2 * np.pi * j / width)
            r0, c0 = int(np.floor(row)), int(np.floor(column))
            for r, wr in ((r0, 1 - (row - r0)), (r0 + 1, row - r0)):
                for c, wc in ((c0, 1 - (column - c0)), (c0 + 1, column - c0)):
                    if 0 <= r < size and 0 <= c < size:
                        out[i, j] += wr * wc * tile[r, c]
    return out


def mean_by_hand(image: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Area means for a target size that divides the source."""
    h, w = image.shape[0] // height, image.shape[1] // width
    return image.reshape(height, h, width, w, 3).mean(axis=(1, 3))


def assert_rounded(view: object, expected: NDArray[np.float64]) -> None:
    """Nearest integers; a float32 sum may fall on the other side of a half, never further."""
    pixels = np.asarray(view).transpose(1, 2, 0)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels - expected).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("heading", [0.0, 90.0, -90.0, 450.0, 37.5])
def test_street_is_rolled_cropped_averaged_and_rounded(heading: float) -> None:
    panorama = noise(32, 96)
    shift = round(heading % 360 / 360 * 96)
    rolled = panorama[:, (np.arange(96) - shift) % 96][8:24]
    view = prepare_street(panorama, heading, (0.25, 0.75), 8, 24)
    assert tuple(view.shape) == (3, 8, 24)
    assert_rounded(view, mean_by_hand(rolled.astype(float), 8, 24))


def test_street_at_the_models_resolution_is_unchanged() -> None:
    panorama = noise(16, 88)
    view = prepare_street(panorama, 0.0, (0.0, 1.0), 16, 88)
    np.testing.assert_array_equal(view.numpy().transpose(1, 2, 0), panorama)


@pytest.mark.parametrize("size", [33, 40])
def test_satellite_is_the_polar_formula_rounded(size: int) -> None:
    tile = noise(size, size)
    assert_rounded(prepare_satellite(tile, 16, 40), polar_by_hand(tile, 16, 40))


def test_polar_is_resized_only() -> None:
    polar = noise(32, 176)
    assert_rounded(prepare_polar(polar, 16, 88), mean_by_hand(polar.astype(float), 16, 88))


def test_read_only_pixels_are_accepted() -> None:
    panorama = noise(16, 88)
    panorama.flags.writeable = False
    prepare_street(panorama, 0.0, (0.0, 1.0), 8, 40)


@pytest.mark.parametrize("pixels", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3))])
def test_other_arrays_are_refused(pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(ViewError, match="expected h w 3, uint8"):
        prepare_satellite(pixels, 8, 16)


def test_parameters_out_of_range_are_refused() -> None:
    with pytest.raises(ViewError, match="heading=nan"):
        prepare_street(noise(16, 88), float("nan"), (0.0, 1.0), 8, 40)
    with pytest.raises(ViewError, match=r"panorama_rows=\[0\.9, 0\.2\]"):
        prepare_street(noise(16, 88), 0.0, (0.9, 0.2), 8, 40)
    with pytest.raises(ViewError, match="square"):
        prepare_satellite(noise(16, 88), 8, 40)


def test_the_models_range_is_converted_to_pixels() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    torch.testing.assert_close(to_pixels(pixels / 127.5 - 1), pixels)
    assert to_pixels(torch.tensor([-1.1, 1.1])).tolist() == [0, 255]


def test_preparation_of_a_data_set_and_serving_see_the_same_pixels() -> None:
    tile, panorama = noise(40, 40), noise(60, 120)
    polar, street = prepare_pair(
        Pair(tile, panorama), Record("a", "test", heading=30.0), ViewGeometry(32, 72, (0.2, 0.8))
    )
    served = ViewGeometry(32, 72, (0.2, 0.8))
    np.testing.assert_array_equal(served.satellite(tile).permute(1, 2, 0), polar)
    np.testing.assert_array_equal(served.street(panorama, heading=30.0).permute(1, 2, 0), street)


class TestViewGeometry:
    bare = ViewGeometry(32, 176)

    def test_a_sphere_keeps_its_middle_half_and_a_wider_panorama_is_whole(self) -> None:
        sphere, cropped = noise(88, 176), noise(44, 176)
        np.testing.assert_array_equal(self.bare.street(sphere), prepare_street(sphere, 0, (0.25, 0.75), 32, 176))
        np.testing.assert_array_equal(self.bare.street(cropped), prepare_street(cropped, 0, (0, 1), 32, 176))

    def test_the_data_sets_rows_come_before_the_shape_and_explicit_rows_before_both(self) -> None:
        sphere, dataset = noise(88, 176), ViewGeometry(32, 176, (0.1, 0.6))
        np.testing.assert_array_equal(dataset.street(sphere), prepare_street(sphere, 0, (0.1, 0.6), 32, 176))
        explicit = dataset.street(sphere, heading=90, rows=(0.0, 0.5))
        np.testing.assert_array_equal(explicit, prepare_street(sphere, 90, (0.0, 0.5), 32, 176))

    def test_satellite_layout_goes_by_aspect_ratio(self) -> None:
        tile, polar = noise(40, 40), noise(64, 352)
        np.testing.assert_array_equal(self.bare.satellite(tile), prepare_satellite(tile, 32, 176))
        np.testing.assert_array_equal(self.bare.satellite(polar), prepare_polar(polar, 32, 176))

    def test_an_explicit_satellite_layout(self) -> None:
        tile = noise(40, 40)
        np.testing.assert_array_equal(self.bare.satellite(tile, "polar"), prepare_polar(tile, 32, 176))
        with pytest.raises(ViewError, match=r"64 x 32 .*square north-up tile$"):
            self.bare.satellite(noise(32, 64), "north-up")

    def test_a_square_model_still_takes_square_tiles_as_north_up(self) -> None:
        tile, square = noise(40, 40), ViewGeometry(32, 32)
        np.testing.assert_array_equal(square.satellite(tile), prepare_satellite(tile, 32, 32))

    def test_wrong_shapes_are_named(self) -> None:
        with pytest.raises(ViewError, match=r"60 x 40 pixels .* or polar like 176 x 32"):
            self.bare.satellite(noise(40, 60))
        with pytest.raises(ViewError, match=r"64 x 48 pixels .* twice as wide"):
            self.bare.street(noise(48, 64))
        with pytest.raises(ViewError, match="at least 16"):
            self.bare.street(noise(8, 44))
        with pytest.raises(ViewError, match="layout='north'"):
            self.bare.satellite(noise(40, 40), "north")  # type: ignore[arg-type]

    def test_a_panorama_of_the_models_own_shape_is_taken_whole(self) -> None:
        square = ViewGeometry(32, 40)
        panorama = noise(64, 80)
        np.testing.assert_array_equal(square.street(panorama), prepare_street(panorama, 0, (0, 1), 32, 40))

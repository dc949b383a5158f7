"""The two views of one scene: bearings, perspective and occlusion, on land that each test builds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch

from s2s_ray.city import surface
from s2s_ray.city.aerial import render_tile
from s2s_ray.city.camera import EYE_M
from s2s_ray.city.contents import Contents
from s2s_ray.city.light import Light, draw_light
from s2s_ray.city.noise import generator
from s2s_ray.city.panorama import render_panorama
from s2s_ray.city.scene import Atlas
from s2s_ray.city.things import BLANK, FLAT, PATCH, ROUND, SOLID, SPOT, TREE
from s2s_ray.city.traffic import Boxes, no_traffic
from s2s_ray.geo.polar import polar_transform

EYE_AT = (1234.5, -678.25)
HEIGHT, WIDTH = 40, 144
PIXELS, METRES = 96, 60.0


@dataclass
class Meadow:
    """Grass with the things of a test; a road may lead away in one direction."""

    solids: list[tuple[Any, ...]] = field(default_factory=list)
    trees: list[tuple[Any, ...]] = field(default_factory=list)
    road: float | None = None

    def ground(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        codes = np.full((y.size, x.size), surface.GRASS, np.uint8)
        if self.road is not None:
            dx, dy = x - EYE_AT[0], y - EYE_AT[1]
            east, north = np.sin(np.deg2rad(self.road)), np.cos(np.deg2rad(self.road))
            codes[(np.abs(dx * north - dy * east) < 2.0) & (dx * east + dy * north > 8)] = surface.MARKING
        return codes

    def things(self, west: float, south: float, size: float) -> Contents:
        return Contents(np.array(self.solids, SOLID), np.array(self.trees, TREE), np.zeros(0, PATCH), np.zeros(0, SPOT))


def offset(bearing: float, distance: float) -> tuple[float, float]:
    angle = np.deg2rad(bearing)
    return EYE_AT[0] + distance * np.sin(angle), EYE_AT[1] + distance * np.cos(angle)


def box(bearing: float, distance: float, half: tuple[float, float], height: float) -> tuple[Any, ...]:
    """A box whose side a faces the camera's direction."""
    angle = np.deg2rad(90 - bearing)
    place = (*offset(bearing, distance), np.cos(angle), np.sin(angle))
    return (*place, *half, height, 0.0, 3.0, 3.0, FLAT, BLANK, 7, (0.9, 0.1, 0.1), (0.9, 0.1, 0.1))


def tree(bearing: float, distance: float, high: float = 7.0) -> tuple[Any, ...]:
    return (*offset(bearing, distance), 2.0, 3.0, high, 1.0, ROUND, 11)


@pytest.fixture
def overcast() -> Light:
    """Light without shadows, so that a thing changes the picture only in its own pixels."""
    return replace(draw_light(generator(5)), direct=np.zeros(3, np.float32), haze_m=1e6)


def views(meadow: Meadow, light: Light, heading: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Tile and panorama, as signed integers."""
    scene = Atlas(meadow, 0.25).scene(*EYE_AT, 102.0)
    tile = render_tile(scene, light, no_traffic(), *EYE_AT, PIXELS, METRES)
    street = render_panorama(scene, light, no_traffic(), *EYE_AT, HEIGHT, WIDTH, heading=heading, fine=2)
    assert tile.shape == (PIXELS, PIXELS, 3)
    assert street.shape == (HEIGHT, WIDTH, 3)
    assert tile.dtype == street.dtype == np.uint8
    return tile.astype(int), street.astype(int)


def changed(image: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.abs(image - other).max(-1) > 12


def middle_column(mask: np.ndarray) -> float:
    """Circular mean of the columns of a mask."""
    turns = np.exp(2j * np.pi * np.nonzero(mask)[1] / mask.shape[1])
    return float(np.angle(turns.mean()) / (2 * np.pi) * mask.shape[1] % mask.shape[1])


def columns_apart(a: float, b: float) -> float:
    return abs((a - b + WIDTH / 2) % WIDTH - WIDTH / 2)


def polar(tile: np.ndarray) -> np.ndarray:
    pixels = torch.from_numpy(tile).permute(2, 0, 1).double()
    return polar_transform(pixels, HEIGHT, WIDTH).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("bearing", [0.0, 37.0, 90.0, 180.0, 251.0, 305.0])
@pytest.mark.parametrize("kind", ["tower", "tree", "road"])
def test_a_lone_thing_is_in_the_same_column_of_panorama_and_polar_tile(
    bearing: float, kind: str, overcast: Light
) -> None:
    meadow = {
        "tower": Meadow(solids=[box(bearing, 18.0, (2.0, 2.0), 12.0)]),
        "tree": Meadow(trees=[tree(bearing, 18.0)]),
        "road": Meadow(road=bearing),
    }[kind]
    bare, with_it = views(Meadow(), overcast), views(meadow, overcast)
    expected = (bearing - 180) / 360 * WIDTH % WIDTH
    assert columns_apart(middle_column(changed(bare[1], with_it[1])), expected) < 0.7
    assert columns_apart(middle_column(changed(polar(bare[0]), polar(with_it[0]))), expected) < 1.0


def test_the_heading_turns_the_panorama(overcast: Light) -> None:
    meadow = Meadow(solids=[box(70.0, 15.0, (3.0, 2.0), 9.0)])
    north, east = views(meadow, overcast)[1], views(meadow, overcast, heading=90.0)[1]
    difference = np.abs(np.roll(north, -WIDTH // 4, axis=1) - east)
    assert (difference > 12).mean() < 0.01
    assert (np.abs(north - east) > 12).mean() > 0.05


@pytest.mark.parametrize("distance", [7.0, 16.0, 33.0])
def test_a_wall_spans_the_angles_of_its_outline(distance: float, overcast: Light) -> None:
    half, height = 2.5, 6.0
    mask = changed(
        views(Meadow(), overcast)[1], views(Meadow(solids=[box(0.0, distance + 1, (1.0, half), height)]), overcast)[1]
    )
    rows = np.flatnonzero(mask[:, WIDTH // 2])
    top, base = 45 - 90 * rows[0] / HEIGHT, 45 - 90 * (rows[-1] + 1) / HEIGHT
    pixel = 90 / HEIGHT
    assert base == pytest.approx(np.rad2deg(np.arctan(-EYE_M / distance)), abs=pixel)
    assert top == pytest.approx(np.rad2deg(np.arctan((height - EYE_M) / distance)), abs=pixel)
    columns = np.count_nonzero(mask.any(0)) * 360 / WIDTH
    assert columns == pytest.approx(2 * np.rad2deg(np.arctan(half / distance)), abs=2 * 360 / WIDTH)


def test_a_wall_hides_what_is_lower_behind_it(overcast: Light) -> None:
    wall, low, high = (
        box(20.0, 8.0, (0.3, 7.0), 4.0),
        box(20.0, 20.0, (2.0, 2.0), 5.0),
        box(20.0, 20.0, (2.0, 2.0), 15.0),
    )
    bare = views(Meadow(), overcast)[1]
    walled = views(Meadow(solids=[wall]), overcast)[1]
    assert changed(bare, views(Meadow(solids=[low]), overcast)[1]).any()
    assert not changed(walled, views(Meadow(solids=[wall, low]), overcast)[1]).any()
    above = changed(walled, views(Meadow(solids=[wall, high]), overcast)[1])
    crest = 45 - np.rad2deg(np.arctan((4.0 - EYE_M) / 7.7))
    assert above.any()
    assert np.nonzero(above)[0].max() <= crest * HEIGHT / 90 + 1
    grown = Meadow(solids=[wall], trees=[tree(20.0, 20.0, high=14.0)])
    assert np.nonzero(changed(walled, views(grown, overcast)[1]))[0].max() <= crest * HEIGHT / 90 + 1


def test_a_vehicle_hides_the_ground_behind_it_and_is_in_the_tile(overcast: Light) -> None:
    scene = Atlas(Meadow(), 0.25).scene(*EYE_AT, 102.0)
    x, y = offset(90.0, 6.0)
    one, red = np.ones(1), np.array([[0.9, 0.1, 0.1]], np.float32)
    van = Boxes(one * x, one * y, one, 0 * one, 0.5 * one, 2 * one, 0 * one, 2.5 * one, red, np.zeros(1, bool))
    bare, with_it = (
        (
            render_tile(scene, overcast, traffic, *EYE_AT, PIXELS, METRES).astype(int),
            render_panorama(scene, overcast, traffic, *EYE_AT, HEIGHT, WIDTH).astype(int),
        )
        for traffic in (no_traffic(), van)
    )
    mask = changed(bare[1], with_it[1])
    assert columns_apart(middle_column(mask), WIDTH * 0.75) < 0.7
    base = 45 - 90 * (np.nonzero(mask)[0].max() + 1) / HEIGHT
    assert base == pytest.approx(np.rad2deg(np.arctan(-EYE_M / 5.5)), abs=90 / HEIGHT)
    assert columns_apart(middle_column(changed(polar(bare[0]), polar(with_it[0]))), WIDTH * 0.75) < 0.7


def test_a_shadow_falls_away_from_the_sun_as_long_as_it_should() -> None:
    sun = np.array([0.0, -np.cos(np.pi / 4), np.sin(np.pi / 4)], np.float32)
    light = replace(draw_light(generator(5)), sun=sun)
    pole = Meadow(solids=[box(0.0, 5.0, (1.0, 1.0), 8.0)])
    dark = changed(views(Meadow(), light)[0], views(pole, light)[0])
    rows, columns = np.nonzero(dark)
    north = (PIXELS / 2 - rows) * METRES / PIXELS
    assert north.min() == pytest.approx(4.0, abs=1.3)
    assert north.max() == pytest.approx(6.0 + 8.0, abs=1.3)
    assert abs(columns.mean() - PIXELS / 2) < 1.5

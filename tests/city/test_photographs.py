"""Photographs of the procedural city by its own camera, as the geometry projects them to the model's view."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from s2s_ray.city.city import City
from s2s_ray.city.scene import Atlas
from s2s_ray.geo.images import Pixels
from s2s_ray.geo.query import Query
from s2s_ray.geo.views import ViewGeometry
from tests.support.city_camera import fine_panorama, photograph

SHAPE = ViewGeometry(45, 180, (0.0, 1.0))  # pixels of two degrees


@pytest.fixture(scope="module")
def panorama() -> Pixels:
    return fine_panorama(Atlas(City(3, 0.3), 0.5).scene(-500.0, 20.0, 130.0), -500.0, 20.0)


def blurred(pixels: torch.Tensor) -> torch.Tensor:
    """Average 3 x 3 pixels, so that what differs by a fraction of a pixel compares."""
    return F.avg_pool2d(pixels.float(), 3, 1, 1)


@pytest.mark.parametrize(
    ("fov", "heading", "pitch", "roll"),
    [(90, 0, 0, 0), (60, 200, 0, 0), (70, 75, 12, 0), (65, 300, -9, 0), (60, 135, 0, 14), (50, 20, 10, -8)],
)
def test_a_photograph_lies_where_the_panorama_has_it(
    panorama: Pixels, fov: float, heading: float, pitch: float, roll: float
) -> None:
    photo = photograph(panorama, (160, 240), fov, heading, pitch, roll)
    view = SHAPE.of_query(photo, SHAPE.settle(Query(heading, fov, "rectilinear", pitch, roll), photo))
    assert view.seen is not None
    whole = SHAPE.street(panorama)
    inside = -F.max_pool2d(-view.seen[None].float(), 3, 1, 1)[0] > 0.5
    assert inside.sum() > 200

    def difference(columns: int, rows: int) -> float:
        moved = blurred(whole.roll((rows, columns), (1, 2)))
        return float((blurred(view.pixels) - moved).abs()[:, inside].mean())

    assert difference(0, 0) < 1
    assert all(difference(*shift) > 3 * difference(0, 0) for shift in ((-1, 0), (1, 0), (0, -1), (0, 1)))

"""Parameters of the client: NumPy's numbers are numbers, and each refusal names its parameter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s2s_ray.client import Client, parameters
from s2s_ray.errors import InputError
from s2s_ray.geo.prior import Box, Circle, FileCircle
from s2s_ray.geo.query import Query

NUMBERS = np.array([48.1372, 11.5756], np.float64)


def test_the_numbers_of_numpy_are_sent_as_numbers() -> None:
    latitude, longitude = NUMBERS
    assert parameters.area(Circle(latitude, longitude, np.float32(2000))) == {"near": "48.1372,11.5756,2000.0"}
    box = Box(np.int64(11), NUMBERS[0], np.array(12), np.array(49.5))
    assert parameters.area(box) == {"bbox": "11.0,48.1372,12.0,49.5"}
    query = Query(np.float32(90), np.float64(70), pitch=np.int8(-3), rows=(np.float64(0.25), np.array(0.75)))  # type: ignore[arg-type]
    assert parameters.picture(query) == {"heading": "90.0", "fov": "70.0", "pitch": "-3.0", "rows": "0.25,0.75"}
    query = Query(np.int32(-7), rows=np.array([0.25, 0.75]))  # type: ignore[arg-type]
    assert parameters.picture(query) == {"heading": "-7.0", "rows": "0.25,0.75"}
    assert parameters.true_position(NUMBERS) == {"true": "48.1372,11.5756"}  # type: ignore[arg-type]
    for five in (5, np.int64(5), np.uint8(5), np.array(5)):
        assert parameters.count(five) == {"k": "5"}  # type: ignore[arg-type]
    assert parameters.timeout(np.float32(2)) == 2.0


def test_what_the_service_decides_anyway_is_not_sent() -> None:
    """An earlier version of the service does not know these parameters."""
    assert parameters.picture(Query()) == {}
    assert parameters.picture(Query(5, "auto")) == {"heading": "5.0", "fov": "auto"}  # without it, heading is alone
    full = Query("unknown", 90, "cylindrical", -2, 3)
    assert parameters.picture(full) == {
        "heading": "unknown", "fov": "90.0", "projection": "cylindrical", "pitch": "-2.0", "roll": "3.0"
    }  # fmt: skip
    assert parameters.area(FileCircle()) == {"prior": "file,2000.0"}
    assert FileCircle.parse(parameters.area(FileCircle(0.1))["prior"]) == FileCircle(0.1)


PANORAMA = np.zeros((4, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"k": True}, "k=True"),
        ({"k": np.True_}, "k="),
        ({"k": np.array(True)}, "k="),
        ({"k": 2.0}, "k=2.0"),
        ({"k": np.float64(2)}, "k="),
        ({"k": "2"}, "k='2'"),
        ({"k": 0}, "k=0: expected at least 1"),
        ({"k": np.int64(-3)}, "k=-3: expected at least 1"),
        ({"heading": True}, "heading=True"),
        ({"heading": "90"}, "heading='90'"),
        ({"heading": np.nan}, "heading=nan"),
        ({"heading": float("inf")}, "heading=inf"),
        ({"heading": 361}, "heading=361: expected -360 to 360"),
        ({"heading": [1.0]}, "heading="),
        ({"rows": (0.8, 0.2)}, "rows=0.8,0.2: expected 0 <= first < last <= 1"),
        ({"rows": (0.2, True)}, "rows"),
        ({"rows": (0.2,)}, "rows"),
        ({"rows": "0.2,0.8"}, "rows="),
        ({"rows": 0.5}, "rows=0.5"),
        ({"rows": (np.nan, 1)}, "rows"),
        ({"true": (91, 0)}, "true: latitude 91"),
        ({"true": (1.0, 2.0, 3.0)}, "true="),
        ({"true": (np.True_, 2.0)}, "true"),
        ({"prior": (48.0, 11.0, 100.0)}, "prior="),
        ({"prior": "48,11,100"}, "prior='48,11,100'"),
    ],
)
def test_parameters_are_refused_by_name_before_anything_is_sent(given: dict[str, Any], words: str) -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(InputError) as error:
        client.localize([PANORAMA], **given)
    assert words in str(error.value)


def test_areas_of_truth_values_are_refused() -> None:
    with pytest.raises(InputError, match="radius_m"):
        Circle(48.0, 11.0, True)
    with pytest.raises(InputError, match="west"):
        Box(np.True_, 0, 1, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), True, "5", None])
def test_a_time_limit_that_is_none(timeout_s: Any) -> None:
    with pytest.raises(InputError, match="timeout_s="):
        Client("http://127.0.0.1:9", timeout_s=timeout_s)


def test_images_of_any_kind(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(b"content")
    for image in (path, str(path), b"content", bytearray(b"content"), memoryview(b"content")):
        assert parameters.encoded(image) == b"content"
    assert len(parameters.listed(np.zeros((2, 4, 8, 3), np.uint8))) == 2
    assert parameters.listed(image for image in (b"a", b"b")) == [b"a", b"b"]


@pytest.mark.parametrize("images", ["panorama.jpg", Path("panorama.jpg"), b"bytes", PANORAMA, 5, None])
def test_one_image_is_not_a_sequence(images: Any) -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(InputError, match="images: expected a sequence"):
        client.embed_street(images)


@pytest.mark.parametrize("image", [5, None, object(), np.zeros((4, 8), np.uint8), np.zeros((4, 8, 3))])
def test_what_is_no_image(image: Any) -> None:
    with pytest.raises(InputError, match="image"):
        parameters.encoded(image)


@pytest.mark.parametrize("layout", ["sideways", "", None, 5])
def test_a_layout_that_does_not_exist(layout: Any) -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(InputError, match="layout="):
        client.embed_satellite([PANORAMA], layout=layout)


@pytest.mark.parametrize("url", ["http://host/?a=1", "http://host#x", "http://ho st", "http://host:0", 5, None])
def test_what_is_no_url_of_a_service(url: Any) -> None:
    with pytest.raises(InputError, match="url="):
        Client(url)


@pytest.mark.parametrize("release", ["", ".", "..", None])
def test_what_is_no_release(release: Any) -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(InputError, match="release="):
        client.promote(release)

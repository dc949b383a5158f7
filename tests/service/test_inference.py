"""Embedding, synthesis and localisation over fake deployments: responses in every media type."""

from __future__ import annotations

import base64
import dataclasses
import io
import math

import numpy as np
import pytest
from PIL import Image

from s2s_ray.geo.images import decode
from s2s_ray.geo.prior import Box, Circle, distances_m
from s2s_ray.service.http import responses
from s2s_ray.service.schemas import finite
from tests.support.fake_service import GEOMETRY, RELEASE, Fakes, flat
from tests.support.http_requests import form, post, sentence

KINDS = ("match", "fix", "radius", "peak")


def test_street_embedding(fakes: Fakes) -> None:
    panorama = flat(40, 100)
    response = post(fakes, "/v1/embed/street", panorama, params={"heading": 90, "rows": "0.1,0.6"})
    assert response.status_code == 200
    assert response.json() == {
        "release": RELEASE.id,
        "query": {
            "heading": 90.0,
            "heading_origin": "given",
            "heading_spread": 0.0,
            "fov": 360.0,
            "fov_origin": "assumed",
            "projection": "equirectangular",
            "projection_origin": "assumed",
            "pitch": 0.0,
            "roll": 0.0,
            "position": None,
            "warnings": [],
        },
        "descriptor": [1.0, 0.0, 0.0, 0.0],
    }
    [(view, seen, turned)] = fakes.street.calls
    np.testing.assert_array_equal(view, GEOMETRY.street(panorama, 90, (0.1, 0.6)))
    assert (seen, turned) == (None, False)


def test_json_descriptors_equal_those_of_the_model_exactly(fakes: Fakes) -> None:
    descriptor = np.array([0.1, -1e-38, 1 / 3, np.nextafter(np.float32(0.5), np.float32(1))], np.float32)
    fakes.street.function = lambda *_args: descriptor
    response = post(fakes, "/v1/embed/street", flat(40, 100))
    assert response.headers["content-type"] == "application/json"
    np.testing.assert_array_equal(np.array(response.json()["descriptor"], np.float32), descriptor)
    assert b"[0.1," in response.content, "no more digits than float32 needs"


@pytest.mark.parametrize("accept", ["application/json", "application/x-npy"])
def test_a_descriptor_that_is_not_finite_is_an_error(fakes: Fakes, accept: str) -> None:
    fakes.street.function = lambda *_args: np.array([0.5, np.nan, 0, 0], np.float32)
    response = post(fakes, "/v1/embed/street", flat(40, 100), headers={"accept": accept})
    assert response.status_code == 500
    assert response.headers["x-request-id"] in sentence(response)


@pytest.mark.parametrize("layout", [None, "auto", "north-up", "polar"])
def test_satellite_embedding(fakes: Fakes, layout: str | None) -> None:
    tile = flat(50, 50)
    response = post(fakes, "/v1/embed/satellite", tile, params={"layout": layout} if layout else {})
    assert response.json() == {"release": RELEASE.id, "descriptor": [0.0, 1.0, 0.0, 0.0]}
    [(view,)] = fakes.satellite.calls
    expected = GEOMETRY.satellite(tile, "polar" if layout == "polar" else "north-up")
    np.testing.assert_array_equal(view, expected)


@pytest.mark.parametrize(
    ("accept", "kind", "encoding"),
    [
        (None, "image/png", "PNG"),
        ("image/jpeg", "image/jpeg", "JPEG"),
        ("image/webp, image/png;q=0.5", "image/webp", "WEBP"),
    ],
)
def test_synthesis_by_accept(fakes: Fakes, accept: str | None, kind: str, encoding: str) -> None:
    response = post(fakes, "/v1/synthesize", flat(50, 50), headers={"accept": accept} if accept else {})
    assert (response.status_code, response.headers["content-type"]) == (200, kind)
    assert Image.open(io.BytesIO(response.content)).format == encoding
    expected = np.asarray(GEOMETRY.satellite(flat(50, 50))).transpose(1, 2, 0)
    error = np.abs(decode(response.content).astype(int) - expected.astype(int)).mean()
    assert error < 6 if encoding == "JPEG" else error == 0


def test_localisation(fakes: Fakes) -> None:
    response = post(fakes, "/v1/localize", flat(40, 100), params={"k": 2})
    assert response.status_code == 200
    assert response.json()["release"] == RELEASE.id
    unknown = {"longitude": None, "distance_m": None, "heading": 15.0}
    assert response.json()["matches"] == [
        {"rank": 1, "id": "tile-1", "latitude": 50.0, **unknown, "descriptor_distance": 0.1},
        {"rank": 2, "id": "tile-2", "latitude": 50.0, **unknown, "longitude": 7.0, "descriptor_distance": 0.2},
    ]
    [([picture], k, prior, surface)] = fakes.search.calls
    assert (picture.descriptors.tolist(), k, prior, surface) == ([[1, 0, 0, 0]], 2, None, False)
    assert (picture.headings.tolist(), picture.heading_spread, picture.fov) == ([0.0], 0.0, 360.0)


def test_metres_from_the_true_position(fakes: Fakes) -> None:
    response = post(fakes, "/v1/localize", flat(40, 100), params={"k": 2, "true": "50.001,7.002"})
    unknown, known = response.json()["matches"]
    assert unknown["distance_m"] is None
    assert known["distance_m"] == pytest.approx(math.hypot(111.23, 143.4), abs=0.1)  # of latitude, of longitude


@pytest.mark.parametrize(
    ("query", "prior"),
    [("near=48,11.5,2000", Circle(48, 11.5, 2000)), ("bbox=170,-10,-170,10", Box(170, -10, -170, 10))],
)
def test_the_prior_reaches_the_search(fakes: Fakes, query: str, prior: Circle | Box) -> None:
    assert post(fakes, f"/v1/localize?{query}", flat(40, 100)).status_code == 200
    assert fakes.search.calls[0][2] == prior


def test_geojson(fakes: Fakes) -> None:
    headers = {"accept": "application/geo+json"}
    response = post(fakes, "/v1/localize", flat(40, 100), params={"k": 2, "true": "50,7"}, headers=headers)
    assert response.headers["content-type"] == "application/geo+json"
    tree = response.json()
    assert (tree["type"], tree["release"]) == ("FeatureCollection", RELEASE.id)
    features = {kind: [one for one in tree["features"] if one["properties"]["kind"] == kind] for kind in KINDS}
    assert [len(found) for found in features.values()] == [2, 1, 1, 2]
    point = {"type": "Point", "coordinates": [7.0, 50.0]}
    assert [feature["geometry"] for feature in features["match"]] == [None, point]
    assert features["match"][1]["properties"]["id"] == "tile-2"
    assert features["match"][1]["properties"]["distance_m"] == pytest.approx(0, abs=1e-6)
    [fix], [radius] = features["fix"], features["radius"]
    assert fix["geometry"] == point
    expected = {"confidence": 0.7, "radius_m": 9.5, "heading": 200.0, "heading_spread": 8.0, "in_region": True}
    assert expected.items() <= fix["properties"].items()
    assert radius["properties"] == {**fix["properties"], "kind": "radius"}
    [ring] = radius["geometry"]["coordinates"]
    longitudes, latitudes = np.array(ring).T
    np.testing.assert_allclose(distances_m(50, 7, latitudes, longitudes), 9.5, rtol=1e-6)
    assert ring[0] == ring[-1]
    assert [peak["properties"]["probability"] for peak in features["peak"]] == [0.8, 0.2]
    assert tree["queries"][0]["query"]["heading"] == 0.0


@pytest.mark.parametrize("images", [1, 3])
def test_forms_get_a_result_for_each_image_by_name(fakes: Fakes, images: int) -> None:
    pixels = [flat(40, 100 + number) for number in range(images)]
    tree = form(fakes, "/v1/localize", *pixels, params={"k": 1, "heading": 0}).json()
    assert [(one["name"], len(one["matches"])) for one in tree["images"]] == [(f"{i}.png", 1) for i in range(images)]
    views = [view for view, _seen, _turned in fakes.street.calls]
    for image, view in zip(pixels, views, strict=True):
        np.testing.assert_array_equal(view, GEOMETRY.street(image))
    tree = form(fakes, "/v1/embed/satellite", *[flat(50, 50)] * images).json()
    assert [one["descriptor"] for one in tree["images"]] == [[0.0, 1.0, 0.0, 0.0]] * images
    tree = form(fakes, "/v1/localize", *pixels, headers={"accept": responses.GEOJSON}, params={"k": 1}).json()
    matches = [feature for feature in tree["features"] if feature["properties"]["kind"] == "match"]
    assert [feature["properties"]["query"] for feature in matches] == [f"{i}.png" for i in range(images)]
    assert {stage: fakes.recorder.stages[stage] for stage in ("model", "search")} == {"model": 0.25, "search": 0.25}
    assert fakes.recorder.requests[0] == ("/v1/localize", 200, images)


@pytest.mark.parametrize("several", [False, True])
def test_descriptors_as_npy(fakes: Fakes, several: bool) -> None:
    headers = {"accept": "application/x-npy"}
    if several:
        response = form(fakes, "/v1/embed/street", flat(40, 100), flat(40, 100), headers=headers)
    else:
        response = post(fakes, "/v1/embed/street", flat(40, 100), headers=headers)
    assert response.headers["content-type"] == "application/x-npy"
    descriptors = np.load(io.BytesIO(response.content), allow_pickle=False)
    assert (descriptors.shape, descriptors.dtype) == ((1 + several, 4), np.float32)


def test_synthesis_in_json_has_the_polar_image(fakes: Fakes) -> None:
    expected = np.asarray(GEOMETRY.satellite(flat(50, 50))).transpose(1, 2, 0)
    one = post(fakes, "/v1/synthesize", flat(50, 50), headers={"accept": "application/json"}).json()
    two = form(fakes, "/v1/synthesize", flat(50, 50), flat(50, 50)).json()
    assert [len(tree["images"]) for tree in (one, two)] == [1, 2]
    for image in (*one["images"], *two["images"]):
        for picture in (image["polar"], image["street"]):
            np.testing.assert_array_equal(decode(base64.b64decode(picture)), expected)


def test_k_is_ten_by_default(fakes: Fakes) -> None:
    assert len(post(fakes, "/v1/localize", flat(40, 100)).json()["matches"]) == 10


def test_a_release_without_a_generator_synthesises_nothing(fakes: Fakes) -> None:
    description = RELEASE.description.model_copy(update={"synthesizes": False})
    fakes.current = dataclasses.replace(RELEASE, description=description)
    response = post(fakes, "/v1/synthesize", flat(50, 50))
    assert response.status_code == 409
    assert response.json() == {
        "error": f"Release {RELEASE.id} was trained without a generator: it synthesises no views."
    }
    assert post(fakes, "/v1/embed/satellite", flat(50, 50)).status_code == 200


def test_metrics_that_json_cannot_represent_become_null() -> None:
    assert finite({"a": float("nan"), "b": [1.0, float("inf")], "c": "x"}) == {"a": None, "b": [1.0, None], "c": "x"}

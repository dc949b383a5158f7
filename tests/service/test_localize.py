"""Localisation over fake deployments: how pictures are understood, and the fixes and queries in the answers."""

from __future__ import annotations

import dataclasses
import io
import logging
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from s2s_ray.geo.images import encode
from s2s_ray.geo.metadata import COMPASS_SPREAD, MAGNETIC_SPREAD
from s2s_ray.geo.prior import Circle, distances_m
from s2s_ray.service.localizations import ManyLocalizations, OneLocalization, PlaceLocalization, TileCollection
from s2s_ray.service.schemas import ManyEmbeddings, OneEmbedding
from tests.support.fake_service import FIX, GEOMETRY, RELEASE, Fakes, flat, match
from tests.support.http_requests import post, request, sentence
from tests.support.photographs import FOCAL_MM, FOV, photograph

PANORAMA = flat(40, 100)
BETWEEN_45_DEGREES = ((72 - 45) / 144, (72 + 45) / 144)  # rows of a picture that is 144 degrees high
PHOTO = flat(60, 80)
PLACE = (48.137154, 11.576124)


def send(fakes: Fakes, *files: bytes, path: str = "/v1/localize", **options: Any) -> httpx2.Response:
    """Send one file as the body, or several as a form."""
    if len(files) == 1:
        return request(fakes, "POST", path, content=files[0], headers=options.pop("headers", {}), **options)
    parts = [("image", (f"{number}.jpg", file)) for number, file in enumerate(files)]
    return request(fakes, "POST", path, files=parts, **options)


def without_default(fakes: Fakes) -> None:
    """Let the release say no default heading."""
    geometry = dataclasses.replace(GEOMETRY, default_heading=None)
    fakes.current = dataclasses.replace(RELEASE, geometry=geometry)


def searched(fakes: Fakes) -> Any:
    """Return the only picture of the only search."""
    [([picture], _k, _prior, _surface)] = fakes.search.calls
    return picture


@pytest.mark.parametrize("by_parameter", [False, True])
def test_an_unknown_heading_is_searched_and_reported_as_estimated(fakes: Fakes, by_parameter: bool) -> None:
    if by_parameter:
        response = post(fakes, "/v1/localize", PANORAMA, params={"heading": "unknown"})
    else:
        without_default(fakes)
        response = post(fakes, "/v1/localize", PANORAMA)
    tree = response.json()
    OneLocalization.model_validate(tree, strict=True)
    known = {key: tree["query"][key] for key in ("heading", "heading_origin", "heading_spread", "warnings")}
    assert known == {"heading": 200.0, "heading_origin": "estimated", "heading_spread": 8.0, "warnings": []}
    [(view, seen, turned)] = fakes.street.calls
    np.testing.assert_array_equal(view, GEOMETRY.street(PANORAMA, 0.0, BETWEEN_45_DEGREES))
    assert (seen, turned) == (None, True)
    picture = searched(fakes)
    assert (picture.heading, picture.headings.tolist()) == (None, [40.0 * step for step in range(9)])
    assert fakes.recorder.headings == [None]


def test_the_default_heading_of_the_release_is_the_meaning_of_auto(fakes: Fakes) -> None:
    fakes.current = dataclasses.replace(RELEASE, geometry=dataclasses.replace(GEOMETRY, default_heading=30.0))
    query = post(fakes, "/v1/localize", PANORAMA, params={"heading": "auto"}).json()["query"]
    assert (query["heading"], query["heading_origin"], query["heading_spread"]) == (30.0, "release", 0.0)
    np.testing.assert_array_equal(fakes.street.calls[0][0], GEOMETRY.street(PANORAMA, 30.0, BETWEEN_45_DEGREES))


@pytest.mark.parametrize(("reference", "spread"), [("T", COMPASS_SPREAD), ("M", MAGNETIC_SPREAD)])
def test_a_bearing_in_the_file_is_searched_within_its_spread(fakes: Fakes, reference: str, spread: float) -> None:
    file = photograph(PHOTO, heading=95.0, reference=reference, focal_mm=FOCAL_MM)
    tree = send(fakes, file).json()
    query = tree["query"]
    assert (query["heading"], query["heading_origin"], query["heading_spread"]) == (95.0, "file", spread)
    assert (query["fov_origin"], query["projection"]) == ("file", "rectilinear")
    assert query["fov"] == pytest.approx(FOV, abs=0.01)
    assert ("magnetic" in " ".join(query["warnings"])) == (reference == "M")
    [(_, seen, turned)] = fakes.street.calls
    assert turned
    assert 0 < seen.mean() < FOV / 360 + 1 / seen.shape[1]
    picture = searched(fakes)
    away = (picture.headings - 95 + 180) % 360 - 180
    assert 0 in away
    assert np.abs(away).max() <= max(3 * spread, 40)
    assert picture.heading == 95.0
    assert fakes.recorder.headings == ["file"]


def test_a_given_heading_is_not_searched(fakes: Fakes) -> None:
    tree = send(fakes, photograph(PHOTO, heading=95.0, focal_mm=FOCAL_MM), params={"heading": "-90"}).json()
    assert (tree["query"]["heading"], tree["query"]["heading_origin"]) == (270.0, "given")
    assert [call[2] for call in fakes.street.calls] == [False]
    assert (searched(fakes).headings.tolist(), searched(fakes).heading_spread) == ([270.0], 0.0)


def test_a_heading_given_alone_means_the_whole_horizon(fakes: Fakes) -> None:
    sweep = np.sort(np.random.default_rng(0).integers(0, 256, (40, 120, 3), dtype=np.uint8), axis=1)
    alone = post(fakes, "/v1/localize", sweep, params={"heading": "135"}).json()["query"]
    assert (alone["fov"], alone["fov_origin"]) == (360.0, "assumed")
    assert ["ends do not meet" in warning for warning in alone["warnings"]] == [True]
    assert post(fakes, "/v1/localize", sweep, params={"heading": "135", "fov": "auto"}).status_code == 422


def test_transparent_pixels_of_a_picture_are_unseen(fakes: Fakes) -> None:
    shown = np.zeros((60, 80), bool)
    shown[:, :40] = True
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([PHOTO, shown * np.uint8(255)])).save(buffer, "PNG")
    parameters = {"heading": "0", "fov": "70"}
    assert send(fakes, buffer.getvalue(), params=parameters).status_code == 200
    assert post(fakes, "/v1/localize", PHOTO, params=parameters).status_code == 200
    half, whole = (seen for _view, seen, _turned in fakes.street.calls)
    middle = half.shape[1] // 2
    np.testing.assert_array_equal(half[:, :middle], whole[:, :middle])
    assert whole[:, middle:].any()
    assert not half[:, middle:].any()
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([PHOTO, np.zeros((60, 80), np.uint8)])).save(buffer, "PNG")
    response = send(fakes, buffer.getvalue(), params=parameters)
    assert (response.status_code, "all of its pixels are transparent" in sentence(response)) == (422, True)


def test_a_photograph_needs_a_field_of_view(fakes: Fakes) -> None:
    response = post(fakes, "/v1/localize", PHOTO)
    assert (response.status_code, sentence(response).startswith("fov is missing")) == (422, True)
    assert not fakes.street.calls
    response = post(fakes, "/v1/localize", PHOTO, params={"fov": "70", "pitch": 5, "roll": -3})
    assert response.status_code == 200
    query = response.json()["query"]
    assert {key: query[key] for key in ("fov", "fov_origin", "projection", "projection_origin", "pitch", "roll")} == {
        "fov": 70.0,
        "fov_origin": "given",
        "projection": "rectilinear",
        "projection_origin": "assumed",
        "pitch": 5.0,
        "roll": -3.0,
    }


@pytest.mark.parametrize("path", ["/v1/localize", "/v1/embed/street"])
@pytest.mark.parametrize(
    "file",
    [
        photograph(PANORAMA)[:-2] + b"\xff\xd9junk",
        photograph(PANORAMA, heading=999.0),
        photograph(PANORAMA, (91.0, 7.0)),
    ],
    ids=["trailing bytes", "heading", "latitude"],
)
def test_malformed_metadata_is_never_an_error(fakes: Fakes, path: str, file: bytes) -> None:
    response = send(fakes, file, path=path)
    assert response.status_code == 200
    query = response.json()["query"]
    assert (query["heading_origin"], query["position"]) == ("release", None)


@pytest.mark.parametrize("images", [1, 2])
def test_an_unknown_heading_has_no_single_descriptor(fakes: Fakes, images: int) -> None:
    files = [encode(PANORAMA, "png")] * images
    response = send(fakes, *files, path="/v1/embed/street", params={"heading": "unknown"})
    assert response.status_code == 422
    assert "one descriptor has one heading" in sentence(response)
    assert ("image 1 ('0.jpg')" in sentence(response)) == (images == 2)
    assert not fakes.street.calls


def test_embeddings_say_how_the_pictures_were_understood(fakes: Fakes) -> None:
    files = [photograph(PHOTO, heading=95.0, focal_mm=FOCAL_MM), encode(PANORAMA, "png")]
    one = send(fakes, files[0], path="/v1/embed/street").json()
    OneEmbedding.model_validate(one, strict=True)
    assert (one["query"]["heading"], one["query"]["heading_origin"]) == (95.0, "file")
    many = send(fakes, *files, path="/v1/embed/street").json()
    ManyEmbeddings.model_validate(many, strict=True)
    assert [image["query"]["heading_origin"] for image in many["images"]] == ["file", "release"]
    assert "query" not in post(fakes, "/v1/embed/satellite", flat(50, 50)).json()
    assert [call[2] for call in fakes.street.calls] == [False] * 3


def test_the_fix(fakes: Fakes) -> None:
    response = post(fakes, "/v1/localize", PANORAMA, params={"k": 1, "true": "50.001,7"})
    tree = response.json()
    OneLocalization.model_validate(tree, strict=True)
    position = {key: FIX[key] for key in ("latitude", "longitude", "radius_m", "radius_95_m")}
    kept = ("confidence", "confidence_m", "in_region", "in_region_probability", "peaks", "calibrated")
    assert tree["fix"] == {
        "position": position,
        "heading": {"degrees": 200.0, "spread": 8.0},
        **{key: FIX[key] for key in kept},
        "distance_m": pytest.approx(111.23, abs=0.01),
    }
    assert "surface" not in tree
    assert fakes.recorder.fixes == [tree["fix"]]


def test_the_surface_is_sent_only_if_it_is_wanted(fakes: Fakes) -> None:
    tree = post(fakes, "/v1/localize", PANORAMA, params={"surface": "true"}).json()
    OneLocalization.model_validate(tree, strict=True)
    assert tree["surface"] == {"points": [{"latitude": 50.0, "longitude": 7.0, "probability": 0.5}], "spacing_m": 8.0}


def test_no_tile_with_a_position(fakes: Fakes) -> None:
    fakes.search.function = lambda pictures, _k, _prior, _surface: {
        "matches": [match(1)],
        "fix": None,
        "headings": [None for _ in pictures],
    }
    tree = post(fakes, "/v1/localize", PANORAMA, params={"heading": "unknown"}).json()
    OneLocalization.model_validate(tree, strict=True)
    assert tree["fix"] is None
    assert (tree["query"]["heading"], tree["query"]["heading_origin"], tree["query"]["heading_spread"]) == (None,) * 3
    assert fakes.recorder.fixes == [None]
    features = post(fakes, "/v1/localize", PANORAMA, headers={"accept": "application/geo+json"}).json()["features"]
    assert [feature["properties"]["kind"] for feature in features] == ["match"]


def test_pictures_of_one_place_make_one_fix(fakes: Fakes) -> None:
    files = [photograph(PHOTO, heading=95.0, focal_mm=FOCAL_MM), encode(PANORAMA, "png")]
    response = send(fakes, *files, params={"together": "true", "k": 2, "heading": "unknown"})
    tree = response.json()
    PlaceLocalization.model_validate(tree, strict=True)
    [(pictures, k, _prior, _surface)] = fakes.search.calls
    assert (len(pictures), k) == (2, 2)
    assert [picture.fov for picture in pictures] == [pytest.approx(FOV, abs=0.01), 360.0]
    assert [image["name"] for image in tree["images"]] == ["0.jpg", "1.jpg"]
    assert [image["query"]["heading_origin"] for image in tree["images"]] == ["estimated", "estimated"]
    assert (len(tree["matches"]), tree["fix"]["heading"]["degrees"]) == (2, 200.0)
    assert len(fakes.recorder.fixes) == 1
    apart = send(fakes, *files, params={"k": 2}).json()
    ManyLocalizations.model_validate(apart, strict=True)
    assert [len(call[0]) for call in fakes.search.calls[1:]] == [1, 1]


def test_one_picture_together_with_none(fakes: Fakes) -> None:
    tree = post(fakes, "/v1/localize", PANORAMA, params={"together": "1"}).json()
    PlaceLocalization.model_validate(tree, strict=True)
    assert [image["name"] for image in tree["images"]] == [None]


@pytest.mark.parametrize("together", [False, True])
def test_geojson_of_several_pictures(fakes: Fakes, together: bool) -> None:
    files, headers = [encode(PANORAMA, "png")] * 2, {"accept": "application/geo+json"}
    tree = send(fakes, *files, headers=headers, params={"k": 1, "together": together}).json()
    TileCollection.model_validate(tree, strict=False)
    names = [feature["properties"]["query"] for feature in tree["features"]]
    kinds = [feature["properties"]["kind"] for feature in tree["features"]]
    one = ["match", "fix", "radius", "peak", "peak"]
    assert (kinds, names) == ((one, [None] * 5) if together else (one * 2, ["0.jpg"] * 5 + ["1.jpg"] * 5))
    assert [image["name"] for image in tree["queries"]] == ["0.jpg", "1.jpg"]


@pytest.mark.parametrize(("prior", "radius_m"), [("file", 2000.0), ("file,50.5", 50.5)])
def test_the_position_in_a_file_is_searched_only_on_request(fakes: Fakes, prior: str, radius_m: float) -> None:
    file = photograph(PANORAMA, PLACE)
    tree = send(fakes, file, params={"k": 2}).json()
    assert fakes.search.calls[0][2] is None
    assert tree["query"]["position"] == pytest.approx({"latitude": PLACE[0], "longitude": PLACE[1]}, abs=1e-6)
    [expected] = distances_m(*PLACE, np.array([50.0]), np.array([7.0]))
    assert tree["fix"]["distance_m"] == pytest.approx(expected, abs=0.5)
    assert [found["distance_m"] for found in tree["matches"]] == [None, tree["fix"]["distance_m"]]
    tree = send(fakes, file, params={"prior": prior, "true": "50,7"}).json()
    area = fakes.search.calls[1][2]
    assert area == Circle(*(tree["query"]["position"].values()), radius_m)
    assert tree["fix"]["distance_m"] == pytest.approx(0, abs=1e-6), "the given position counts"
    assert tree["query"]["warnings"] == []


def test_without_a_position_in_the_file_the_whole_index_is_searched_and_the_answer_says_so(fakes: Fakes) -> None:
    tree = send(fakes, photograph(PANORAMA), params={"prior": "file"}).json()
    assert fakes.search.calls[0][2] is None
    assert tree["query"]["warnings"] == ["prior=file: the file has no position, so the whole index was searched"]
    both = send(fakes, photograph(PANORAMA), photograph(PANORAMA, PLACE), params={"prior": "file", "together": "true"})
    area = fakes.search.calls[1][2]
    assert (area.latitude, area.longitude) == pytest.approx(PLACE, abs=1e-6)
    assert all(not image["query"]["warnings"] for image in both.json()["images"])


def test_positions_in_files_are_never_logged(
    fakes: Fakes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("s2s_ray.service"), "propagate", True)
    file = photograph(PANORAMA, PLACE)
    caplog.set_level(logging.DEBUG)
    for params in ({}, {"prior": "file"}, {"heading": "unknown"}, {"prior": "file", "together": "true"}):
        response = send(fakes, file, params=params)
        assert (response.status_code, "48.137" in response.text) == (200, True)
    fakes.search.function = lambda *_args: {}["a defect"]
    assert send(fakes, file, params={"prior": "file"}).status_code == 500
    assert "request" in caplog.text, "something is logged"
    logged = [f"{record.getMessage()} {vars(record)}" for record in caplog.records] + [caplog.text]
    for digits in ("48.137", "11.576", "48.0, 8.0", "(11, 34"):
        assert not [line for line in logged if digits in line], digits

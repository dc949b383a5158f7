"""Locations of pictures as `s2s localize` prints them."""

from __future__ import annotations

from typing import Any

import pytest

from s2s_ray.cli.locations import as_features, as_tree, in_words
from s2s_ray.client import ServedLocation
from s2s_ray.service.localizations import OneLocalization, TileCollection

EXAMPLE: dict[str, Any] = OneLocalization.model_config["json_schema_extra"]["examples"][0]  # type: ignore[index, call-overload]


def location(**fix: Any) -> ServedLocation:
    """Return the documented example with another fix."""
    found = ServedLocation.parse(EXAMPLE)
    assert found.fix is not None
    return found._replace(fix=found.fix._replace(**fix))


def test_a_fix_comes_first_in_words() -> None:
    lines = in_words(["photo.jpg"], location()).splitlines()
    assert lines == [
        "photo.jpg",
        "  within 9 m of -35.314671, 149.116735 (68%), within 24 m (95%)",
        "  heading 218 degrees, give or take 6",
        "  right within 25 m: 71%; taken in this region: 96%",
        "  4 m from the known position",
        "  heading 218 (estimated), field of view 74 (file), rectilinear (assumed)",
        "    1  test-00001  -35.314663, 149.116713  descriptor distance 0.792  heading 218  12 m away",
    ]


@pytest.mark.parametrize(
    ("fix", "words"),
    [
        ({"in_region": False}, "probably not taken in this region"),
        ({"radius_m": None, "radius_95_m": None}, "the radius is unknown, because there is no calibration"),
        ({"peaks": location().fix.peaks * 2}, "also possible: -35.314671, 149.116735 (83%)"),  # type: ignore[union-attr]
    ],
)
def test_doubts_are_named(fix: dict[str, Any], words: str) -> None:
    assert words in in_words(["photo.jpg"], location(**fix))
    assert words not in in_words(["photo.jpg"], location())


def test_an_area_without_tiles_is_named() -> None:
    text = in_words(["photo.jpg"], location()._replace(fix=None, matches=[]))
    assert text.splitlines()[1] == "  no position: no tile of the index lies in the area"


def test_pictures_of_one_place() -> None:
    one = location()
    warned = one.query._replace(heading=None, heading_origin=None, heading_spread=None, warnings=("no compass",))
    both = one._replace(queries=(one.query, warned), fix=None)
    text = in_words(["a.jpg", "b.jpg"], both)
    assert text.startswith("a.jpg, b.jpg\n  no position: no tile with a known position was found\n")
    assert "\n  b.jpg: heading unknown, field of view" in text
    assert "\n  warning: b.jpg: no compass" in text
    tree = as_tree(["a.jpg", "b.jpg"], both)
    assert [image["name"] for image in tree["images"]] == ["a.jpg", "b.jpg"]
    assert (tree["fix"], len(tree["matches"])) == (None, 1)
    features = as_features(["a.jpg", "b.jpg"], [both], together=True)
    assert [feature["properties"]["query"] for feature in features["features"]] == [None]


def test_json_and_geojson_of_each_picture() -> None:
    tree = as_tree(["a.jpg"], location())
    assert tree == {"image": "a.jpg", **{key: EXAMPLE[key] for key in ("query", "fix", "matches")}}
    collection = as_features(["a.jpg", "b.jpg"], [location()] * 2, together=False)
    TileCollection.model_validate({"release": "r", **collection})
    kinds = [(feature["properties"]["query"], feature["properties"]["kind"]) for feature in collection["features"]]
    assert kinds == [(name, kind) for name in ("a.jpg", "b.jpg") for kind in ("match", "fix", "radius")]

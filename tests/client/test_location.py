"""The typed answers of the client, from what the service documents as its responses."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from s2s_ray.client import Client, ServedFix, ServedLocation, ServedQuery
from s2s_ray.errors import InputError, ServiceError
from s2s_ray.geo.prior import FileCircle
from s2s_ray.geo.query import Query
from s2s_ray.service.localizations import OneLocalization
from tests.support.scripted_server import response, scripted

EXAMPLE: dict[str, Any] = OneLocalization.model_config["json_schema_extra"]["examples"][0]  # type: ignore[index, call-overload]
PANORAMA = np.zeros((4, 8, 3), np.uint8)


def test_a_location_is_read_and_written() -> None:
    location = ServedLocation.parse(EXAMPLE)
    assert location.fix is not None
    assert (location.fix.radius_m, location.fix.heading, location.query.fov) == (9.4, 217.5, 73.7)
    assert location.matches[0].heading == 217.5
    assert location.query.tree() == EXAMPLE["query"]
    assert location.tree() == {"fix": EXAMPLE["fix"], "matches": EXAMPLE["matches"]}


def test_what_is_unknown_is_none_and_later_fields_are_ignored() -> None:
    fix = {**EXAMPLE["fix"], "heading": None, "altitude_m": 3.0}
    query = {**EXAMPLE["query"], "position": {"latitude": 1, "longitude": 2, "height": 3}, "exposure_s": 0.1}
    tree = {**EXAMPLE, "fix": fix, "query": query, "surface": None}
    location = ServedLocation.parse(tree)
    assert location.fix is not None
    assert (location.fix.heading, location.fix.heading_spread, location.fix.tree()["heading"]) == (None, None, None)
    assert location.query.position == (1.0, 2.0)
    assert ServedLocation.parse({**tree, "fix": None}).fix is None
    with pytest.raises(KeyError):
        ServedFix.parse({name: value for name, value in fix.items() if name != "confidence"})
    with pytest.raises(KeyError):
        ServedQuery.parse({})


def sent(script: Any) -> list[str]:
    """Return the request lines that a server has received."""
    return [one.split(b"\r\n", 1)[0].decode() for one in script.requests]


def test_pictures_of_one_place_are_sent_together_and_others_in_parts() -> None:
    one = {"name": "0", **{key: EXAMPLE[key] for key in ("query", "fix", "matches")}}
    several = [response(200, json.dumps({"release": "r", "images": [one] * count}).encode()) for count in (8, 3)]
    names = [{"name": str(number), "query": EXAMPLE["query"]} for number in range(11)]
    together = {"release": "r", "images": names, "fix": EXAMPLE["fix"], "matches": EXAMPLE["matches"]}
    answer = response(200, json.dumps(together).encode())
    with scripted(*several, answer, answer) as script, Client(script.url) as client:
        found = client.locate([PANORAMA] * 11, Query("unknown"), k=3, prior=FileCircle(500))
        assert found == [ServedLocation.parse(one)] * 11
        [place] = client.locate([PANORAMA] * 11, together=True)
        assert (len(place.queries), place.fix) == (11, found[0].fix)
        with pytest.raises(ServiceError, match="expected 2 queries"):
            client.locate([PANORAMA] * 2, together=True)
    lines = sent(script)
    assert lines[0] == lines[1] == "POST /v1/localize?heading=unknown&prior=file%2C500.0&k=3 HTTP/1.1"
    assert lines[2] == "POST /v1/localize?together=true HTTP/1.1"


def test_one_picture_is_not_a_sequence_of_them() -> None:
    for together in (False, True):
        with Client("http://127.0.0.1:9") as client, pytest.raises(InputError, match="images: expected a sequence"):
            client.locate("panorama.jpg", together=together)

"""Query parameters and the `Accept` header: each one is understood or refused."""

from __future__ import annotations

import pytest

from s2s_ray.service.http import responses
from s2s_ray.service.http.negotiation import negotiate
from tests.support.fake_service import Fakes, flat
from tests.support.http_requests import post, sentence


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("heading=400", "heading='400'"),
        ("heading=nan", "heading='nan'"),
        ("heading=north", "heading='north'"),
        ("rows=0.5", "rows='0.5'"),
        ("rows=0.8,0.2", "expected 0 <= first < last <= 1"),
        ("rows=nan,1", "expected 2 numbers such as 0.25,0.75"),
        ("k=0", "k='0'"),
        ("k=101", "k='101'"),
        ("k=13", "k=13: the index of this release has 12 tiles"),
        ("near=1,2", "near='1,2': expected 3 numbers"),
        ("near=91,2,5", "near: latitude 91: expected -90 to 90"),
        ("near=1,2,0", "near: radius 0 m"),
        ("near=1,2,nan", "expected 3 numbers"),
        ("bbox=1,5,2,4", "bbox: south=5 is above north=4"),
        ("bbox=1,2,3", "expected 4 numbers"),
        ("bbox=1,2,3,4&near=1,2,3", "exclude each other"),
        ("true=1", "true='1': expected 2 numbers"),
        ("true=1,181", "true: longitude 181"),
    ],
)
def test_bad_parameters(fakes: Fakes, query: str, words: str) -> None:
    response = post(fakes, f"/v1/localize?{query}", flat(40, 100))
    assert response.status_code == 400
    assert words in sentence(response)
    assert not fakes.street.calls


def test_bad_layout_and_accept(fakes: Fakes) -> None:
    response = post(fakes, "/v1/embed/satellite?layout=sideways", flat(50, 50))
    assert (response.status_code, "layout='sideways'" in sentence(response)) == (400, True)
    response = post(fakes, "/v1/synthesize", flat(50, 50), headers={"accept": "text/html"})
    assert (response.status_code, "image/webp" in sentence(response)) == (406, True)
    assert not fakes.synthesis.calls


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "image/png"),
        ("image/*", "image/png"),
        ("image/*;q=0.2, image/webp", "image/webp"),
        ("image/png;q=0.5, image/jpeg;q=0.9", "image/jpeg"),
        ("text/html, */*;q=0.1", "image/png"),
        ("image/png;q=0, image/*", "image/jpeg"),
        ("image/png;q=x", None),
        ("image/png;q=nan", None),
        ("text/html", None),
        ("", None),
    ],
)
def test_negotiation(accept: str, kind: str | None) -> None:
    assert negotiate(accept, responses.SYNTHESIS_TYPES) == kind

"""Tokens, and web pages of other origins."""

from __future__ import annotations

import hashlib

import pytest

from tests.support.fake_service import Fakes, flat
from tests.support.http_requests import post, request, sentence

SECRET = "correct-horse"


def test_tokens(fakes: Fakes, caplog: pytest.LogCaptureFixture) -> None:
    assert post(fakes, "/v1/releases/rollback", flat(2, 2)).status_code == 403, "without tokens nobody is allowed to"
    hashes = [hashlib.sha256(secret.encode()).hexdigest() for secret in (SECRET, "admin-secret")]
    fakes.settings = {
        "tokens": [{"name": "app", "sha256": hashes[0]}, {"name": "ops", "sha256": hashes[1], "admin": True}]
    }
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {SECRET}"}):
        response = post(fakes, "/v1/embed/street", flat(40, 100), headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"].startswith("Bearer")
        assert SECRET not in sentence(response)
    assert request(fakes, "GET", "/v1/model").status_code == 401
    with caplog.at_level("INFO", logger="s2s_ray.service.access"):
        bearer = {"authorization": f"Bearer {SECRET}"}
        assert post(fakes, "/v1/embed/street", flat(40, 100), headers=bearer).status_code == 200
    fields = caplog.records[-1].__dict__["fields"]
    assert (fields["caller"], fields["status"], fields["path"]) == ("app", 200, "/v1/embed/street")
    assert SECRET not in str(fields)
    response = request(fakes, "POST", "/v1/releases/x/promote", headers=bearer)
    assert (response.status_code, "'app'" in sentence(response)) == (403, True)
    response = request(fakes, "POST", "/v1/releases/x/promote", headers={"authorization": "Bearer admin-secret"})
    assert response.status_code == 409, "this service is pinned to two URIs"
    for path in ("/healthz", "/readyz", "/", "/docs", "/openapi.json", "/static/page.js"):
        assert request(fakes, "GET", path).status_code == 200


def test_other_web_pages_are_allowed_only_if_configured(fakes: Fakes) -> None:
    origin = {"origin": "https://elsewhere.example"}
    assert "access-control-allow-origin" not in post(fakes, "/v1/embed/street", flat(40, 100), headers=origin).headers
    fakes.settings = {"cors_origins": ["https://elsewhere.example"]}
    response = post(fakes, "/v1/embed/street", flat(40, 100), headers=origin)
    assert response.headers["access-control-allow-origin"] == "https://elsewhere.example"

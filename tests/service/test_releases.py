"""The routes of the registry."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

import pytest

from s2s_ray import registry
from s2s_ray.errors import ConflictError, DamagedError, RefusedError, StorageError, UnreachableError
from tests.support.fake_service import RELEASE, Fakes
from tests.support.http_requests import request, sentence
from tests.support.stored_model import stored_model

SECRET = "correct-horse"


def test_releases_are_listed_promoted_and_rolled_back(fakes: Fakes, tmp_path: Path) -> None:
    root, secret = str(tmp_path / "registry"), {"authorization": f"Bearer {SECRET}"}
    checkpoint, index = stored_model(tmp_path)
    for name in ("first", "second"):
        registry.publish(root, "demo", checkpoint, index, release=name)
    registry.promote(root, "demo", "first")
    token = {"name": "ops", "sha256": hashlib.sha256(SECRET.encode()).hexdigest(), "admin": True}
    fakes.settings = {"registry": root, "name": "demo", "checkpoint": None, "index": None, "tokens": [token]}
    response = request(fakes, "POST", "/v1/releases/second/promote", headers=secret)
    assert (response.status_code, response.json()) == (200, {"release": RELEASE.id, "current": "second"})
    listed = request(fakes, "GET", "/v1/releases", headers=secret).json()["releases"]
    assert [(one["release"], one["current"], one["indexed"]) for one in listed] == [
        ("first", False, True),
        ("second", True, True),
    ]
    assert request(fakes, "POST", "/v1/releases/rollback", headers=secret).json()["current"] == "first"
    assert registry.current(root, "demo") == "first"
    for path in ("/v1/releases/rollback", "/v1/releases/third/promote", "/v1/releases/.hidden/promote"):
        response = request(fakes, "POST", path, headers=secret)
        assert response.status_code == 404, path
        sentence(response)


def test_a_release_below_the_floor_is_not_promoted(fakes: Fakes, tmp_path: Path) -> None:
    root, secret = str(tmp_path / "registry"), {"authorization": f"Bearer {SECRET}"}
    checkpoint, index = stored_model(tmp_path)
    registry.publish(root, "demo", checkpoint, index, release="first")
    registry.set_floor(root, "demo", recall=0.5)
    token = {"name": "ops", "sha256": hashlib.sha256(SECRET.encode()).hexdigest(), "admin": True}
    fakes.settings = {"registry": root, "name": "demo", "checkpoint": None, "index": None, "tokens": [token]}
    response = request(fakes, "POST", "/v1/releases/first/promote", headers=secret)
    assert (response.status_code, "the floor is R@1 50.0%" in sentence(response)) == (409, True)
    assert str(tmp_path) not in response.text
    assert registry.current(root, "demo") is None


def test_a_release_without_an_index_cannot_be_promoted(fakes: Fakes, tmp_path: Path) -> None:
    root, secret = str(tmp_path / "registry"), {"authorization": f"Bearer {SECRET}"}
    checkpoint, _ = stored_model(tmp_path)
    registry.publish(root, "demo", checkpoint, release="bare")
    token = {"name": "ops", "sha256": hashlib.sha256(SECRET.encode()).hexdigest(), "admin": True}
    fakes.settings = {"registry": root, "name": "demo", "checkpoint": None, "index": None, "tokens": [token]}
    response = request(fakes, "POST", "/v1/releases/bare/promote", headers=secret)
    assert (response.status_code, "'bare' of 'demo' has no index" in sentence(response)) == (409, True)
    assert str(tmp_path) not in response.text, "callers need not know where the registry is"
    response = request(fakes, "GET", "/v1/releases", headers=secret)
    assert response.status_code == 200
    fakes.settings["name"] = "nobody"
    response = request(fakes, "GET", "/v1/releases", headers=secret)
    assert (response.status_code, str(tmp_path) in sentence(response)) == (404, False)


@pytest.mark.parametrize("kind", [UnreachableError, ConflictError, DamagedError, RefusedError])
@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("POST", "/x/promote"), ("POST", "/rollback")])
def test_a_storage_that_fails_is_a_503_on_every_route_of_the_registry(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch, kind: type[StorageError], method: str, path: str
) -> None:
    def fail(*_args: Any) -> Any:
        raise kind("s3://secret-bucket/demo/current.json: no answer")

    for name in ("list_releases", "promote", "rollback"):
        monkeypatch.setattr(registry, name, fail)
    token = {"name": "ops", "sha256": hashlib.sha256(SECRET.encode()).hexdigest(), "admin": True}
    fakes.settings = {"registry": "r", "name": "demo", "checkpoint": None, "index": None, "tokens": [token]}
    secret = {"authorization": f"Bearer {SECRET}"}
    response = request(fakes, method, f"/v1/releases{path}", headers=secret)
    assert (response.status_code, "secret-bucket" in sentence(response)) == (503, False)
    # A caller that repeats a 503 on its own would roll back twice.
    assert response.headers.get("retry-after") == ("2" if method == "GET" else None)
    assert ("may have been made; list the releases" in sentence(response)) == (method == "POST")


@pytest.mark.parametrize("path", ["x/promote", "rollback"])
@pytest.mark.parametrize(
    ("fails", "status", "words"),
    [
        (False, 504, "not completed within 0.05 s. The change may"),
        (True, 500, "has the reason, under i. The change may"),
    ],
)
def test_a_change_that_is_cut_short_may_have_been_made(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch, path: str, fails: bool, status: int, words: str
) -> None:
    made: list[tuple[Any, ...]] = []

    def change(*args: Any) -> Any:
        if not fails:
            threading.Event().wait(0.1)
        made.append(args)
        raise RuntimeError

    for name in ("promote", "rollback"):
        monkeypatch.setattr(registry, name, change)
    token = {"name": "ops", "sha256": hashlib.sha256(SECRET.encode()).hexdigest(), "admin": True}
    fakes.settings = {"registry": "r", "name": "demo", "checkpoint": None, "index": None, "tokens": [token]}
    headers = {"authorization": f"Bearer {SECRET}", "s2s-timeout": "10" if fails else "0.05", "x-request-id": "i"}
    response = request(fakes, "POST", f"/v1/releases/{path}", headers=headers)
    assert (response.status_code, words in sentence(response), "dropped" in response.text) == (status, True, False)
    assert len(made) == 1


def test_a_service_that_cannot_load_its_release_can_be_rolled_back(fakes: Fakes, tmp_path: Path) -> None:
    root, secret = str(tmp_path / "registry"), {"authorization": f"Bearer {SECRET}"}
    checkpoint, index = stored_model(tmp_path)
    for name in ("first", "second"):
        registry.publish(root, "demo", checkpoint, index, release=name)
        registry.promote(root, "demo", name)
    token = {"name": "ops", "sha256": hashlib.sha256(SECRET.encode()).hexdigest(), "admin": True}
    fakes.settings = {"registry": root, "name": "demo", "checkpoint": None, "index": None, "tokens": [token]}
    fakes.current = None
    response = request(fakes, "POST", "/v1/releases/rollback", headers=secret)
    assert (response.status_code, response.json()) == (200, {"release": None, "current": "first"})


def test_a_registry_that_cannot_be_read_is_a_503_that_hides_its_location(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any) -> Any:
        raise StorageError("s3://secret-bucket cannot be reached")

    monkeypatch.setattr(registry, "list_releases", fail)
    fakes.settings = {"registry": "r", "name": "demo", "checkpoint": None, "index": None}
    response = request(fakes, "GET", "/v1/releases")
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")
    assert "secret-bucket" not in sentence(response)

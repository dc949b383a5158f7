"""Conditional writes of a file that several processes change."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Literal

import boto3
import pytest
from moto import mock_aws

from s2s_ray import storage
from s2s_ray.errors import ConflictError, NotFoundError, RefusedError, UnreachableError
from s2s_ray.storage import conditional


def test_the_second_of_two_writers_is_refused(tmp_path: Path) -> None:
    uri = str(tmp_path / "deep" / "pointer.json")
    assert conditional.read(uri) == (None, None)
    conditional.write(uri, b"one", None)
    content, version = conditional.read(uri)
    assert content == b"one"
    with pytest.raises(ConflictError, match="changed by another process"):
        conditional.write(uri, b"two", None)
    conditional.write(uri, b"two", version)
    with pytest.raises(ConflictError):
        conditional.write(uri, b"three", version)
    assert storage.read_bytes(uri) == b"two"
    assert storage.list_names(str(tmp_path / "deep")) == ["pointer.json"], "the lock file is not listed"
    version = conditional.read(uri)[1]
    storage.delete(uri)
    with pytest.raises(ConflictError):
        conditional.write(uri, b"four", version)
    assert not storage.exists(uri), "a deleted file has changed as well"


def test_no_concurrent_change_is_lost(tmp_path: Path) -> None:
    uri = str(tmp_path / "count")
    conditional.write(uri, b"0", None)

    def add() -> None:
        for _ in range(10):
            while True:
                content, version = conditional.read(uri)
                assert content is not None
                try:
                    conditional.write(uri, str(int(content) + 1).encode(), version)
                    break
                except ConflictError:
                    continue

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert storage.read_bytes(uri) == b"40"


Outcome = Literal["written", "lost before", "lost after", "conflict after", "overtaken", "refused"]
"""What becomes of one write: written; its request or its response is lost; it took place although the response, to a
repeated request, says otherwise; somebody else is faster; it is not allowed."""


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> list[Outcome]:
    """What becomes of the next writes; without pauses between them."""
    planned: list[Outcome] = []
    write = conditional.write

    def faulty(uri: str, content: bytes, version: str | None) -> None:
        outcome = planned.pop(0) if planned else "written"
        if outcome == "lost before":
            raise UnreachableError(f"{uri}: timed out")
        if outcome == "refused":
            raise RefusedError(f"{uri}: access denied")
        if outcome == "overtaken":
            storage.write_bytes(uri, storage.read_bytes(uri) + b" other")
        write(uri, content, version)
        if outcome == "conflict after":
            raise ConflictError(f"{uri} was changed by another process since it was read")
        if outcome == "lost after":
            raise UnreachableError(f"{uri}: connection reset")

    monkeypatch.setattr(conditional, "write", faulty)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return planned


def append(uri: str, word: str) -> bytes | None:
    """Append a word, which is the mark of this change."""
    return conditional.change(uri, lambda now: (now or b"-") + f" {word}".encode(), lambda now: word.encode() in now)


@pytest.mark.parametrize("second", ["written", "lost before", "lost after", "conflict after", "overtaken"])
@pytest.mark.parametrize("first", ["written", "lost before", "lost after", "conflict after", "overtaken"])
def test_a_change_is_made_once(tmp_path: Path, outcomes: list[Outcome], first: Outcome, second: Outcome) -> None:
    uri = str(tmp_path / "words")
    storage.write_bytes(uri, b"-")
    outcomes += [first, second]
    assert append(uri, "mine") == storage.read_bytes(uri)
    assert storage.read_bytes(uri).split().count(b"mine") == 1
    made = 1 if first in ("written", "lost after", "conflict after") else 2
    assert storage.read_bytes(uri).split().count(b"other") == [first, second][:made].count("overtaken")


def test_a_change_is_recognised_when_others_have_written_since(
    tmp_path: Path, outcomes: list[Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "words")
    storage.write_bytes(uri, b"-")
    outcomes += ["lost after"]
    write = conditional.write

    def and_another(uri: str, content: bytes, version: str | None) -> None:
        try:
            write(uri, content, version)
        finally:
            storage.write_bytes(uri, storage.read_bytes(uri) + b" other")

    monkeypatch.setattr(conditional, "write", and_another)
    assert append(uri, "mine") == b"- mine other"


def test_a_change_that_may_have_been_made_says_so(
    tmp_path: Path, outcomes: list[Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "words")
    outcomes += ["lost before"] * 100
    with pytest.raises(UnreachableError, match=rf"were lost\. Whether {uri} was changed is unknown"):
        append(uri, "mine")
    read = conditional.read

    def away(uri: str) -> Any:
        if not outcomes:
            raise UnreachableError(f"{uri}: timed out")
        return read(uri)

    monkeypatch.setattr(conditional, "read", away)
    outcomes[:] = ["lost before", "refused"]
    with pytest.raises(RefusedError, match=rf"denied\. Whether {uri} was changed is unknown"):
        append(uri, "mine")
    outcomes[:] = ["refused"]
    with pytest.raises(RefusedError, match=r"denied$"):
        append(uri, "mine")
    outcomes[:] = ["lost after"]
    with pytest.raises(UnreachableError, match=rf"timed out\. Whether {uri} was changed is unknown"):
        append(uri, "mine")
    with pytest.raises(UnreachableError, match=r"timed out$"):
        append(uri, "mine")


def test_a_change_that_loses_every_race_is_given_up(tmp_path: Path, outcomes: list[Outcome]) -> None:
    uri = str(tmp_path / "words")
    storage.write_bytes(uri, b"-")
    outcomes += ["overtaken"] * 100
    with pytest.raises(ConflictError, match=rf"^{uri} was changed by other processes 50 times in a row"):
        append(uri, "mine")


def test_nothing_to_write(tmp_path: Path) -> None:
    uri = str(tmp_path / "words")
    assert conditional.change(uri, lambda now: None) is None
    assert not storage.exists(uri)


@pytest.mark.parametrize("outcome", ["written", "lost before", "lost after", "conflict after"])
def test_a_file_is_written_once(tmp_path: Path, outcomes: list[Outcome], outcome: Outcome) -> None:
    uri = str(tmp_path / "once")
    outcomes += [outcome]
    assert conditional.write_once(uri, b"first") == b"first"
    assert conditional.write_once(uri, b"second") == b"first"
    assert storage.read_bytes(uri) == b"first"


def test_s3_checks_the_condition_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    uri = "s3://bucket/deep/pointer.json"
    with mock_aws():
        boto3.client("s3").create_bucket(Bucket="bucket")
        assert conditional.read(uri) == (None, None)
        conditional.write(uri, b"one", None)
        content, version = conditional.read(uri)
        assert content == b"one"
        with pytest.raises(ConflictError):
            conditional.write(uri, b"two", None)
        conditional.write(uri, b"two", version)
        with pytest.raises(ConflictError):
            conditional.write(uri, b"three", version)
        assert conditional.read(uri)[0] == b"two"
        storage.delete(uri)
        with pytest.raises(ConflictError, match="deleted by another process"):
            conditional.write(uri, b"four", version)
        assert conditional.read(uri) == (None, None)
        with pytest.raises(NotFoundError, match="there is no bucket 'nothing'"):
            conditional.write("s3://nothing/x", b"one", None)

"""Conditional writes of a file that several processes change."""

from __future__ import annotations

import threading
from pathlib import Path

import boto3
import pytest
from moto import mock_aws

from s2s_ray import storage
from s2s_ray.errors import ConflictError, StorageError
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
        with pytest.raises(StorageError, match=r"s3://nothing/x: .*NoSuchBucket"):
            conditional.read("s3://nothing/x")

"""The functions of `s2s_ray.storage` on local paths. `tests/integration/test_storage_s3.py` covers S3."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from s2s_ray import storage
from s2s_ray.errors import DamagedError, NotFoundError, StorageError


@pytest.mark.parametrize(
    ("uri", "parts", "joined"),
    [
        ("data", ("a", "b.json"), "data/a/b.json"),
        ("/data/", ("a",), "/data/a"),
        ("/", ("a",), "/a"),
        ("s3://bucket", ("a", "b"), "s3://bucket/a/b"),
        ("s3://bucket/x/", ("a/b",), "s3://bucket/x/a/b"),
        ("file:///tmp/x", ("a",), "file:///tmp/x/a"),
    ],
)
def test_join_parent_and_name(uri: str, parts: tuple[str, ...], joined: str) -> None:
    assert storage.join(uri, *parts) == joined
    assert storage.name(joined) == parts[-1].rpartition("/")[2]
    assert storage.join(storage.parent(joined), storage.name(joined)) == joined


def test_the_parent_of_a_bare_name_is_the_working_directory() -> None:
    assert storage.parent("pairs.csv") == "."


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_write_read_list_delete(tmp_path: Path, scheme: str) -> None:
    root = f"{scheme}{tmp_path}/deep/er"
    assert storage.is_local(root)
    assert storage.list_names(root) == []
    assert not storage.exists(root)
    storage.write_bytes(storage.join(root, "b", "x"), b"one")
    storage.write_bytes(storage.join(root, "b", "x"), b"three")
    storage.write_json(storage.join(root, "a"), {"k": [1, "é"]})
    assert storage.list_names(root) == ["a", "b"]
    assert storage.read_bytes(storage.join(root, "b", "x")) == b"three"
    assert storage.size(storage.join(root, "b", "x")) == 5
    assert storage.read_json(storage.join(root, "a")) == {"k": [1, "é"]}
    with storage.open_input(storage.join(root, "b", "x")) as file:
        file.seek(2)
        assert file.read() == b"ree"
    storage.delete(storage.join(root, "a"))
    storage.delete(storage.join(root, "a"))
    storage.delete(root)
    assert not storage.exists(root)


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    storage.write_bytes(str(path), b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"x: No space left on device"):
        storage.write_bytes(str(path), b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_list_folders_and_modified(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "b" / "file"), b"1")
    storage.write_bytes(str(tmp_path / "a" / "file"), b"1")
    storage.write_bytes(str(tmp_path / "file"), b"1")
    assert storage.list_folders(str(tmp_path)) == ["a", "b"]
    assert storage.list_folders(str(tmp_path / "file")) == storage.list_folders(str(tmp_path / "none")) == []
    os.utime(tmp_path / "file", (1000, 2000.5))
    assert storage.modified(str(tmp_path / "file")) == 2000.5
    with pytest.raises(NotFoundError, match="none"):
        storage.modified(str(tmp_path / "none"))


def test_names_of_unfinished_writes_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".x.0123.tmp~").write_bytes(b"cut sh")
    (tmp_path / "y").write_bytes(b"")
    assert storage.list_names(str(tmp_path)) == ["y"]


def test_missing_and_unusable_uris_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=rf"^{tmp_path}/no/file does not exist; neither does its directory$"):
        storage.read_bytes(f"{tmp_path}/no/file")
    with pytest.raises(NotFoundError, match=rf"^{tmp_path}/file does not exist$"):
        storage.download(f"{tmp_path}/file", tmp_path / "copy")
    with pytest.raises(StorageError, match=rf"^{tmp_path}: Is a directory; expected a file$"):
        storage.read_bytes(str(tmp_path))
    (tmp_path / "file").write_text("{")
    with pytest.raises(DamagedError, match="file is not JSON"):
        storage.read_json(f"{tmp_path}/file")
    with pytest.raises(
        StorageError, match=r"^foo://x/y: there is no storage for foo://; use a path or one of file://, s3://"
    ):
        storage.read_bytes("foo://x/y")
    with pytest.raises(StorageError, match=r"s3://: expected s3://BUCKET/KEY"):
        storage.exists("s3://")


def test_an_endpoint_without_a_scheme_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    with pytest.raises(StorageError, match=r"^s3://bucket/x: AWS_ENDPOINT_URL or .*: localhost:9000; expected"):
        storage.read_bytes("s3://bucket/x")


def test_checksums(tmp_path: Path) -> None:
    data = bytes(range(256)) * 100
    (tmp_path / "x").write_bytes(data)
    assert storage.sha256(tmp_path / "x") == storage.sha256(data) == hashlib.sha256(data).hexdigest()

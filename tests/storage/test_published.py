"""Directories that are published as a whole."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from s2s_ray import storage
from s2s_ray.errors import DamagedError, NotFoundError, StateError, StorageError
from s2s_ray.storage import files


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A directory to publish."""
    folder = tmp_path / "local"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"a" * 1000)
    (folder / "sub" / "b.bin").write_bytes(b"")
    return folder


def test_publish_and_fetch(release: Path, tmp_path: Path) -> None:
    uri = str(tmp_path / "store" / "r1")
    assert not storage.is_complete(uri)
    storage.publish(release, uri)
    assert storage.is_complete(uri)
    found = storage.fetch(uri, tmp_path / "into")
    assert (found / "a.bin").read_bytes() == b"a" * 1000
    assert (found / "sub" / "b.bin").read_bytes() == b""
    entry = storage.read_json(str(found / "manifest.json"))["files"]["a.bin"]
    assert entry == {"bytes": 1000, "sha256": hashlib.sha256(b"a" * 1000).hexdigest()}


def test_fetch_copies_only_the_requested_files(release: Path, tmp_path: Path) -> None:
    uri = str(tmp_path / "store")
    storage.publish(release, uri)
    assert sorted(os.listdir(storage.fetch(uri, tmp_path / "into", only=("a.bin",)))) == ["a.bin"]
    with pytest.raises(NotFoundError, match=r"published without c\.bin; it holds a\.bin, sub/b\.bin"):
        storage.fetch(uri, tmp_path / "into", only=("c.bin",))


def test_fetch_keeps_whole_files_and_replaces_damaged_ones(release: Path, tmp_path: Path) -> None:
    uri, into = str(tmp_path / "store"), tmp_path / "into"
    storage.publish(release, uri)
    storage.fetch(uri, into)
    (into / "a.bin").write_bytes(b"b" * 1000)
    kept = (into / "sub" / "b.bin").stat().st_ino
    storage.fetch(uri, into)
    assert (into / "a.bin").read_bytes() == b"a" * 1000
    assert (into / "sub" / "b.bin").stat().st_ino == kept


def test_a_publication_cut_short_does_not_exist(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = str(tmp_path / "store")
    storage.publish(release, uri)  # this older one is not mistaken for the new one either
    upload = files.upload

    def fail_on_second(path: Path, target: str) -> None:
        if path.name == "b.bin":
            raise KeyboardInterrupt
        upload(path, target)

    monkeypatch.setattr(files, "upload", fail_on_second)
    with pytest.raises(KeyboardInterrupt):
        storage.publish(release, uri)
    assert storage.exists(storage.join(uri, "a.bin"))
    assert not storage.is_complete(uri)
    with pytest.raises(NotFoundError, match=r"store has no manifest\.json"):
        storage.fetch(uri, tmp_path / "into")


def test_a_damaged_upload_is_repeated(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    upload, damaged = files.upload, [True]

    def spoil(path: Path, target: str) -> None:
        upload(path, target)
        if path.name == "a.bin" and damaged.pop(0):
            (tmp_path / "store" / "a.bin").write_bytes(b"a" * 999 + b"b")

    monkeypatch.setattr(files, "upload", spoil)
    uri = str(tmp_path / "store")
    damaged += [False]
    storage.publish(release, uri)
    assert "store/a.bin fails its checksum" in caplog.text
    storage.check(uri)
    damaged += [True, True]
    with pytest.raises(DamagedError, match=r"store/a\.bin fails its checksum"):
        storage.publish(release, uri)
    assert not storage.is_complete(uri)  # neither the older one nor the damaged one


def test_check_names_a_damaged_or_missing_file(release: Path, tmp_path: Path) -> None:
    uri = str(tmp_path / "store")
    storage.publish(release, uri)
    storage.check(uri)
    (tmp_path / "store" / "a.bin").write_bytes(b"a" * 999)
    with pytest.raises(DamagedError, match=r"store/a\.bin fails its checksum"):
        storage.check(uri)
    (tmp_path / "store" / "a.bin").unlink()
    with pytest.raises(NotFoundError, match=r"store/a\.bin does not exist"):
        storage.check(uri)


def test_fetch_names_a_damaged_or_missing_file(release: Path, tmp_path: Path) -> None:
    uri, into = str(tmp_path / "store"), tmp_path / "into"
    storage.publish(release, uri)
    (tmp_path / "store" / "a.bin").write_bytes(b"a" * 999 + b"b")
    with pytest.raises(DamagedError, match=r"store/a\.bin fails its checksum"):
        storage.fetch(uri, into)
    assert not (into / "a.bin").exists()
    (tmp_path / "store" / "a.bin").unlink()
    with pytest.raises(NotFoundError, match=r"store/a\.bin does not exist"):
        storage.fetch(uri, into)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x"])
def test_fetch_refuses_names_outside_of_the_directory(tmp_path: Path, name: str) -> None:
    storage.write_json(str(tmp_path / "manifest.json"), {"files": {name: {"bytes": 0, "sha256": ""}}})
    with pytest.raises(StorageError, match="outside of the directory"):
        storage.fetch(str(tmp_path), tmp_path / "into")


def test_nothing_to_publish(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="holds no files"):
        storage.publish(tmp_path, str(tmp_path / "store"))


def test_the_bytes_of_the_manifest(release: Path, tmp_path: Path) -> None:
    storage.publish(release, str(tmp_path / "store"))
    entries = {
        "a.bin": {"bytes": 1000, "sha256": hashlib.sha256(b"a" * 1000).hexdigest()},
        "sub/b.bin": {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()},
    }
    text = json.dumps({"files": entries}, indent=2) + "\n"
    assert (tmp_path / "store" / "manifest.json").read_text() == text


def test_a_manifest_of_a_newer_version(release: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    uri, path = str(tmp_path / "store"), tmp_path / "store" / "manifest.json"
    storage.publish(release, uri)
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, "format": 1, "compression": "none"}))
    storage.check(uri)
    assert "ignored keys that this version does not know: compression" in caplog.text
    path.write_text(json.dumps({**tree, "format": 2}))
    with pytest.raises(StateError, match=r"manifest\.json has format 2, .* upgrade s2s-ray"):
        storage.check(uri)


@pytest.mark.parametrize("text", ["[]", "{}", '{"files": 3}', '{"files": {"a": {"bytes": "many"}}}', "{"])
def test_a_damaged_manifest_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DamagedError, match=rf"^{tmp_path}/manifest\.json "):
        storage.fetch(str(tmp_path), tmp_path / "into")


def test_a_local_directory_is_used_in_place(release: Path, tmp_path: Path) -> None:
    uri = str(tmp_path / "store")
    storage.publish(release, uri)
    assert storage.on_this_machine(uri, tmp_path / "into") == Path(uri)
    assert not (tmp_path / "into").exists()
    (tmp_path / "store" / "a.bin").write_bytes(b"a" * 999)
    with pytest.raises(DamagedError, match=r"store/a\.bin fails its checksum"):
        storage.on_this_machine(uri, tmp_path / "into")
    (tmp_path / "store" / "a.bin").unlink()
    with pytest.raises(NotFoundError, match=r"store/a\.bin does not exist"):
        storage.on_this_machine(uri, tmp_path / "into")

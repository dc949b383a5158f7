"""Directories that are published as a whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from s2s_ray import storage
from s2s_ray.errors import (
    ConflictError,
    DamagedError,
    DiskFullError,
    NotFoundError,
    RefusedError,
    StateError,
    StorageError,
)
from s2s_ray.storage import conditional, files


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


def folder_with(path: Path, **contents: bytes) -> Path:
    """A directory to publish with the given files."""
    path.mkdir(parents=True)
    for name, content in contents.items():
        (path / name).write_bytes(content)
    return path


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch, before: Callable[[str], None]) -> Iterator[None]:
    """Call a function before every storage operation that changes something."""
    with monkeypatch.context() as patch:
        for module, name, place in ((files, "upload", 1), (files, "delete", 0), (conditional, "write", 0)):
            real = getattr(module, name)

            def operation(*args: Any, real: Any = real, place: int = place) -> Any:
                before(args[place])
                return real(*args)

            patch.setattr(module, name, operation)
        yield


class _KilledError(BaseException):
    """The end of the process."""


def killed_at(monkeypatch: pytest.MonkeyPatch, operation: int, publish: Callable[[], None]) -> bool:
    """Publish, and end before an operation; return whether there were so many."""
    left = [operation]

    def count(uri: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise _KilledError

    with watched(monkeypatch, count):
        try:
            publish()
        except _KilledError:
            return True
    return False


def test_a_publication_cut_short_does_not_exist_and_is_completed(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = folder_with(tmp_path / "other", c=b"c")
    for operation in range(5):
        uri = str(tmp_path / f"store-{operation}")
        assert killed_at(monkeypatch, operation, partial(storage.publish, release, uri))
        complete = operation == 4  # all but the deletion of the claim
        assert storage.is_complete(uri) == complete
        if not complete:
            with pytest.raises(NotFoundError, match=r"has no manifest\.json"):
                storage.fetch(uri, tmp_path / f"into-{operation}")
        if operation:
            with pytest.raises(ConflictError, match="published folder is not changed" if complete else "not ended"):
                storage.publish(other, uri)
            assert not storage.exists(storage.join(uri, "c"))
        storage.publish(release, uri)
        storage.check(uri)
        assert storage.list_names(uri) == ["a.bin", "manifest.json", "sub"]
    assert not killed_at(monkeypatch, 5, partial(storage.publish, release, str(tmp_path / "whole")))


def test_a_publication_that_an_earlier_version_left_unfinished_is_completed(release: Path, tmp_path: Path) -> None:
    uri = str(tmp_path / "store")
    files.upload(release / "a.bin", storage.join(uri, "a.bin"))
    storage.publish(release, uri)
    storage.check(uri)


def test_equal_files_are_left_alone(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = str(tmp_path / "store")
    storage.publish(release, uri)
    changes: list[str] = []
    for replace in (False, True):
        with watched(monkeypatch, changes.append):
            storage.publish(release, uri, replace=replace)
    assert {storage.name(uri) for uri in changes} <= {"manifest.claim.json"}


def test_publishing_again_repairs_damaged_files(
    release: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = str(tmp_path / "store")
    storage.publish(release, uri)
    (tmp_path / "store" / "a.bin").write_bytes(b"a" * 999 + b"b")
    (tmp_path / "store" / "sub" / "b.bin").unlink()
    storage.publish(release, uri)
    storage.check(uri)
    assert "store/a.bin fails its checksum" in caplog.text


def test_other_files_are_refused(release: Path, tmp_path: Path) -> None:
    uri = str(tmp_path / "store")
    storage.publish(release, uri)
    with pytest.raises(ConflictError, match=rf"^{uri} holds other files, and a published folder is not changed"):
        storage.publish(folder_with(tmp_path / "other", **{"a.bin": b"other"}), uri)
    storage.check(uri)


def test_readers_find_the_former_files_or_their_replacement(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "store")
    storage.publish(release, uri)
    for number in range(3):  # the second and third time, the former files are a replacement themselves
        other = folder_with(tmp_path / f"other-{number}", **{"a.bin": b"%d" % number, "c.bin": b"%d" % number})
        former = storage.read_manifest(uri).files
        found: list[bool] = []

        def read(changed: str, former: Any = former, number: int = number, found: list[bool] = found) -> None:
            storage.check(uri)
            folder = storage.on_this_machine(uri, tmp_path / "unused")
            names = storage.read_manifest(uri).files
            assert names == former or {(folder / name).read_bytes() for name in names} == {b"%d" % number}
            found.append(names == former)

        with watched(monkeypatch, read):
            storage.publish(other, uri, replace=True)
        assert found[0]
        assert not found[-1]
        assert storage.read_published(uri, "c.bin") == b"%d" % number
        copy = storage.fetch(uri, tmp_path / f"into-{number}")
        assert sorted(os.listdir(copy)) == ["a.bin", "c.bin", "manifest.json"]
        storage.check(str(copy))
        [folder] = [name for name in storage.list_folders(uri) if name.startswith("files-")]
        assert storage.list_names(uri) == sorted([folder, "manifest.json", "sub"])


def test_a_replacement_cut_short_changes_nothing_and_is_tidied_up(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = folder_with(tmp_path / "other", **{"a.bin": b"other"})
    for operation in range(4):
        uri = str(tmp_path / f"store-{operation}")
        storage.publish(release, uri)
        (tmp_path / f"store-{operation}" / "notes.txt").write_text("mine")
        assert killed_at(monkeypatch, operation, partial(storage.publish, other, uri, replace=True))
        storage.check(uri)
        assert ("sub/b.bin" in storage.read_manifest(uri).files) == (operation < 2)
        storage.publish(folder_with(tmp_path / f"third-{operation}", d=b"d"), uri, replace=True)
        storage.check(uri)
        assert len([name for name in storage.list_folders(uri) if name != "sub"]) == 1
        assert (tmp_path / f"store-{operation}" / "notes.txt").read_text() == "mine"


def test_a_replacement_without_room_leaves_nothing(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, upload = str(tmp_path / "store"), files.upload
    storage.publish(release, uri)
    before = sorted(tmp_path.rglob("store/*"))

    def full(path: Path, target: str) -> None:
        if path.name == "y":
            raise DiskFullError(f"{target}: No space left on device")
        upload(path, target)

    monkeypatch.setattr(files, "upload", full)
    with pytest.raises(DiskFullError):
        storage.publish(folder_with(tmp_path / "new", x=b"x", y=b"y"), uri, replace=True)
    assert sorted(tmp_path.rglob("store/*")) == before
    storage.check(uri)


def test_of_two_simultaneous_replacements_one_is_refused(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, first = str(tmp_path / "store"), [True]
    storage.publish(release, uri)
    one, two = folder_with(tmp_path / "one", x=b"1"), folder_with(tmp_path / "two", x=b"2")

    def other_goes_first(changed: str) -> None:
        if first and first.pop():
            storage.publish(two, uri, replace=True)

    with (
        watched(monkeypatch, other_goes_first),
        pytest.raises(ConflictError, match=rf"^{uri} was replaced by another process at the same time"),
    ):
        storage.publish(one, uri, replace=True)
    storage.check(uri)
    assert storage.read_published(uri, "x") == b"2"
    assert len(storage.list_folders(uri)) == 2, "its files, and the empty folder `sub`"


def test_two_equal_replacements_both_succeed(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, first = str(tmp_path / "store"), [True]
    storage.publish(release, uri)
    new = folder_with(tmp_path / "new", x=b"1")

    def other_goes_first(changed: str) -> None:
        if first and first.pop():
            storage.publish(new, uri, replace=True)

    with watched(monkeypatch, other_goes_first):
        storage.publish(new, uri, replace=True)
    storage.check(uri)
    assert len(storage.list_folders(uri)) == 2


def test_a_reader_that_a_replacement_overtakes_starts_again(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, first, download = str(tmp_path / "store"), [True], files.download
    storage.publish(release, uri)
    new = folder_with(tmp_path / "new", **{"a.bin": b"new", "c.bin": b"new"})

    def replaced_before(source: str, path: Path, **options: bool) -> None:
        if first and first.pop():
            storage.publish(new, uri, replace=True)
        download(source, path, **options)

    monkeypatch.setattr(files, "download", replaced_before)
    found = storage.fetch(uri, tmp_path / "into")
    assert (found / "a.bin").read_bytes() == (found / "c.bin").read_bytes() == b"new"


def test_a_file_of_somebody_else_is_not_overwritten(release: Path, tmp_path: Path) -> None:
    uri = str(tmp_path / "store")
    folder_with(tmp_path / "store", **{"a.bin": b"somebody else's"})
    storage.publish(release, uri)
    assert (tmp_path / "store" / "a.bin").read_bytes() == b"somebody else's"
    assert storage.read_published(uri, "a.bin") == b"a" * 1000
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(DamagedError, match=r"app/manifest\.json is damaged"):
        storage.publish(release, str(tmp_path / "app"))


def test_credentials_that_may_not_list_can_publish(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(uri: str) -> list[str]:
        raise RefusedError(f"{uri}: access denied")

    uri, taken = str(tmp_path / "store"), folder_with(tmp_path / "taken", **{"a.bin": b"somebody else's"})
    monkeypatch.setattr(files, "list_names", refused)
    monkeypatch.setattr(files, "list_folders", refused)
    storage.publish(release, uri)
    storage.publish(folder_with(tmp_path / "other", x=b"x"), uri, replace=True)
    storage.publish(release, str(taken))
    for place in (uri, str(taken)):
        storage.check(place)
    assert (taken / "a.bin").read_bytes() == b"somebody else's"


def test_a_damaged_manifest_is_replaced_if_asked(release: Path, tmp_path: Path) -> None:
    uri = str(tmp_path / "store")
    storage.publish(release, uri)
    (tmp_path / "store" / "manifest.json").write_text("{")
    with pytest.raises(DamagedError, match="is not JSON"):
        storage.publish(release, uri)
    storage.publish(release, uri, replace=True)
    storage.check(uri)


def test_a_damaged_upload_is_repeated(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    upload, damaged = files.upload, [True, False]

    def spoil(path: Path, target: str) -> None:
        upload(path, target)
        if path.name == "a.bin" and damaged.pop(0):
            Path(target).write_bytes(b"a" * 999 + b"b")

    monkeypatch.setattr(files, "upload", spoil)
    uri = str(tmp_path / "store")
    storage.publish(release, uri)
    assert "store/a.bin fails its checksum" in caplog.text
    storage.check(uri)
    damaged += [True, True]
    with pytest.raises(DamagedError, match=r"again/a\.bin fails its checksum"):
        storage.publish(release, str(tmp_path / "again"))
    assert not storage.is_complete(str(tmp_path / "again"))


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


NO_FILE_IN_IT = ["../x", "/etc/x", "a/../../x", "", ".", "/", "./x", "a//b", "a/", "a/./b", "manifest.json"]


@pytest.mark.parametrize("name", NO_FILE_IN_IT)
def test_names_that_are_no_file_in_the_directory_are_refused(release: Path, tmp_path: Path, name: str) -> None:
    store = tmp_path / "store"
    storage.publish(release, str(store))
    (store / "keep.txt").write_bytes(b"of the user")
    tree = {"files": {name: {"bytes": 0, "sha256": ""}}}
    storage.write_json(str(store / "manifest.json"), tree)
    message = "not a file inside of the directory|a manifest among its files"
    with pytest.raises(StorageError, match=message):
        storage.fetch(str(store), tmp_path / "into")
    with pytest.raises(StorageError, match=message):
        storage.publish(release, str(store), replace=True)
    assert storage.read_json(str(store / "manifest.json")) == tree
    assert (store / "keep.txt").exists()


def test_a_manifest_in_the_folder_of_a_replacement_is_refused(tmp_path: Path) -> None:
    folder = f"files-{'0' * 32}"
    tree = {"format": 2, "folder": folder, "files": {f"{folder}/manifest.json": {"bytes": 0, "sha256": ""}}}
    storage.write_json(str(tmp_path / "manifest.json"), tree)
    with pytest.raises(StorageError, match="names a manifest among its files"):
        storage.fetch(str(tmp_path), tmp_path / "into")


def test_a_folder_with_the_name_of_a_former_file_is_not_deleted(
    release: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "store"
    storage.publish(release, str(store))
    (store / "a.bin").unlink()
    (store / "a.bin").mkdir()
    (store / "a.bin" / "keep.txt").write_bytes(b"of the user")
    storage.publish(folder_with(tmp_path / "new", b=b"new"), str(store), replace=True)
    assert (store / "a.bin" / "keep.txt").exists()
    assert not (store / "sub" / "b.bin").exists()
    assert "a.bin is a directory, though the former manifest names it as a file" in caplog.text


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


def test_the_manifest_of_a_replacement(release: Path, tmp_path: Path) -> None:
    uri = str(tmp_path / "store")
    storage.publish(release, uri)
    storage.publish(folder_with(tmp_path / "new", x=b""), uri, replace=True)
    tree = json.loads((tmp_path / "store" / "manifest.json").read_text())
    entry = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    assert tree == {"format": 2, "folder": tree["folder"], "files": {f"{tree['folder']}/x": entry}}


def test_a_manifest_of_a_newer_version(release: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    uri, path = str(tmp_path / "store"), tmp_path / "store" / "manifest.json"
    storage.publish(release, uri)
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, "format": 1, "compression": "none"}))
    storage.check(uri)
    assert "ignored keys that this version does not know: compression" in caplog.text
    path.write_text(json.dumps({**tree, "format": 3}))
    with pytest.raises(StateError, match=r"manifest\.json has format 3, .* upgrade s2s-ray"):
        storage.check(uri)


OUTSIDE = json.dumps({"format": 2, "folder": f"files-{0:032}", "files": {"a": {"bytes": 0, "sha256": ""}}})


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        "{",
        '{"files": 3}',
        '{"files": {"a": {"bytes": "many"}}}',
        '{"format": 2, "folder": "../x", "files": {}}',
        OUTSIDE,
    ],
)
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

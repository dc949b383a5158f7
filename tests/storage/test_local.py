"""Files on this machine: what the errors of the operating system mean, and conditional writes."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import threading
from pathlib import Path
from typing import BinaryIO

import pytest

from s2s_ray import storage
from s2s_ray.errors import (
    ConflictError,
    DiskFullError,
    InputError,
    NotFoundError,
    RefusedError,
    StorageError,
    UnreachableError,
)
from s2s_ray.storage import conditional

KINDS = [
    (errno.ENOSPC, DiskFullError, "No space left on device; free some space"),
    (errno.EDQUOT, DiskFullError, "Disk quota exceeded; free some space or have the quota raised"),
    (errno.EFBIG, DiskFullError, "File too large"),
    (errno.EACCES, RefusedError, "Permission denied; check its permissions and those of its directories"),
    (errno.EPERM, RefusedError, "Operation not permitted; check its permissions"),
    (errno.EROFS, RefusedError, "Read-only file system; choose a place"),
    (errno.ESTALE, UnreachableError, "the network file system does not respond, try again"),
    (errno.ETIMEDOUT, UnreachableError, "the network file system does not respond, try again"),
    (errno.EIO, StorageError, "the disk or its connection fails"),
    (errno.EMFILE, StorageError, "raise the limit of open files"),
    (errno.ENOLCK, StorageError, "this file system has no locks"),
    (errno.ENOSYS, StorageError, "this file system has no locks; mount it with them"),
]


@pytest.mark.parametrize(("number", "kind", "message"), KINDS)
def test_errors_of_the_system_have_a_class_and_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StorageError], message: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    path = str(tmp_path / "x")
    storage.write_bytes(path, b"")
    monkeypatch.setattr(os, "stat", fail)
    monkeypatch.setattr(os, "scandir", fail)
    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.setattr("s2s_ray.storage.local.Path.open", fail)
    monkeypatch.setattr("s2s_ray.storage.local.Path.read_bytes", fail)
    for attempt in (storage.exists, storage.size, storage.list_names, storage.read_bytes, storage.open_input):
        with pytest.raises(kind, match=rf"^{path}: .*{message}") as raised:
            attempt(path)
        assert type(raised.value) is kind
    with pytest.raises(kind, match=message):
        storage.write_bytes(path, b"new")


def test_paths_that_cannot_exist_are_named(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_bytes(b"")
    for path, message in (
        (tmp_path / ("x" * 300), "File name too long; choose a shorter name"),
        (tmp_path / "loop", "its symbolic links lead back to themselves"),
    ):
        for attempt in (storage.exists, storage.read_bytes):
            with pytest.raises(StorageError, match=rf"^{path}: .*{message}"):
                attempt(str(path))
    with pytest.raises(StorageError, match="Is a directory; expected a file"):
        storage.read_bytes(str(tmp_path))
    with pytest.raises(StorageError, match="Is a directory; expected a file"):
        storage.write_bytes(str(tmp_path), b"")
    with pytest.raises(StorageError, match="a file stands where one of its directories should be"):
        storage.read_bytes(str(tmp_path / "file" / "below"))
    with pytest.raises(NotFoundError, match="is a directory, expected a file"):
        storage.size(str(tmp_path))
    assert not storage.exists(str(tmp_path / "file" / "below"))
    assert storage.list_names(str(tmp_path / "file" / "below")) == []
    storage.delete(str(tmp_path / "file" / "below"))


@pytest.mark.parametrize("uri", ["", "  ", "a\0b", "s3://bucket/a\0b", "file://elsewhere/x"])
def test_texts_that_are_no_uri_are_refused(uri: str) -> None:
    for attempt in (storage.read_bytes, storage.exists, storage.list_names, storage.delete):
        with pytest.raises(InputError):
            attempt(uri)


@pytest.mark.parametrize("name", ["a#b", "a?b=c", "a b", "ü", "100%"])
def test_characters_with_a_meaning_elsewhere_belong_to_the_name_of_a_local_file(tmp_path: Path, name: str) -> None:
    storage.write_bytes(f"file://{tmp_path}/{name}", b"1")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert storage.read_bytes(str(tmp_path / name)) == b"1"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_directories_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    storage.write_bytes(str(tmp_path / "x"), b"1")
    assert storage.read_bytes(str(tmp_path / "x")) == b"1"


@pytest.mark.parametrize("call", ["unlink", "rmdir", "open"])
def test_a_folder_that_another_process_deletes_at_the_same_time_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    folder = tmp_path / "run"
    for name in "abc":
        (folder / name).mkdir(parents=True)
        (folder / name / "file").write_bytes(b"")
    real, deleted = getattr(os, call), list[str]()

    def after_another(name: str, *args: int, dir_fd: int | None = None) -> int | None:
        if call == "open" and name in ("a", "b"):
            shutil.rmtree(folder / name)
        elif call != "open" and not deleted:
            deleted.append(name)
            real(name, dir_fd=dir_fd)
        found: int | None = real(name, *args, dir_fd=dir_fd)
        return found

    monkeypatch.setattr(os, call, after_another)
    storage.delete(str(folder))
    assert not folder.exists()


def test_names_that_are_not_utf8_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))).mkdir()
    assert storage.list_names(str(tmp_path)) == storage.list_folders(str(tmp_path)) == ["x"]
    storage.delete(str(tmp_path))
    assert not tmp_path.exists()


def test_a_write_whose_file_was_deleted_meanwhile_is_a_conflict(tmp_path: Path) -> None:
    uri = str(tmp_path / "x")
    conditional.write(uri, b"1", None)
    version = conditional.read(uri)[1]
    storage.delete(uri)
    with pytest.raises(ConflictError):
        conditional.write(uri, b"2", version)
    assert not storage.exists(uri)


def test_a_lock_that_was_deleted_and_made_again_still_excludes(tmp_path: Path) -> None:
    path, lock = tmp_path / "x", tmp_path / ".x.lock.tmp~"

    def held() -> BinaryIO:
        file = lock.open("wb")
        fcntl.flock(file, fcntl.LOCK_EX)
        return file

    first = held()
    writer = threading.Thread(target=conditional.write, args=(str(path), b"1", None))
    writer.start()  # waits for the first lock
    writer.join(0.05)
    lock.unlink()
    second = held()
    first.close()
    writer.join(0.05)
    assert writer.is_alive()
    assert not path.exists()
    second.close()
    writer.join()
    assert path.read_bytes() == b"1"


def test_a_forked_process_does_not_keep_a_lock(tmp_path: Path, inherited: list[int]) -> None:
    conditional.write(str(tmp_path / "x"), b"1", None)
    assert len(inherited) == 1
    with (tmp_path / ".x.lock.tmp~").open("rb") as other:
        assert os.path.samestat(os.fstat(inherited[0]), os.fstat(other.fileno()))
        fcntl.flock(other.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)

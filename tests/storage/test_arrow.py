"""Storage that pyarrow reads: a local file system of pyarrow stands for Google's, Azure's and Hadoop's."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import fs

from s2s_ray import storage
from s2s_ray.errors import ConflictError, DiskFullError, NotFoundError, RefusedError, StorageError, UnreachableError
from s2s_ray.storage import arrow, conditional, files, retries, store
from s2s_ray.storage.filesystem import open_filesystem
from tests.support.folder_store import serve_folder


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a bucket that is a directory of this machine."""
    system = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    (tmp_path / "bucket").mkdir()
    store._store.cache_clear()  # the store logs its warning once
    monkeypatch.setattr(arrow, "_file_system", lambda uri: (system, uri.partition("://")[2].strip("/")))
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.0)
    return "gs://bucket"


def test_files_are_written_read_listed_and_deleted(bucket: str, tmp_path: Path) -> None:
    storage.write_bytes(f"{bucket}/x", b"one")
    storage.write_bytes(f"{bucket}/empty", b"")
    (tmp_path / "bucket" / "sub").mkdir()
    (tmp_path / "local").write_bytes(b"local")
    storage.upload(tmp_path / "local", f"{bucket}/sub/copy")
    storage.download(f"{bucket}/sub/copy", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"local"
    assert storage.list_names(bucket) == ["empty", "sub", "x"]
    assert storage.list_folders(bucket) == ["sub"]
    assert storage.read_bytes(f"{bucket}/empty") == b""
    assert storage.size(f"{bucket}/x") == 3
    with storage.open_input(f"{bucket}/x") as file:
        file.seek(1)
        assert file.read() == b"ne"
    storage.delete(f"{bucket}/sub")
    storage.delete(f"{bucket}/none")
    assert not storage.exists(f"{bucket}/sub")
    with pytest.raises(NotFoundError, match=r"^gs://bucket/none does not exist"):
        storage.read_bytes(f"{bucket}/none")


class BreakingFile:
    """A file of pyarrow whose reads fail with the errors that are left."""

    def __init__(self, file: Any, errors: list[Exception]) -> None:
        self._file, self._errors = file, errors

    def __enter__(self) -> BreakingFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int | None = None) -> bytes:
        if self._errors:
            raise self._errors.pop(0)
        content: bytes = self._file.read(size)
        return content


class TestReadsThatBreakOff:
    @pytest.fixture
    def errors(self, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
        """The errors of the next reads from the bucket."""
        left: list[Exception] = []
        system = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())

        class Breaking:
            type_name = "local"

            def open_input_file(self, path: str) -> BreakingFile:
                return BreakingFile(system.open_input_file(path), left)

        storage.write_bytes(f"{bucket}/x", b"content")
        monkeypatch.setattr(arrow, "_file_system", lambda uri: (Breaking(), uri.partition("://")[2]))
        return left

    ATTEMPTS = pytest.mark.parametrize("call", ["download", "size_and_sha256", "read_bytes"])

    def attempt(self, call: str, path: Path) -> None:
        if call == "download":
            storage.download("gs://bucket/x", path)
            assert path.read_bytes() == b"content"
        elif call == "size_and_sha256":
            assert files.size_and_sha256("gs://bucket/x") == (7, hashlib.sha256(b"content").hexdigest())
        else:
            assert storage.read_bytes("gs://bucket/x") == b"content"

    @ATTEMPTS
    def test_they_are_retried(self, errors: list[Exception], tmp_path: Path, call: str) -> None:
        errors += [OSError("google::cloud::Status(UNAVAILABLE: try again"), ConnectionResetError("reset")]
        self.attempt(call, tmp_path / "copy")
        assert errors == []

    @ATTEMPTS
    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            (PermissionError(errno.EACCES, "PERMISSION_DENIED"), RefusedError),
            (FileNotFoundError(errno.ENOENT, "gone"), NotFoundError),
            (OSError(errno.EIO, "remote disk"), StorageError),
        ],
    )
    def test_the_remote_file_is_blamed(
        self, errors: list[Exception], tmp_path: Path, call: str, error: Exception, kind: type[StorageError]
    ) -> None:
        errors.append(error)
        with pytest.raises(StorageError, match=r"^gs://bucket/x\b") as raised:
            self.attempt(call, tmp_path / "copy")
        assert type(raised.value) is kind

    @pytest.mark.usefixtures("errors")
    def test_the_local_disk_is_blamed_for_its_own_faults(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(DiskFullError, match=rf"^{tmp_path}/copy: "):
            storage.download("gs://bucket/x", tmp_path / "copy")


def test_conditional_writes_compare_before_they_write_and_say_so_once(
    bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    uri = f"{bucket}/x"
    conditional.write(uri, b"one", None)
    version = conditional.read(uri)[1]
    conditional.write(uri, b"two", version)
    for stale in (None, version):
        with pytest.raises(ConflictError):
            conditional.write(uri, b"three", stale)
    conditional.write(f"{bucket}/y", b"one", None)
    assert caplog.text.count("gs:// has no conditional writes") == 1


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (OSError("google::cloud::Status(UNAVAILABLE: Could not create a OAuth2 access token"), RefusedError, "gcloud"),
        (OSError("google::cloud::Status(PERMISSION_DENIED: no"), RefusedError, "GOOGLE_APPLICATION_CREDENTIALS"),
        (OSError("google::cloud::Status(UNAVAILABLE: try again"), UnreachableError, "UNAVAILABLE"),
        (ConnectionResetError("reset"), UnreachableError, "reset"),
        (pa.ArrowException("Failed to get token from DefaultAzureCredential."), RefusedError, "Credential"),
        (OSError("other"), StorageError, "other"),
    ],
)
def test_errors_are_told_apart(
    bucket: str, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[StorageError], message: str
) -> None:
    def fail(uri: str) -> None:
        raise error

    monkeypatch.setattr(arrow, "_file_system", fail)
    with pytest.raises(StorageError, match=rf"^gs://bucket/x: .*{message}") as raised:
        storage.read_bytes(f"{bucket}/x")
    assert type(raised.value) is kind


class TestTheViewForOtherLibraries:
    """`open_filesystem`: what Ray Train stores its own files with."""

    @pytest.fixture
    def view(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[fs.FileSystem, str]:
        serve_folder(monkeypatch, tmp_path / "remote")
        system, path = open_filesystem("s3://bucket/run")
        return pickle.loads(pickle.dumps(system)), path

    def test_directories_are_copied_to_it_listed_and_deleted(
        self, view: tuple[fs.FileSystem, str], tmp_path: Path
    ) -> None:
        system, path = view
        assert path == "bucket/run"
        (tmp_path / "local" / "sub").mkdir(parents=True)
        (tmp_path / "local" / "a").write_bytes(b"a")
        (tmp_path / "local" / "sub" / "b").write_bytes(b"b" * 3_000_000)
        system.create_dir(path)
        fs.copy_files(str(tmp_path / "local"), path, fs.LocalFileSystem(), system)
        found = system.get_file_info(fs.FileSelector(path, recursive=True))
        assert {(info.path, info.type.name) for info in found} == {
            ("bucket/run/a", "File"),
            ("bucket/run/sub", "Directory"),
            ("bucket/run/sub/b", "File"),
        }
        assert storage.read_bytes("s3://bucket/run/sub/b") == b"b" * 3_000_000
        with system.open_input_file(f"{path}/a") as file:
            assert file.read() == b"a"
        system.delete_dir(path)
        assert system.get_file_info(path).type.name == "NotFound"
        with pytest.raises(FileNotFoundError):
            system.open_input_file(f"{path}/a")

    def test_a_file_that_was_not_closed_is_not_written(self, view: tuple[fs.FileSystem, str]) -> None:
        system, path = view
        stream = system.open_output_stream(f"{path}/cut")
        stream.write(b"half")
        del stream
        assert not storage.exists("s3://bucket/run/cut")

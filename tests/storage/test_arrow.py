"""Storage that pyarrow reads: a local file system of pyarrow stands for Google's, Azure's and Hadoop's."""

from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import fs

from s2s_ray import storage
from s2s_ray.errors import ConflictError, NotFoundError, RefusedError, StorageError, UnreachableError
from s2s_ray.storage import arrow, conditional, retries
from s2s_ray.storage.filesystem import open_filesystem
from tests.support.folder_store import serve_folder


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a bucket that is a directory of this machine."""
    system = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    (tmp_path / "bucket").mkdir()
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


def test_conditional_writes_compare_before_they_write_and_say_so(bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    uri = f"{bucket}/x"
    conditional.write(uri, b"one", None)
    assert "no conditional write" in caplog.text
    version = conditional.read(uri)[1]
    conditional.write(uri, b"two", version)
    for stale in (None, version):
        with pytest.raises(ConflictError):
            conditional.write(uri, b"three", stale)


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

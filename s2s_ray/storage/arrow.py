"""Files on other storage that pyarrow reads: Google Cloud Storage, Azure and HDFS. None of them is required."""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from s2s_ray.errors import ConflictError, NotFoundError, RefusedError, StorageError, UnreachableError
from s2s_ray.references import resolved
from s2s_ray.secrets import masked
from s2s_ray.storage import retries
from s2s_ray.storage.local import CHUNK, replacing
from s2s_ray.storage.local_faults import local_faults
from s2s_ray.storage.range_reader import RangeReader
from s2s_ray.storage.store import Create, Entry, Info, Mode, Overwrite, Stored
from s2s_ray.uri import Uri

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyarrow import fs

log = logging.getLogger(__name__)

T = TypeVar("T")
_NEEDED = {
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to a key file, run `gcloud auth application-default login`, or run on a "
    "machine with a service account",
    "abfs": "set AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_KEY, run `az login`, or run on a machine with an identity",
    "hdfs": "set HADOOP_HOME, JAVA_HOME and CLASSPATH, and for Kerberos run kinit",
}
_LONGEST = 500
"""Characters of another library's message that are shown."""
_KIND = {"gs": "gs", "gcs": "gs", "abfs": "abfs", "abfss": "abfs", "hdfs": "hdfs", "viewfs": "hdfs"}
# pyarrow gives these storages' errors neither a class nor a number
_REFUSED = (
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "OAuth2",
    "Credential",
    "AuthorizationFailure",
    "AuthenticationFail",
)
_AWAY = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "timed out", "onnection reset", "Could not resolve")
_systems: dict[tuple[int, str], fs.FileSystem] = {}


class ArrowStore:
    """The files of one scheme; the version of one is the digest of its content.

    There are no conditional writes: the version is compared before the write, which leaves a moment between the two.
    A warning says so once.
    """

    def __init__(self, scheme: str) -> None:
        self._scheme = scheme
        self._has_warned = False

    def get(self, uri: Uri) -> Stored:
        def read(system: fs.FileSystem, path: str) -> bytes:
            with system.open_input_file(path) as file:
                content: bytes = file.read()
                _require_whole(len(content), file.size())
                return content

        content = self._patiently(uri, read)
        return Stored(content, _version(content))

    def put(self, uri: Uri, content: bytes, mode: Mode) -> str:
        if not isinstance(mode, Overwrite):
            self._warn(uri)
            try:
                found = self.get(uri).version
            except NotFoundError:
                found = None
            if found != (None if isinstance(mode, Create) else mode.version):
                raise ConflictError(f"{uri} was changed by another process since it was read")
        self._patiently(uri, lambda system, path: _put(system, path, content))
        return _version(content)

    def head(self, uri: Uri) -> Info | None:
        info = self._patiently(uri, lambda system, path: system.get_file_info(path))
        if info.type.name == "NotFound":
            return None
        if info.type.name == "Directory":
            return Info("folder", 0, 0.0)
        return Info("file", int(info.size), float(info.mtime_ns) / 1e9)

    def list(self, uri: Uri) -> list[Entry]:
        from pyarrow import fs

        def select(system: fs.FileSystem, path: str) -> list[Entry]:
            found = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
            return [Entry(info.base_name, "folder" if info.type.name == "Directory" else "file") for info in found]

        return sorted(self._patiently(uri, select), key=lambda entry: entry.name)

    def delete(self, uri: Uri) -> None:
        def remove(system: fs.FileSystem, path: str) -> None:
            kind = system.get_file_info(path).type.name
            if kind == "Directory":
                system.delete_dir(path)
            elif kind != "NotFound":
                system.delete_file(path)

        self._patiently(uri, remove)

    def download(self, uri: Uri, path: Path, *, checked: bool = False) -> None:
        def copy(system: fs.FileSystem, remote: str) -> None:
            with system.open_input_file(remote) as source, local_faults(str(path)), replacing(path) as target:
                while chunk := self._read(uri, source):
                    target.write(chunk)
                with self._faults(uri):
                    _require_whole(target.tell(), source.size())

        self._patiently(uri, copy)

    def upload(self, path: Path, uri: Uri) -> None:
        import pyarrow as pa

        with local_faults(str(path)):
            # an empty file cannot be mapped
            content = pa.memory_map(str(path)).read_buffer() if path.stat().st_size else b""
        self._patiently(uri, lambda system, remote: _put(system, remote, content))

    def open(self, uri: Uri) -> BinaryIO:
        file, size = self._patiently(uri, _open)

        def fetch(start: int, stop: int) -> bytes:
            def read() -> bytes:
                with self._faults(uri):
                    file.seek(start)
                    content: bytes = file.read(stop - start)
                    _require_whole(len(content), stop - start)
                    return content

            return retries.patiently(uri, self._scheme, read)

        return io.BufferedReader(RangeReader(fetch, size), CHUNK)

    def _warn(self, uri: Uri) -> None:
        """Log once in this process that changes may be lost."""
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "%s: %s:// has no conditional writes here, so of two simultaneous changes one may be lost",
                uri,
                self._scheme,
            )

    def _read(self, uri: Uri, source: Any) -> bytes:
        """Return the next bytes of an open file; its errors are those of the URI, not of where they are copied to."""
        with self._faults(uri):
            content: bytes = source.read(CHUNK)
            return content

    def _patiently(self, uri: Uri, operation: Callable[[fs.FileSystem, str], T]) -> T:
        def attempt() -> T:
            with self._faults(uri):
                return operation(*_file_system(uri))

        return retries.patiently(uri, self._scheme, attempt)

    @contextmanager
    def _faults(self, uri: Uri) -> Iterator[None]:
        import pyarrow as pa

        try:
            yield
        except FileNotFoundError:
            raise NotFoundError(masked(f"{uri} does not exist")) from None
        except (OSError, pa.ArrowException) as error:
            kind, reason = _kind_of(error), " ".join(str(error).split())[:_LONGEST]
            if kind is RefusedError or "libjvm" in reason:
                reason = (
                    f"its credentials or settings are missing or refused; {_NEEDED[_KIND[self._scheme]]} ({reason})"
                )
            raise kind(masked(f"{uri}: {reason}")) from None


def _file_system(uri: Uri) -> tuple[fs.FileSystem, str]:
    """Return the pyarrow file system of a URI and the path in it."""
    from pyarrow import fs

    if _KIND.get(uri.scheme) == "gs":
        path = uri.partition("://")[2].rstrip("/")
        if not path or path.startswith("/"):
            raise StorageError(f"{uri}: expected {uri.scheme}://BUCKET/KEY")
        key = (os.getpid(), "gs")
        if key not in _systems:  # without a limit it looks for credentials and retries for a quarter of an hour
            _systems[key] = fs.GcsFileSystem(retry_time_limit=timedelta(seconds=retries.STALL_TIMEOUT_S))
        return _systems[key], path
    system, path = fs.FileSystem.from_uri(resolved(uri))
    return system, path


def _open(system: fs.FileSystem, path: str) -> tuple[Any, int]:
    """Return an open file and its size."""
    file = system.open_input_file(path)
    return file, int(file.size())


def _kind_of(error: Exception) -> type[StorageError]:
    number, text = getattr(error, "errno", None), str(error)
    if isinstance(error, PermissionError) or any(mark in text for mark in _REFUSED):
        return RefusedError
    if isinstance(error, (ConnectionError, TimeoutError)) or number in (errno.EAGAIN, errno.EHOSTUNREACH):
        return UnreachableError
    return UnreachableError if any(mark in text for mark in _AWAY) else StorageError


def _put(system: fs.FileSystem, path: str, content: Any) -> None:
    if system.type_name == "hdfs":  # object stores have no directories
        system.create_dir(path.rpartition("/")[0], recursive=True)
    # One write call: closing a stream publishes whatever it was given, so an interrupted loop of writes would leave a
    # part of the file under its final name.
    with system.open_output_stream(path) as target:
        target.write(content)


def _require_whole(read: int, length: int) -> None:
    if read != length:
        raise TimeoutError(f"the transfer ended early, after {read} of {length} bytes")


def _version(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

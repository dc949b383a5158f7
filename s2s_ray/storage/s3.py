"""Files on S3 and on servers that speak its protocol.

What is read is checked against what the response says about it twice: its length in `Content-Length` and in
`Content-Range`, and its MD5 where the ETag is one. What is written states its MD5, so that the server refuses an
upload that was changed on its way.
"""

from __future__ import annotations

import io
import logging
import re
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from s2s_ray.errors import ConflictError, DamagedError, NotFoundError, RefusedError, StorageError, UnreachableError
from s2s_ray.storage.local import replacing
from s2s_ray.storage.local_faults import local_faults
from s2s_ray.storage.retries import patiently
from s2s_ray.storage.s3_client import Connection, connection
from s2s_ray.storage.s3_faults import code_of, s3_faults, status_of
from s2s_ray.storage.s3_response import Range, check_digest, etag_of, new_md5, range_of, upload_digest
from s2s_ray.storage.s3_upload import PART, upload_parts
from s2s_ray.storage.store import Create, Entry, Info, Mode, Overwrite, Replace, Stored
from s2s_ray.uri import Uri

log = logging.getLogger(__name__)

T = TypeVar("T")
CHUNK = 1 << 20
"""Bytes that are read from a response, or ahead of a reader, at a time."""
_BUCKET = re.compile(r"[A-Za-z0-9._-]+")
_DELETIONS = 8  # requests at a time


class S3Store:
    """The objects of a bucket; a folder is a prefix with objects below it, and a version is an ETag."""

    def get(self, uri: Uri) -> Stored:
        bucket, key = _place(uri)

        def read(to: Connection) -> Stored:
            with _reading(uri, to):
                response, part = _get(to, uri, bucket, key)
                content = response["Body"].read()
                if len(content) != part.total:
                    raise _ended(uri, len(content), part.total)
                check_digest(uri, response, new_md5(content))
                return Stored(content, etag_of(uri, response))

        return _patiently(uri, read)

    def put(self, uri: Uri, content: bytes, mode: Mode) -> str:
        bucket, key = _place(uri)
        if isinstance(mode, Overwrite):
            if len(content) > PART:
                return upload_parts(uri, bucket, key, content)
            return _patiently(uri, lambda to: _put(to, uri, bucket, key, content))
        condition = {"IfNoneMatch": "*"} if isinstance(mode, Create) else {"IfMatch": mode.version}
        try:
            return _put(connection(uri), uri, bucket, key, content, **condition)
        except NotFoundError as error:
            if isinstance(mode, Replace) and "NoSuchKey" in str(error.__cause__):
                raise ConflictError(f"{uri} was deleted by another process since it was read") from None
            raise

    def head(self, uri: Uri) -> Info | None:
        bucket, key = _bucket_and_key(uri)
        return _patiently(uri, lambda to: _head(to, uri, bucket, key))

    def list(self, uri: Uri) -> list[Entry]:
        bucket, key = _bucket_and_key(uri)
        prefix = f"{key}/" if key else ""
        found: dict[str, Entry] = {}
        for page in _pages(uri, Bucket=bucket, Prefix=prefix, Delimiter="/"):
            for entry in page.get("Contents", []):
                if name := entry["Key"].removeprefix(prefix):
                    found[name] = Entry(name, "file")
            for entry in page.get("CommonPrefixes", []):
                name = entry["Prefix"].removeprefix(prefix).rstrip("/")
                found[name] = Entry(name, "folder")
        return [found[name] for name in sorted(found)]

    def delete(self, uri: Uri) -> None:
        bucket, key = _bucket_and_key(uri)

        def remove(key: str) -> None:
            def send(to: Connection) -> None:
                with s3_faults(uri, to):
                    to.client.delete_object(Bucket=bucket, Key=key)

            _patiently(uri, send)

        if key:
            remove(key)
        try:
            below = [
                entry["Key"]
                for page in _pages(uri, Bucket=bucket, Prefix=f"{key}/" if key else "")
                for entry in page.get("Contents", [])
            ]
        except RefusedError as error:
            log.warning("nothing is deleted below %s, because it cannot be listed: %s", uri, error)
            return
        with ThreadPoolExecutor(_DELETIONS) as pool:
            deque(pool.map(remove, below), maxlen=0)  # raises the first error

    def download(self, uri: Uri, path: Path, *, checked: bool = False) -> None:
        bucket, key = _place(uri)
        with local_faults(str(path)), replacing(path) as target:
            _patiently(uri, _Download(uri, bucket, key, target, None if checked else new_md5()).go_on)

    def upload(self, path: Path, uri: Uri) -> None:
        with local_faults(str(path)), path.open("rb") as file:
            if path.stat().st_size <= PART:
                self.put(uri, file.read(), Overwrite())
            else:
                upload_parts(uri, *_place(uri), file)

    def open(self, uri: Uri) -> BinaryIO:
        bucket, key = _place(uri)

        def begin(to: Connection) -> tuple[bytes, int, str]:
            with _reading(uri, to):
                response, part = _get(to, uri, bucket, key, f"bytes=0-{CHUNK - 1}")
                content = response["Body"].read()
                if len(content) != part.length:
                    raise _ended(uri, len(content), part.length)
                if part.length == part.total:
                    check_digest(uri, response, new_md5(content))
                return content, part.total, etag_of(uri, response)

        def fetch(start: int, stop: int) -> bytes:
            def send(to: Connection) -> bytes:
                with s3_faults(uri, to):
                    response, part = _get(to, uri, bucket, key, f"bytes={start}-{stop - 1}", IfMatch=etag)
                    content: bytes = response["Body"].read()
                    if (part.start, part.length, len(content)) != (start, stop - start, stop - start):
                        raise _ended(uri, len(content), stop - start)
                    return content

            return _patiently(uri, send)

        first, total, etag = _patiently(uri, begin)
        if len(first) == total:
            return io.BytesIO(first)
        return io.BufferedReader(_Reader(fetch, total), CHUNK)


class _Download:
    """A download that is resumed where it broke off, unless the object has changed meanwhile."""

    def __init__(self, uri: Uri, bucket: str, key: str, target: BinaryIO, digest: Any) -> None:
        self.uri, self.bucket, self.key, self.target = uri, bucket, key, target
        self.digest, self.etag = digest, ""

    def _start_again(self) -> None:
        self.target.seek(0)
        self.target.truncate()
        if self.digest is not None:
            self.digest = new_md5()

    def go_on(self, to: Connection) -> None:
        """Copy what is missing."""
        offset = self.target.tell()
        condition = {"IfMatch": self.etag} if offset else {}
        try:
            with _reading(self.uri, to):
                response, part = _get(to, self.uri, self.bucket, self.key, f"bytes={offset}-", **condition)
                if part.start != offset or part.start + part.length != part.total:
                    raise _ended(self.uri, part.length, part.total - offset)
                self.etag = etag_of(self.uri, response)
                while chunk := response["Body"].read(CHUNK):
                    self.target.write(chunk)
                    if self.digest is not None:
                        self.digest.update(chunk)
        except ConflictError:
            self._start_again()
            raise UnreachableError(f"{self.uri} was changed while it was read") from None
        if self.target.tell() != part.total:
            raise _ended(self.uri, self.target.tell(), part.total)
        try:
            if self.digest is not None:
                check_digest(self.uri, response, self.digest)
        except DamagedError:
            self._start_again()
            raise


class _Reader(io.RawIOBase):
    """Reads an object by ranges; all of them are of one version."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        super().__init__()
        self._fetch, self._size, self._position = fetch, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative seek position {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        stop = min(self._position + len(buffer), self._size)
        if stop <= self._position:
            return 0
        content = self._fetch(self._position, stop)
        buffer[: len(content)] = content
        self._position = stop
        return len(content)

    def readall(self) -> bytes:
        if self._position >= self._size:
            return b""
        content = self._fetch(self._position, self._size)
        self._position = self._size
        return content


def _patiently(uri: str, operation: Callable[[Connection], T]) -> T:
    to = connection(uri)
    return patiently(uri, to.server, lambda: operation(connection(uri)))


def _bucket_and_key(uri: Uri) -> tuple[str, str]:
    bucket, _, key = uri[len("s3://") :].strip("/").partition("/")
    if not _BUCKET.fullmatch(bucket):
        reason = f"; {bucket!r} is no name of a bucket" if bucket else ""
        raise StorageError(f"{uri}: expected s3://BUCKET/KEY{reason}")
    return bucket, key


def _place(uri: Uri) -> tuple[str, str]:
    bucket, key = _bucket_and_key(uri)
    if not key:
        raise StorageError(f"{uri}: expected a file, s3://BUCKET/KEY")
    return bucket, key


def _get(
    to: Connection, uri: Uri, bucket: str, key: str, span: str = "bytes=0-", **condition: str
) -> tuple[Any, Range]:
    """Return the response to a request for a range, and which one it holds."""
    from botocore.exceptions import ClientError

    try:
        response = to.client.get_object(Bucket=bucket, Key=key, Range=span, **condition)
    except ClientError as error:
        if status_of(error) != 416:
            raise
        response = to.client.get_object(Bucket=bucket, Key=key, **condition)  # an empty object has no ranges
        if response.get("ContentLength") != 0:
            raise UnreachableError(f"{uri} was changed while it was read") from None
    return response, range_of(uri, response)


def _put(to: Connection, uri: Uri, bucket: str, key: str, content: bytes, **condition: str) -> str:
    with s3_faults(uri, to):
        response = to.client.put_object(
            Bucket=bucket, Key=key, Body=content, **upload_digest(to.endpoint, content), **condition
        )
        return etag_of(uri, response)


def _head(to: Connection, uri: Uri, bucket: str, key: str) -> Info | None:
    from botocore.exceptions import ClientError

    with s3_faults(uri, to):
        try:
            if key:
                response = _head_object(to, bucket, key)
                etag_of(uri, response)
                size = range_of(uri, response).total
                return Info("file", size, response["LastModified"].timestamp())
        except KeyError as error:
            raise UnreachableError(f"{uri}: the response of {to.server} has no {error}") from None
        except ClientError as error:
            if status_of(error) not in (403, 404):
                raise
            if status_of(error) == 403:
                try:
                    found = _listed(to, uri, bucket, key)
                except NotFoundError:
                    return None
                if found is not None:
                    return Info("file", int(found["Size"]), found["LastModified"].timestamp())
        try:
            page = to.client.list_objects_v2(Bucket=bucket, Prefix=f"{key}/" if key else "", MaxKeys=1)
        except ClientError as error:
            if code_of(error) == "NoSuchBucket" or (code_of(error) == "AccessDenied" and key):
                return None
            raise
        return Info("folder", 0, 0.0) if page.get("Contents") or not key else None


def _head_object(to: Connection, bucket: str, key: str) -> Any:
    """Return the facts about an object: the request for a range makes the server state its length twice."""
    from botocore.exceptions import ClientError

    try:
        return to.client.head_object(Bucket=bucket, Key=key, Range="bytes=0-")
    except ClientError as error:
        if status_of(error) != 416:
            raise
        return to.client.head_object(Bucket=bucket, Key=key)  # an empty object has no ranges


def _listed(to: Connection, uri: Uri, bucket: str, key: str) -> dict[str, Any] | None:
    """Return the entry of an object in its bucket's listing, for credentials that may list but not read it.

    Raises:
        NotFoundError: the credentials may not list either, so a missing object and one that they may not read look
            alike; it counts as missing.
        RefusedError: the credentials are wrong.
    """
    from botocore.exceptions import ClientError

    with s3_faults(uri, to):
        try:
            page = to.client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
        except ClientError as error:
            if code_of(error) != "AccessDenied":
                raise
            raise NotFoundError(
                f"{uri} does not exist, or these credentials may not read it: they may not list the bucket either, "
                f"and {to.server} gives the same response in both cases"
            ) from None
    return next((entry for entry in page.get("Contents", []) if entry["Key"] == key), None)


@contextmanager
def _reading(uri: Uri, to: Connection) -> Iterator[None]:
    """Turn errors at reading an object into those of this library; a missing one that may not be listed is missing."""
    try:
        with s3_faults(uri, to):
            yield
    except RefusedError as error:
        cause: Any = error.__cause__
        if getattr(cause, "response", None) is None or code_of(cause) not in ("AccessDenied", "403"):
            raise
        if _listed(to, uri, *_place(uri)) is None:
            raise NotFoundError(f"{uri} does not exist") from None
        raise


def _pages(uri: Uri, **arguments: str) -> Iterator[dict[str, Any]]:
    """Yield the pages of a bucket's listing."""

    def send(to: Connection) -> dict[str, Any]:
        with s3_faults(uri, to):
            page: dict[str, Any] = to.client.list_objects_v2(**arguments)
            return page

    while True:
        page = _patiently(uri, send)
        yield page
        if not page.get("IsTruncated"):
            return
        arguments["ContinuationToken"] = page["NextContinuationToken"]


def _ended(uri: str, read: int, length: int) -> UnreachableError:
    return UnreachableError(f"{uri}: the transfer ended early, after {read} of {length} bytes")

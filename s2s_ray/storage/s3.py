"""Files on S3 and on servers that speak its protocol.

What is read is checked against what the response says about it twice: its length in `Content-Length` and in
`Content-Range`, and its MD5 where the ETag is one. What is written states its MD5, or its SHA-256 where there is no
TLS, so that the server refuses an upload that was changed on its way.
"""

from __future__ import annotations

import io
import logging
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from s2s_ray.errors import ConflictError, DamagedError, NotFoundError, RefusedError, UnreachableError
from s2s_ray.storage.local import replacing
from s2s_ray.storage.local_faults import local_faults
from s2s_ray.storage.range_reader import RangeReader
from s2s_ray.storage.s3_client import Connection, connection
from s2s_ray.storage.s3_faults import s3_faults
from s2s_ray.storage.s3_requests import (
    bucket_and_key,
    ended,
    get_range,
    head_or_folder,
    pages,
    place,
    put_object,
    reading,
    send,
)
from s2s_ray.storage.s3_response import check_digest, etag_of, new_md5
from s2s_ray.storage.s3_upload import PART, upload_parts
from s2s_ray.storage.store import Create, Entry, Info, Mode, Overwrite, Replace, Stored
from s2s_ray.uri import Uri

log = logging.getLogger(__name__)

T = TypeVar("T")
CHUNK = 1 << 20
"""Bytes that are read from a response, or ahead of a reader, at a time."""
_DELETIONS = 8  # requests at a time


class S3Store:
    """The objects of a bucket; a folder is a prefix with objects below it, and a version is an ETag."""

    def get(self, uri: Uri) -> Stored:
        bucket, key = place(uri)

        def read(to: Connection) -> Stored:
            with reading(uri, to):
                response, part = get_range(to, uri, bucket, key)
                content = response["Body"].read()
                if len(content) != part.total:
                    raise ended(uri, len(content), part.total)
                check_digest(uri, response, new_md5(content))
                return Stored(content, etag_of(uri, response))

        return send(uri, read)

    def put(self, uri: Uri, content: bytes, mode: Mode) -> str:
        bucket, key = place(uri)
        if isinstance(mode, Overwrite):
            if len(content) > PART:
                return upload_parts(uri, bucket, key, content)
            return send(uri, lambda to: put_object(to, uri, bucket, key, content))
        condition = {"IfNoneMatch": "*"} if isinstance(mode, Create) else {"IfMatch": mode.version}
        try:
            return put_object(connection(uri), uri, bucket, key, content, **condition)
        except NotFoundError as error:
            if isinstance(mode, Replace) and "NoSuchKey" in str(error.__cause__):
                raise ConflictError(f"{uri} was deleted by another process since it was read") from None
            raise

    def head(self, uri: Uri) -> Info | None:
        bucket, key = bucket_and_key(uri)
        return send(uri, lambda to: head_or_folder(to, uri, bucket, key))

    def list(self, uri: Uri) -> list[Entry]:
        bucket, key = bucket_and_key(uri)
        prefix = f"{key}/" if key else ""
        found: dict[str, Entry] = {}
        for page in pages(uri, Bucket=bucket, Prefix=prefix, Delimiter="/"):
            for entry in page.get("Contents", []):
                if name := entry["Key"].removeprefix(prefix):
                    found[name] = Entry(name, "file")
            for entry in page.get("CommonPrefixes", []):
                name = entry["Prefix"].removeprefix(prefix).rstrip("/")
                found[name] = Entry(name, "folder")
        return [found[name] for name in sorted(found)]

    def delete(self, uri: Uri) -> None:
        bucket, key = bucket_and_key(uri)

        def remove(key: str) -> None:
            def delete(to: Connection) -> None:
                with s3_faults(uri, to):
                    to.client.delete_object(Bucket=bucket, Key=key)

            send(uri, delete)

        if key:
            remove(key)
        try:
            below = [
                entry["Key"]
                for page in pages(uri, Bucket=bucket, Prefix=f"{key}/" if key else "")
                for entry in page.get("Contents", [])
            ]
        except RefusedError as error:
            log.warning("nothing is deleted below %s, because it cannot be listed: %s", uri, error)
            return
        with ThreadPoolExecutor(_DELETIONS) as pool:
            deque(pool.map(remove, below), maxlen=0)  # raises the first error

    def download(self, uri: Uri, path: Path, *, checked: bool = False) -> None:
        bucket, key = place(uri)
        with local_faults(str(path)), replacing(path) as target:
            send(uri, _Download(uri, bucket, key, target, None if checked else new_md5()).go_on)

    def upload(self, path: Path, uri: Uri) -> None:
        with local_faults(str(path)), path.open("rb") as file:
            if path.stat().st_size <= PART:
                self.put(uri, file.read(), Overwrite())
            else:
                upload_parts(uri, *place(uri), file)

    def open(self, uri: Uri) -> BinaryIO:
        bucket, key = place(uri)

        def begin(to: Connection) -> tuple[bytes, int, str]:
            with reading(uri, to):
                response, part = get_range(to, uri, bucket, key, f"bytes=0-{CHUNK - 1}")
                content = response["Body"].read()
                if len(content) != part.length:
                    raise ended(uri, len(content), part.length)
                if part.length == part.total:
                    check_digest(uri, response, new_md5(content))
                return content, part.total, etag_of(uri, response)

        def fetch(start: int, stop: int) -> bytes:
            def read(to: Connection) -> bytes:
                with s3_faults(uri, to):
                    response, part = get_range(to, uri, bucket, key, f"bytes={start}-{stop - 1}", IfMatch=etag)
                    content: bytes = response["Body"].read()
                    if (part.start, part.length, len(content)) != (start, stop - start, stop - start):
                        raise ended(uri, len(content), stop - start)
                    return content

            return send(uri, read)

        first, total, etag = send(uri, begin)
        if len(first) == total:
            return io.BytesIO(first)
        return io.BufferedReader(RangeReader(fetch, total), CHUNK)


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
            with reading(self.uri, to):
                response, part = get_range(to, self.uri, self.bucket, self.key, f"bytes={offset}-", **condition)
                if part.start != offset:  # from the start, if the server does not know ranges
                    self._start_again()
                    raise UnreachableError(f"{self.uri}: {to.server} sent another part than the requested one")
                if part.start + part.length != part.total:
                    raise ended(self.uri, part.length, part.total - offset)
                self.etag = etag_of(self.uri, response)
                while chunk := response["Body"].read(CHUNK):
                    self.target.write(chunk)
                    if self.digest is not None:
                        self.digest.update(chunk)
        except ConflictError:
            self._start_again()
            raise UnreachableError(f"{self.uri} was changed while it was read") from None
        if self.target.tell() != part.total:
            raise ended(self.uri, self.target.tell(), part.total)
        try:
            if self.digest is not None:
                check_digest(self.uri, response, self.digest)
        except DamagedError:
            self._start_again()
            raise

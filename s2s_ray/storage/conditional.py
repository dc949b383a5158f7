"""A file that several may change: written only where nobody else has written since it was read."""

from __future__ import annotations

import fcntl
import logging
import os
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from s2s_ray import storage
from s2s_ray.errors import ConflictError, NotFoundError, StorageError
from s2s_ray.storage.filesystem import endpoint

log = logging.getLogger(__name__)

_CHANGED = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")


def read(uri: str) -> tuple[bytes | None, str | None]:
    """Content and version of a file; (None, None) where there is none. Raises StorageError."""
    if uri.startswith("s3://"):
        return _read_s3(uri)
    try:
        content = storage.read_bytes(uri)
    except NotFoundError:
        return None, None
    return content, storage.sha256(content)


def write(uri: str, content: bytes, version: str | None) -> None:
    """Write the file if it still is of the version that was read (None: if there is still none).

    Exact on local file systems (a lock beside the file) and on S3 (`If-Match`). Elsewhere the version is compared
    before the write, which leaves a moment between the two, and a warning says so.

    Raises:
        ConflictError: it is of another version by now.
        StorageError: it cannot be written.
    """
    if uri.startswith("s3://"):
        _write_s3(uri, content, version)
    elif storage.is_local(uri):
        _write_local(uri, content, version)
    else:
        log.warning("%s: this storage has no conditional write; of two changes at once one may be lost", uri)
        _compare(uri, version)
        storage.write_bytes(uri, content)


def _write_local(uri: str, content: bytes, version: str | None) -> None:
    path = storage.local_path(uri)
    with storage.local_faults(uri):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_name(f".{path.name}.lock.tmp~"), os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _compare(uri, version)
            storage.write_bytes(uri, content)
        finally:
            os.close(lock)


def _compare(uri: str, version: str | None) -> None:
    if read(uri)[1] != version:
        raise ConflictError(f"{uri} was changed by somebody else meanwhile")


def _read_s3(uri: str) -> tuple[bytes | None, str | None]:
    bucket, key = _place(uri)
    try:
        found = _client().get_object(Bucket=bucket, Key=key)
        return found["Body"].read(), str(found["ETag"]).strip('"')  # Ceph compares it without the quotes
    except ClientError as error:
        if _code(error) == "NoSuchKey":
            return None, None
        raise StorageError(f"{uri}: {error}") from error
    except BotoCoreError as error:
        raise StorageError(f"{uri}: {error}") from error


def _write_s3(uri: str, content: bytes, version: str | None) -> None:
    bucket, key = _place(uri)
    condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
    try:
        _client().put_object(Bucket=bucket, Key=key, Body=content, **condition)
    except ClientError as error:
        if _code(error) in _CHANGED:
            raise ConflictError(f"{uri} was changed by somebody else meanwhile") from None
        raise StorageError(f"{uri}: {error}") from error
    except BotoCoreError as error:
        raise StorageError(f"{uri}: {error}") from error


def _client() -> Any:
    checksums = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
    settings = Config(connect_timeout=5, read_timeout=30, retries={"mode": "standard"}, **checksums)
    return boto3.client("s3", endpoint_url=endpoint(), config=settings)


def _place(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))

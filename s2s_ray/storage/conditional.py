"""Files that several processes may change: written only if nobody else has written them since they were read."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from s2s_ray.errors import ConflictError, NotFoundError, StorageError
from s2s_ray.storage import files
from s2s_ray.storage.filesystem import endpoint, is_local, local_faults, local_path

log = logging.getLogger(__name__)

_ATTEMPTS = 5  # at a write whose outcome is not known
_CHANGED = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")


def read(uri: str) -> tuple[bytes | None, str | None]:
    """Return the content and the version of a file; `(None, None)` if it does not exist. Raises StorageError."""
    try:
        if uri.startswith("s3://"):
            return _read_s3(uri)
        content = files.read_bytes(uri)
    except NotFoundError:
        return None, None
    return content, files.sha256(content)


def write(uri: str, content: bytes, version: str | None) -> None:
    """Write the file only if its version has not changed since it was read.

    Exact on local file systems (a lock beside the file) and on S3 (`If-Match`). Elsewhere the version is compared
    before the write, which leaves a moment between the two, and a warning says so.

    Args:
        uri: the file.
        content: what to write.
        version: the version that `read` returned; None: write only if the file still does not exist.

    Raises:
        ConflictError: another process has changed the file.
        StorageError: it cannot be written.
    """
    if uri.startswith("s3://"):
        _write_s3(uri, content, version)
    elif is_local(uri):
        _write_local(uri, content, version)
    else:
        log.warning("%s: this storage has no conditional write; of two simultaneous changes one may be lost", uri)
        _compare(uri, version)
        files.write_bytes(uri, content)


def write_once(uri: str, content: bytes) -> bytes:
    """Write a file that is never changed again, unless it exists.

    Returns:
        The content of the file: `content`, or what another process has written before.

    Raises:
        StorageError: it can be neither written nor read.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        stored, _ = read(uri)
        if stored is not None:
            return stored
        try:
            write(uri, content, None)
            return content
        except ConflictError:
            continue  # somebody was faster, or an earlier attempt arrived late: the file says what it is
        except StorageError:  # perhaps written
            if attempt == _ATTEMPTS:
                raise
    raise ConflictError(f"{uri} is created and deleted by others all the time")


def _write_local(uri: str, content: bytes, version: str | None) -> None:
    path = local_path(uri)
    with local_faults(uri):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_name(f".{path.name}.lock.tmp~"), os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _compare(uri, version)
            files.write_bytes(uri, content)
        finally:
            os.close(lock)


def _compare(uri: str, version: str | None) -> None:
    if read(uri)[1] != version:
        raise _conflict(uri)


def _conflict(uri: str) -> ConflictError:
    return ConflictError(f"{uri} was changed by another process since it was read")


def _read_s3(uri: str) -> tuple[bytes, str]:
    bucket, key = _bucket_and_key(uri)
    with _s3_faults(uri):
        response = _client().get_object(Bucket=bucket, Key=key)
        return response["Body"].read(), str(response["ETag"]).strip('"')  # Ceph compares it without the quotes


def _write_s3(uri: str, content: bytes, version: str | None) -> None:
    bucket, key = _bucket_and_key(uri)
    condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
    with _s3_faults(uri):
        _client().put_object(Bucket=bucket, Key=key, Body=content, **condition)


@contextmanager
def _s3_faults(uri: str) -> Iterator[None]:
    """Turn boto3's errors into those of this library, which name the URI."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _CHANGED:
            raise _conflict(uri) from None
        kind = NotFoundError if code == "NoSuchKey" else StorageError
        raise kind(f"{uri}: {error}") from error
    except BotoCoreError as error:
        raise StorageError(f"{uri}: {error}") from error


def _client() -> Any:
    import boto3  # takes long to import, and only S3 needs it
    from botocore.config import Config

    checksums = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
    settings = Config(connect_timeout=5, read_timeout=30, retries={"mode": "standard"}, **checksums)
    return boto3.client("s3", endpoint_url=endpoint(), config=settings)


def _bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key

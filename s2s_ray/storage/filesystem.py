"""The file system behind a URI, and what its errors mean. `s2s_ray.storage` is the interface; this is behind it.

pyarrow and botocore are imported when a remote URI is first used, because they take longer to import than a command
on local files takes to run.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urlsplit

from s2s_ray.errors import DiskFullError, NotFoundError, StorageError

if TYPE_CHECKING:
    from pyarrow import fs

log = logging.getLogger(__name__)

T = TypeVar("T")
ATTEMPTS = 5
"""Retry limit before the store has ever responded: the URL may be wrong, so fail quickly."""
PATIENT_ATTEMPTS = 16
"""Retry limit once the store has responded: assume an outage and wait several minutes rather than lose a long run."""
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 20.0
CONNECT_TIMEOUT_S = 5
STALL_TIMEOUT_S = 20
"""A transfer that makes no progress for this long is aborted and retried."""
_SDK_ATTEMPTS = 10  # by the SDK itself, for libraries that are given a file system
_TRANSIENT = (
    "NETWORK_CONNECTION",
    "SLOW_DOWN",
    "THROTTLING",
    "SERVICE_UNAVAILABLE",
    "INTERNAL_FAILURE",
    "REQUEST_TIMEOUT",
    "HTTP status 5",
    "curlCode: ",
    "timed out",
    "Timeout was reached",
    "onnection reset",
    "ContentSHA256Mismatch",  # the upload was changed on its way, and the server noticed
    "BadDigest",
    "ended early",
    "UNKNOWN (HTTP status 400) during PutObject",  # an upload that was cut off; real refusals have a name
    "UNKNOWN (HTTP status 400) during UploadPart",
)
_REFUSED = (
    "ACCESS_DENIED",
    "INVALID_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH",
    "INVALID_CLIENT_TOKEN_ID",
    "HTTP status 403",
)
_systems: dict[tuple[object, ...], fs.FileSystem] = {}
_responded: set[tuple[str, str | None]] = set()  # scheme and endpoint of the stores that have responded


def is_local(uri: str) -> bool:
    """Return whether the URI is a path on this machine."""
    return "://" not in uri or uri.startswith("file://")


def local_path(uri: str) -> Path:
    """Return the path of a local URI."""
    assert is_local(uri), uri
    return Path(unquote(urlsplit(uri).path)) if uri.startswith("file://") else Path(uri)


@contextmanager
def local_faults(uri: str) -> Iterator[None]:
    """Turn an operating system's error about a local file into a `StorageError` that names the URI."""
    try:
        yield
    except FileNotFoundError:
        missing = "" if local_path(uri).parent.exists() else "; neither does its directory"
        raise NotFoundError(f"{uri} does not exist{missing}") from None
    except OSError as error:
        kind = DiskFullError if is_full(error) else StorageError
        raise kind(f"{uri}: {error.strerror or error}") from error


def is_full(error: OSError) -> bool:
    """Return whether an error says that there was no room for a local file."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def remotely(uri: str, operation: Callable[[fs.FileSystem, str], T]) -> T:
    """Call `operation(file system, path)` for a remote URI, and retry transient errors with growing pauses.

    The operation must be safe to repeat.

    Raises:
        NotFoundError: there is no such file, directory or bucket.
        StorageError: any other error, or a transient one that persists.
    """
    server = (uri.partition("://")[0], endpoint())
    attempt = 0
    while True:
        attempt += 1
        try:
            result = _attempt(uri, operation)
            _responded.add(server)
            return result
        except NotFoundError:
            _responded.add(server)
            raise
        except OSError as error:
            fault, attempts = str(error), PATIENT_ATTEMPTS if server in _responded else ATTEMPTS
            if attempt >= attempts or not any(text in fault for text in _TRANSIENT):
                raise StorageError(_explain(uri, fault)) from error
            pause = min(FIRST_PAUSE_S * 2 ** (attempt - 1), LONGEST_PAUSE_S) * random.uniform(0.75, 1.25)
            log.warning("%s: attempt %d of %d failed, retrying in %.1f s (%s)", uri, attempt, attempts, pause, fault)
            time.sleep(pause)


def _attempt(uri: str, operation: Callable[[fs.FileSystem, str], T]) -> T:
    try:
        return operation(*_resolve(uri))
    except FileNotFoundError:
        raise NotFoundError(_missing(uri)) from None


def open_filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the pyarrow file system of a URI and the path in it, for libraries that take both; it retries itself."""
    if is_local(uri):
        from pyarrow import fs

        return fs.LocalFileSystem(), str(local_path(uri).absolute())
    return _resolve(uri, _SDK_ATTEMPTS)


def _resolve(uri: str, attempts: int = 1) -> tuple[fs.FileSystem, str]:
    if not uri.startswith("s3://"):
        import pyarrow as pa
        from pyarrow import fs

        try:
            system, path = fs.FileSystem.from_uri(uri)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise StorageError(f"{uri}: no file system for this URI ({error}); use a path or s3://") from None
        return system, path
    path = uri.removeprefix("s3://").strip("/")
    bucket = path.partition("/")[0]
    if not bucket:
        raise StorageError(f"{uri}: expected s3://BUCKET/PATH")
    return _s3(bucket, attempts), path


def _s3(bucket: str, attempts: int = 1) -> fs.FileSystem:
    """Return the client of a bucket: one attempt for `remotely`, which retries for all file systems alike."""
    from pyarrow import fs

    server = endpoint()
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if server is None and region is None:
        region = _region(bucket)
    identity = tuple(
        os.environ.get(f"AWS_{part}") for part in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "PROFILE")
    )
    # a client is not shared with a forked child, nor kept when the environment changes
    key = (os.getpid(), server, region, identity, attempts)
    if key not in _systems:
        if server is not None:
            # servers other than AWS often refuse the trailing checksums that the SDK sends by default
            os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        scheme, _, host = (server or "").partition("://")
        _systems[key] = fs.S3FileSystem(
            region=region,
            scheme=scheme or None,
            endpoint_override=host or None,
            allow_delayed_open=True,
            connect_timeout=CONNECT_TIMEOUT_S,
            request_timeout=STALL_TIMEOUT_S,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=attempts),
        )
    return _systems[key]


@lru_cache(maxsize=64)
def _region(bucket: str) -> str:
    from pyarrow import fs

    return str(fs.resolve_s3_region(bucket))


def endpoint() -> str | None:
    """Return the S3 server that the environment names; None for AWS.

    Raises:
        StorageError: the value is not a URL.
    """
    given = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if given and not given.startswith(("http://", "https://")):
        raise StorageError(f"AWS_ENDPOINT_URL={given!r}: expected http://HOST:PORT or https://HOST:PORT")
    return given.rstrip("/") if given else None


def _missing(uri: str) -> str:
    if uri.startswith("s3://"):
        bucket = uri.removeprefix("s3://").partition("/")[0]
        if _s3(bucket).get_file_info(bucket).type.name == "NotFound":
            return _no_bucket(uri, bucket)
    return f"{uri} does not exist"


def _no_bucket(uri: str, bucket: str) -> str:
    return f"{uri}: there is no bucket {bucket!r} at {endpoint() or 'AWS'}; create it or correct the URI"


def _explain(uri: str, fault: str) -> str:
    if not uri.startswith("s3://"):
        return f"{uri}: {fault}"
    server = endpoint() or "AWS"
    if "NO_SUCH_BUCKET" in fault:
        return _no_bucket(uri, uri.removeprefix("s3://").partition("/")[0])
    if any(text in fault for text in _REFUSED):
        import botocore.session

        if botocore.session.get_session().get_credentials() is None:
            return (
                f"{uri}: no credentials for {server}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, "
                "or run on a machine with an attached role"
            )
        return f"{uri}: {server} refuses these credentials; check them and the bucket's policy ({fault})"
    if "NETWORK_CONNECTION" in fault or "curlCode: " in fault:
        return f"{uri}: {server} cannot be reached; check AWS_ENDPOINT_URL and the network ({fault})"
    return f"{uri}: {fault}"

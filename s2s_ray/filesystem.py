"""Which file system serves a URI, and what its faults mean. `storage` is the interface; this is behind it."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

import botocore.session
import pyarrow as pa
from pyarrow import fs

log = logging.getLogger(__name__)

T = TypeVar("T")
ATTEMPTS = 5
FIRST_PAUSE_S = 0.5
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
    "ended early",
)
_REFUSED = (
    "ACCESS_DENIED",
    "INVALID_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH",
    "INVALID_CLIENT_TOKEN_ID",
    "HTTP status 403",
)
_systems: dict[tuple[object, ...], fs.FileSystem] = {}


class StorageError(ValueError):
    """A URI that cannot be read or written; the message names it and says what to do."""


class NotFoundError(StorageError):
    """There is no such file, directory or bucket."""


def is_local(uri: str) -> bool:
    """Whether the URI is a path on this machine."""
    return "://" not in uri or uri.startswith("file://")


def local_path(uri: str) -> Path:
    """The path of a local URI."""
    assert is_local(uri), uri
    return Path(unquote(urlsplit(uri).path)) if uri.startswith("file://") else Path(uri)


@contextmanager
def local_faults(uri: str) -> Iterator[None]:
    """Turn an operating system's error about a local file into a `StorageError` that names the URI."""
    try:
        yield
    except FileNotFoundError:
        lost = "" if local_path(uri).parent.exists() else "; neither does its directory"
        raise NotFoundError(f"{uri} does not exist{lost}") from None
    except OSError as error:
        raise StorageError(f"{uri}: {error.strerror or error}") from error


def remotely(uri: str, operation: Callable[[fs.FileSystem, str], T]) -> T:
    """Call `operation(file system, path)` for a remote URI, again with growing pauses while a fault may pass.

    The operation must be safe to repeat. Raises `NotFoundError` or `StorageError`.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return operation(*_resolve(uri))
        except FileNotFoundError:
            raise NotFoundError(_missing(uri)) from None
        except OSError as error:
            fault = str(error)
            if attempt == ATTEMPTS or not any(mark in fault for mark in _TRANSIENT):
                raise StorageError(_explain(uri, fault)) from error
            pause = FIRST_PAUSE_S * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)
            log.warning("%s: attempt %d of %d failed, again in %.1f s (%s)", uri, attempt, ATTEMPTS, pause, fault)
            time.sleep(pause)
    raise AssertionError("unreachable")


def open_filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """The pyarrow file system of a URI and the path in it, for libraries that take both."""
    return (fs.LocalFileSystem(), str(local_path(uri).absolute())) if is_local(uri) else _resolve(uri)


def _resolve(uri: str) -> tuple[fs.FileSystem, str]:
    if not uri.startswith("s3://"):
        try:
            system, path = fs.FileSystem.from_uri(uri)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise StorageError(f"{uri}: no file system for this URI ({error}); known are paths and s3://") from None
        return system, path
    path = uri.removeprefix("s3://").strip("/")
    bucket = path.partition("/")[0]
    if not bucket:
        raise StorageError(f"{uri}: expected s3://BUCKET/PATH")
    return _s3(bucket), path


def _s3(bucket: str) -> fs.FileSystem:
    endpoint = _endpoint()
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint is None and region is None:
        region = _region(bucket)
    identity = tuple(
        os.environ.get(f"AWS_{part}") for part in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "PROFILE")
    )
    # a client is not shared with a forked child, nor kept when the environment changes
    key = (os.getpid(), endpoint, region, identity)
    if key not in _systems:
        if endpoint is not None:
            # servers other than AWS often refuse the trailing checksums that the SDK sends by default
            os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        scheme, _, host = (endpoint or "").partition("://")
        _systems[key] = fs.S3FileSystem(
            region=region,
            scheme=scheme or None,
            endpoint_override=host or None,
            allow_delayed_open=True,
            connect_timeout=5,
            request_timeout=30,
            # `remotely` tries again, for all file systems alike
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
        )
    return _systems[key]


@lru_cache(maxsize=64)
def _region(bucket: str) -> str:
    return str(fs.resolve_s3_region(bucket))


def _endpoint() -> str | None:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise StorageError(f"AWS_ENDPOINT_URL={endpoint!r}: expected http://HOST:PORT or https://HOST:PORT")
    return endpoint.rstrip("/") if endpoint else None


def _missing(uri: str) -> str:
    if uri.startswith("s3://"):
        bucket = uri.removeprefix("s3://").partition("/")[0]
        if _s3(bucket).get_file_info(bucket).type is fs.FileType.NotFound:
            return _no_bucket(uri, bucket)
    return f"{uri} does not exist"


def _no_bucket(uri: str, bucket: str) -> str:
    return f"{uri}: there is no bucket {bucket!r} at {_endpoint() or 'AWS'}; create it or correct the URI"


def _explain(uri: str, fault: str) -> str:
    if not uri.startswith("s3://"):
        return f"{uri}: {fault}"
    where = _endpoint() or "AWS"
    if "NO_SUCH_BUCKET" in fault:
        return _no_bucket(uri, uri.removeprefix("s3://").partition("/")[0])
    if any(mark in fault for mark in _REFUSED):
        if botocore.session.get_session().get_credentials() is None:
            return (
                f"{uri}: no credentials for {where}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, "
                "or run where a role is attached"
            )
        return f"{uri}: {where} refuses these credentials; check them and the bucket's policy ({fault})"
    if "NETWORK_CONNECTION" in fault or "curlCode: " in fault:
        return f"{uri}: {where} cannot be reached; check AWS_ENDPOINT_URL and the network ({fault})"
    return f"{uri}: {fault}"

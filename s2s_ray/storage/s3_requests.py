"""The requests to S3 that the store is made of: one object, its facts, the pages of a listing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from s2s_ray.errors import NotFoundError, RefusedError, StorageError, UnreachableError
from s2s_ray.storage.retries import patiently
from s2s_ray.storage.s3_client import Connection, connection
from s2s_ray.storage.s3_faults import code_of, s3_faults, status_of
from s2s_ray.storage.s3_response import Range, etag_of, range_of, upload_digest
from s2s_ray.storage.store import Info
from s2s_ray.uri import Uri

T = TypeVar("T")
_BUCKET = re.compile(r"[A-Za-z0-9._-]+")


def send(uri: str, operation: Callable[[Connection], T]) -> T:
    """Call an operation that is safe to repeat, with the client of this moment, until the store responds."""
    to = connection(uri)
    return patiently(uri, to.server, lambda: operation(connection(uri)))


def bucket_and_key(uri: Uri) -> tuple[str, str]:
    """Return the bucket of a URI and the key in it, which is empty for the bucket itself. Raises StorageError."""
    bucket, _, key = uri[len("s3://") :].strip("/").partition("/")
    if not _BUCKET.fullmatch(bucket):
        reason = f"; {bucket!r} is not a valid bucket name" if bucket else ""
        raise StorageError(f"{uri}: expected s3://BUCKET/KEY{reason}")
    return bucket, key


def place(uri: Uri) -> tuple[str, str]:
    """Return the bucket of a file's URI and its key. Raises StorageError."""
    bucket, key = bucket_and_key(uri)
    if not key:
        raise StorageError(f"{uri}: expected a file, s3://BUCKET/KEY")
    return bucket, key


def get_range(
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


def put_object(to: Connection, uri: Uri, bucket: str, key: str, content: bytes, **condition: str) -> str:
    """Write an object with one request, and return its ETag. Raises StorageError."""
    from botocore.exceptions import ClientError

    with s3_faults(uri, to):
        try:
            response = to.client.put_object(
                Bucket=bucket, Key=key, Body=content, **upload_digest(to.endpoint, content), **condition
            )
        except ClientError as error:
            if condition and status_of(error) == 501:
                raise StorageError(
                    f"{uri}: {to.server} has no conditional writes, which runs, sweeps and the registry need; "
                    "upgrade it, or use another storage"
                ) from error
            raise
        return etag_of(uri, response)


def head_or_folder(to: Connection, uri: Uri, bucket: str, key: str) -> Info | None:
    """Return the facts about an object or a prefix; None if there is neither. Raises StorageError."""
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
def reading(uri: Uri, to: Connection) -> Iterator[None]:
    """Turn errors at reading an object into those of this library; a missing one that may not be listed is missing."""
    try:
        with s3_faults(uri, to):
            yield
    except RefusedError as error:
        cause: Any = error.__cause__
        if getattr(cause, "response", None) is None or code_of(cause) not in ("AccessDenied", "403"):
            raise
        if _listed(to, uri, *place(uri)) is None:
            raise NotFoundError(f"{uri} does not exist") from None
        raise


def pages(uri: Uri, **arguments: str) -> Iterator[dict[str, Any]]:
    """Yield the pages of a bucket's listing."""

    def read(to: Connection) -> dict[str, Any]:
        with s3_faults(uri, to):
            page: dict[str, Any] = to.client.list_objects_v2(**arguments)
            return page

    while True:
        page = send(uri, read)
        yield page
        if not page.get("IsTruncated"):
            return
        arguments["ContinuationToken"] = page["NextContinuationToken"]


def ended(uri: str, read: int, length: int) -> UnreachableError:
    """Return the error about a response that is shorter than it says."""
    return UnreachableError(f"{uri}: the transfer ended early, after {read} of {length} bytes")

"""The facts about an object in a response of S3, compared with the content that came with them."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from typing import Any

from s2s_ray.errors import DamagedError, UnreachableError

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_MD5 = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Range:
    """Which bytes of an object a response holds."""

    start: int
    length: int
    total: int


def range_of(uri: str, response: Any) -> Range:
    """Return which bytes a response holds.

    Raises:
        UnreachableError: it does not say so, or twice and differently, because its headers were changed on their way.
    """
    metadata = response["ResponseMetadata"]
    length, content_range = response.get("ContentLength"), metadata["HTTPHeaders"].get("content-range")
    if length is None:
        raise _cut(uri, "it does not say how long it is")
    if content_range is None:
        if metadata["HTTPStatusCode"] == 206:
            raise _cut(uri, "it does not say which part it is")
        return Range(0, length, length)  # a server that does not know ranges
    found = _RANGE.fullmatch(content_range)
    if found is None or int(found[2]) - int(found[1]) + 1 != length or int(found[2]) >= int(found[3]):
        raise _cut(uri, f"{length} bytes do not agree with {content_range!r}")
    return Range(int(found[1]), length, int(found[3]))


def etag_of(uri: str, response: Any) -> str:
    """Return the ETag of an object without its quotes, since some servers compare it so.

    Raises:
        UnreachableError: there is none, because the headers were cut off.
    """
    given = str(response.get("ETag", ""))
    if not given.strip('"') or given.startswith('"') != given.endswith('"'):
        raise _cut(uri, f"its ETag is {given!r}")
    return given.strip('"')


def upload_digest(endpoint: str | None, content: bytes) -> dict[str, str]:
    """Return what a request has to state so that the server refuses content that was changed on its way.

    Without TLS the signature includes the content's SHA-256 already.
    """
    if endpoint is not None and endpoint.startswith("http://"):
        return {}
    return {"ContentMD5": base64.b64encode(new_md5(content).digest()).decode()}


def new_md5(content: bytes = b"") -> Any:
    """Return a hash against accidental damage; nothing is kept secret by it."""
    return hashlib.md5(content, usedforsecurity=False)


def check_digest(uri: str, response: Any, digest: Any) -> None:
    """Compare the MD5 of an object with its ETag, where that is one: not with parts, nor with keys of a customer.

    Raises:
        DamagedError: they differ.
    """
    etag = etag_of(uri, response)
    encrypted = "SSECustomerAlgorithm" in response or str(response.get("ServerSideEncryption", "")).startswith("aws:")
    express = "--x-s3/" in uri  # its ETags are random
    if _MD5.fullmatch(etag) and not encrypted and not express and digest.hexdigest() != etag:
        raise DamagedError(
            f"{uri} fails its checksum (MD5 {digest.hexdigest()}, expected {etag}): it was damaged on its way or where "
            "it is stored"
        )


def _cut(uri: str, what: str) -> UnreachableError:
    return UnreachableError(f"{uri}: the headers of the response were changed on their way: {what}")

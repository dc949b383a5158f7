"""Uploads to S3 in parts, each of which is retried for itself."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Lock
from typing import Any, BinaryIO
from uuid import uuid4

from s2s_ray.errors import StorageError
from s2s_ray.storage.retries import patiently
from s2s_ray.storage.s3_client import Connection, connection
from s2s_ray.storage.s3_faults import code_of, s3_faults
from s2s_ray.storage.s3_response import etag_of, upload_digest
from s2s_ray.uri import Uri

PART = 16 << 20
"""Largest content that is sent in one request, and the size of a part of any other."""
_MOST_PARTS = 10_000  # of S3
_AT_A_TIME = 4
_NONCE = "s2s-upload"  # metadata of the object: recognises one's own upload after a response was lost


def upload_parts(uri: Uri, bucket: str, key: str, content: bytes | BinaryIO) -> str:
    """Write an object in parts, so that it appears when the last one is there; return its ETag. Raises StorageError.

    Args:
        uri: its URI.
        bucket: of the URI.
        key: of the URI.
        content: its content, or a local file with it.
    """
    upload = _Upload(uri, bucket, key, content)
    try:
        return upload.send()
    except BaseException:
        upload.abort()
        raise


class _Upload:
    def __init__(self, uri: Uri, bucket: str, key: str, content: bytes | BinaryIO) -> None:
        self.uri, self.content = uri, content
        self.place = {"Bucket": bucket, "Key": key}
        self.size = len(content) if isinstance(content, bytes) else content.seek(0, 2)
        self.part = max(PART, math.ceil(self.size / _MOST_PARTS))
        self.nonce, self.lock = uuid4().hex, Lock()
        self.upload: str | None = None

    def send(self) -> str:
        server = connection(self.uri).server
        self.upload = patiently(self.uri, server, self._begin)
        count = math.ceil(self.size / self.part)
        with ThreadPoolExecutor(min(_AT_A_TIME, count)) as pool:
            sent = [
                pool.submit(patiently, self.uri, server, lambda number=number: self._send_part(number))
                for number in range(count)
            ]
            try:
                parts = [future.result() for future in sent]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return patiently(self.uri, server, lambda: self._complete(parts))

    def _begin(self) -> str:
        to = connection(self.uri)
        with s3_faults(self.uri, to):
            response = to.client.create_multipart_upload(**self.place, Metadata={_NONCE: self.nonce})
            return str(response["UploadId"])

    def _send_part(self, number: int) -> dict[str, Any]:
        to, content = connection(self.uri), self._read(number)
        with s3_faults(self.uri, to):
            response = to.client.upload_part(
                **self.place,
                UploadId=self.upload,
                PartNumber=number + 1,
                Body=content,
                **upload_digest(to.endpoint, content),
            )
            return {"PartNumber": number + 1, "ETag": etag_of(self.uri, response)}

    def _read(self, number: int) -> bytes:
        start = number * self.part
        if isinstance(self.content, bytes):
            return self.content[start : start + self.part]
        with self.lock:
            self.content.seek(start)
            return self.content.read(self.part)

    def _complete(self, parts: list[dict[str, Any]]) -> str:
        from botocore.exceptions import ClientError

        to = connection(self.uri)
        with s3_faults(self.uri, to):
            try:
                response = to.client.complete_multipart_upload(
                    **self.place, UploadId=self.upload, MultipartUpload={"Parts": parts}
                )
            except ClientError as error:
                if code_of(error) != "NoSuchUpload":
                    raise
                return self._completed(to)
            return etag_of(self.uri, response) if response.get("ETag") else self._completed(to)

    def _completed(self, to: Connection) -> str:
        """Return the ETag of the object, if the response to `_complete` was lost or does not name it."""
        response = to.client.head_object(**self.place)
        if response.get("Metadata", {}).get(_NONCE) != self.nonce:
            raise StorageError(f"{self.uri}: the upload was aborted or another one took its place; upload it again")
        return etag_of(self.uri, response)

    def abort(self) -> None:
        if self.upload is None:
            return
        to = connection(self.uri)
        with suppress(StorageError), s3_faults(self.uri, to):
            to.client.abort_multipart_upload(**self.place, UploadId=self.upload)

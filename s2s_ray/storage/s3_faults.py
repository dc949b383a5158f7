"""The errors of S3 and of the network, translated by status, error code and exception."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from s2s_ray.errors import ConflictError, DiskFullError, NotFoundError, RefusedError, StorageError, UnreachableError
from s2s_ray.storage.s3_client import Connection

if TYPE_CHECKING:
    from botocore.exceptions import BotoCoreError, ClientError

_AGAIN = {"RequestTimeout", "RequestTimeoutException", "SlowDown", "Throttling", "ThrottlingException", "InternalError"}
_AGAIN |= {"OperationAborted", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch", "ContentSHA256Mismatch"}
_AGAIN |= {"ServiceUnavailable", "Busy", "TooManyRequests", "RequestLimitExceeded"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
_SKEWED = {"RequestTimeTooSkewed", "RequestInTheFuture"}
_FULL = {"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage"}
_CHANGED = {"PreconditionFailed", "ConditionalRequestConflict"}
_ELSEWHERE = {"PermanentRedirect", "TemporaryRedirect", "Redirect", "AuthorizationHeaderMalformed"}
_ELSEWHERE |= {"IllegalLocationConstraintException"}
_CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or run on a machine with an attached role"
)


@contextmanager
def s3_faults(uri: str, to: Connection) -> Iterator[None]:
    """Turn the errors of botocore and of the network into those of this library, which name the URI."""
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ClientError as error:
        raise _of_response(uri, to, error) from error
    except BotoCoreError as error:
        raise _of_client(uri, to, error) from error
    except (HTTPError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
        raise UnreachableError(f"{uri}: the transfer from or to {to.server} broke off ({_one_line(error)})") from error
    except ValueError as error:  # a host name that cannot be one, for example
        raise StorageError(f"{uri}: {to.server} cannot be used ({_one_line(error)})") from error


def status_of(error: ClientError) -> int:
    """Return the HTTP status of a response."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code_of(error: ClientError) -> str:
    """Return the error code of a response; its status where it has no body."""
    return str(error.response.get("Error", {}).get("Code", ""))


def no_bucket(uri: str, to: Connection) -> NotFoundError:
    """Return the error about a missing bucket."""
    bucket = uri.removeprefix("s3://").partition("/")[0]
    return NotFoundError(f"{uri}: there is no bucket {bucket!r} at {to.server}; create it or correct the URI")


def _of_response(uri: str, to: Connection, error: ClientError) -> StorageError:
    status, code = status_of(error), code_of(error)
    reason = _one_line(error)
    if code == "NoSuchBucket":
        return no_bucket(uri, to)
    if code in _CHANGED or status == 412:
        return ConflictError(f"{uri} was changed by another process since it was read")
    if code in _FULL or status == 507:
        return DiskFullError(f"{uri}: {to.server} has no room, or the quota is used up ({reason})")
    if code in _EXPIRED:
        return RefusedError(f"{uri}: the credentials for {to.server} have expired; renew them ({reason})")
    if code in _SKEWED:
        return RefusedError(f"{uri}: the clock of this machine and that of {to.server} differ; correct it ({reason})")
    if code in _ELSEWHERE or status in (301, 307):
        region = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("x-amz-bucket-region")
        name = region or error.response.get("Error", {}).get("Region") or "another region"
        return StorageError(f"{uri}: the bucket is in {name}; set AWS_REGION or region in ~/.aws/config ({reason})")
    if code in _AGAIN or status in (408, 429) or (status >= 500 and status != 501):
        return UnreachableError(f"{uri}: {to.server} does not serve this request now ({status}, {reason})")
    if status == 400 and code in ("", "400"):  # cut off on its way; real refusals have a name
        return UnreachableError(f"{uri}: {to.server} did not understand the request ({reason})")
    if code == "NoSuchUpload":
        return StorageError(f"{uri}: the upload was aborted by another process or by a rule of the bucket")
    if status == 404:
        return NotFoundError(f"{uri} does not exist")
    if status in (401, 403):
        return RefusedError(
            f"{uri}: {to.server} refuses these credentials; check them and the bucket's policy ({reason})"
        )
    return StorageError(f"{uri}: {reason}")


def _of_client(uri: str, to: Connection, error: BotoCoreError) -> StorageError:
    from botocore import exceptions

    refused = (
        exceptions.PartialCredentialsError,
        exceptions.CredentialRetrievalError,
        exceptions.TokenRetrievalError,
        exceptions.NoAuthTokenError,
        exceptions.MetadataRetrievalError,
        exceptions.SSOError,
        exceptions.LoginError,
    )
    reason = _one_line(error)
    if isinstance(error, exceptions.NoCredentialsError):
        return RefusedError(f"{uri}: no credentials for {to.server}: {_CREDENTIALS}")
    if isinstance(error, refused):
        return RefusedError(f"{uri}: the credentials for {to.server} cannot be used ({reason})")
    cause = _cause(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return StorageError(
            f"{uri}: the certificate of {to.server} cannot be verified ({_one_line(cause)}); set AWS_CA_BUNDLE or "
            "ca_bundle in ~/.aws/config to the authority that signed it"
        )
    if isinstance(error, (exceptions.ConnectionError, exceptions.HTTPClientError)):
        if isinstance(cause, socket.gaierror):
            reason = f"the host name cannot be resolved: {cause.strerror}"
        return UnreachableError(
            f"{uri}: {to.server} cannot be reached; check AWS_ENDPOINT_URL, endpoint_url in ~/.aws/config and the "
            f"network ({reason})"
        )
    if isinstance(error, (exceptions.IncompleteReadError, exceptions.ChecksumError, exceptions.FlexibleChecksumError)):
        return UnreachableError(f"{uri}: the response of {to.server} was changed on its way ({reason})")
    if type(error).__name__ == "ResponseParserError":  # of botocore.parsers
        return UnreachableError(f"{uri}: the response of {to.server} was cut short or is not of S3 ({reason})")
    return StorageError(f"{uri}: {reason}")


def _cause(error: BaseException) -> BaseException:
    """Return the innermost error: botocore and urllib3 wrap those of the network several times."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        given = getattr(error, "kwargs", {}).get("error") if isinstance(getattr(error, "kwargs", None), dict) else None
        inner = given or getattr(error, "reason", None) or error.__cause__ or error.__context__
        if not isinstance(inner, BaseException):
            break
        error = inner
    return error


def _one_line(error: object) -> str:
    return " ".join(str(error).replace(" (reached max retries: 0)", "").split())

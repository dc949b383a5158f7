"""Requests to one service: their time limit, which of them are repeated, and the errors they end with."""

from __future__ import annotations

import json
import random
import re
import ssl
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, TypeVar
from zipfile import BadZipFile

import httpx2

from s2s_ray.client import parameters
from s2s_ray.errors import InputError, ServiceError
from s2s_ray.secrets import masked_address

T = TypeVar("T")

_RETRIED_STATUSES = (429, 500, 502, 503)  # Serve's proxy turns a lost ingress into a 500
_NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
_FOREIGN = (
    ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError, RecursionError, BadZipFile,
)  # fmt: skip
"""What reading a response raises that is not of this service."""
_PERHAPS_CHANGED = ": the change may have been made; list the releases before you try again"
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0


class Response(NamedTuple):
    """A complete response."""

    status: int
    reason: str
    headers: Mapping[str, str]
    content: bytes

    def json(self) -> Any:
        """Return the tree in a JSON body. Raises ValueError."""
        return json.loads(self.content)


class Connection:
    """Sends requests to one service.

    Args:
        url: of the service.
        token: bearer token, or None.
        timeout_s: limit for one request including its repetitions.

    Raises:
        InputError: one of them cannot be used.
    """

    def __init__(self, url: str, token: str | None, timeout_s: float) -> None:
        self.url = parameters.service_url(url)
        self.release: str | None = None
        self._shown = masked_address(self.url)
        self._timeout_s = parameters.timeout(timeout_s)
        try:
            self._http = httpx2.Client(base_url=self.url, headers=parameters.headers(token), timeout=self._timeout_s)
        except httpx2.InvalidURL as error:
            raise InputError(f"url={masked_address(url)!r}: {error}") from None

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        accept: str = "application/json",
        query: Mapping[str, str] | None = None,
        images: list[bytes] | None = None,
        repeatable: bool = True,
    ) -> Response:
        """Send a request, and return the successful response.

        A repeatable request is sent again after a lost connection or a status that may pass, for as long as there is
        time. It ends at once if the service asks to wait for longer than that. Any other request is sent again only
        if no connection was made.

        Raises:
            ServiceError: with the service's own sentence, or why there is no response.
        """
        files = [("image", (f"{number}", image)) for number, image in enumerate(images or ())]
        content: dict[str, Any] = {"params": query or None, "files": files or None}
        deadline = time.monotonic() + self._timeout_s
        pause = _FIRST_PAUSE_S
        earlier: ServiceError | None = None
        while True:
            try:
                response = self._send(method, path, accept, content, deadline)
            except httpx2.RequestError as error:
                if not repeatable and not isinstance(error, _NOT_SENT):
                    raise ServiceError(f"{self._shown} did not respond ({_reason(error)}){_PERHAPS_CHANGED}") from None
                fault = ServiceError(f"{self._shown} does not respond ({_reason(error)}){_before(earlier)}")
                if _is_hopeless(error):
                    raise fault from None
                wait = pause
            else:
                if response.status < 300:
                    self.release = response.headers.get("S2S-Release")
                    return response
                fault = earlier = self._error(response)
                if not repeatable:
                    raise _perhaps_changed(fault)
                if response.status not in _RETRIED_STATUSES:
                    raise fault
                wait = max(pause, retry_after(response.headers))
            left = deadline - time.monotonic()
            if wait >= left:
                raise fault
            # Spread, so that clients that were turned away together do not return together; time to try is left over.
            time.sleep(min(wait * random.uniform(1, 1.5), (wait + left) / 2))
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def parse(self, response: Response, read: Callable[[Response], T]) -> T:
        """Return what a response holds. Raises ServiceError if it is not one of this service."""
        try:
            return read(response)
        except _FOREIGN as error:
            raise ServiceError(
                f"{self._shown} sent a response that is not this service's ({parameters.shown(repr(error))}): "
                "check the URL",
                response.status,
            ) from None

    def _send(self, method: str, path: str, accept: str, content: dict[str, Any], deadline: float) -> Response:
        """Send a request once. Raises httpx2.RequestError."""
        left = max(0.001, deadline - time.monotonic())
        headers = {"Accept": accept, "S2S-Timeout": f"{left:.3f}"}
        with self._http.stream(method, path, timeout=left, headers=headers, **content) as answer:
            body = bytearray()
            for chunk in answer.iter_bytes():
                body += chunk
                if time.monotonic() > deadline:  # `timeout` limits each read, not the sum of them
                    raise httpx2.ReadTimeout(f"no complete response within {self._timeout_s:g} s")
            return Response(answer.status_code, answer.reason_phrase, answer.headers, bytes(body))

    def _error(self, response: Response) -> ServiceError:
        """Return the error for a response that is not a success."""
        if response.status < 400:
            target = parameters.shown(response.headers.get("Location", "nowhere"))
            return ServiceError(
                f"{self._shown} responds {response.status}: it redirects to {target}; give the service's own URL",
                response.status,
            )
        try:
            sentence = response.json()["error"]
        except _FOREIGN:
            sentence = response.content.decode(errors="replace").strip() or response.reason
        return ServiceError(f"{self._shown} responds {response.status}: {parameters.shown(sentence)}", response.status)


def retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds to wait that a response asks for (RFC 9110, section 10.2.3); 0 if it asks for nothing."""
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        return float(text)
    moment = _moment(text)
    if moment is None:
        return 0.0
    # By the clock of the server, which may differ from the one of this machine.
    now = _moment(headers.get("Date", "")) or datetime.now(UTC)
    return max(0.0, (moment - now).total_seconds())


def _moment(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _reason(error: httpx2.RequestError) -> str:
    return parameters.shown(str(error) or type(error).__name__)


def _before(earlier: ServiceError | None) -> str:
    return "" if earlier is None else f"; before that, {earlier}"


def _perhaps_changed(fault: ServiceError) -> ServiceError:
    """Add to the error of a change that it may have been made, unless the response says so or rules it out."""
    if (fault.status < 500 and fault.status != 408) or "may have been made" in fault.message:  # 408: of Serve's proxy
        return fault
    return ServiceError(f"{fault.message.rstrip('.')}{_PERHAPS_CHANGED}", fault.status)


def _is_hopeless(error: BaseException | None) -> bool:
    """Return true for a failure that repetition does not change: a certificate, or a request that cannot be sent."""
    for _ in range(10):
        if isinstance(error, ssl.SSLCertVerificationError | httpx2.UnsupportedProtocol | httpx2.LocalProtocolError):
            return True
        error = None if error is None else error.__cause__ or error.__context__
    return False

"""The errors of S3, told apart by status, code and exception: a server that responds as it is told to."""

from __future__ import annotations

import hashlib
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from s2s_ray import storage
from s2s_ray.errors import (
    ConflictError,
    DiskFullError,
    NotFoundError,
    RefusedError,
    StorageError,
    UnreachableError,
)
from s2s_ray.storage import conditional, retries
from tests.support.ports import free_port

URI = "s3://bucket/run/x"
Response: TypeAlias = tuple[int, str | bytes, dict[str, str]] | None
"""Status, error code or content, and headers; None: no response."""


class Server:
    """An S3 server whose responses `respond(method, path)` chooses; `requests` lists what it was asked."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.ranges: list[tuple[str | None, str | None]] = []
        self.keys: set[str] = set()
        self.respond: Callable[[str, str], Response] = lambda method, path: (404, "NoSuchKey", {})
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None: ...

            def _serve(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.requests.append((self.command, self.path))
                outer.ranges.append((self.headers.get("Range"), self.headers.get("If-Match")))
                outer.keys.add(self.headers.get("Authorization", "").partition("Credential=")[2].partition("/aws4")[0])
                response = outer.respond(self.command, self.path)
                if response is None:
                    self.close_connection = True
                    return
                status, body, headers = response
                content = body if isinstance(body, bytes) else f"<Error><Code>{body}</Code></Error>".encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content[: int(headers.get("Cut", len(content)))])
                self.close_connection = "Cut" in headers

        for verb in ("GET", "PUT", "HEAD", "DELETE"):
            setattr(Handler, f"do_{verb}", Handler._serve)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with the AWS settings of this test alone; nothing is set in the environment."""
    # the same files for all tests, so that their client is made once; those that write them take others
    for name in (
        *("ENDPOINT_URL", "ENDPOINT_URL_S3", "PROFILE", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN"),
        *("REGION", "DEFAULT_REGION"),
    ):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/none/config")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/none/credentials")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(retries, "ATTEMPTS", 2)
    monkeypatch.setattr(retries, "PATIENT_ATTEMPTS", 2)
    return tmp_path


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    """A server at one address, since it takes long to make a client."""
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def server(running: Server, home: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """An empty server, and the settings that lead to it."""
    server = running
    server.ranges = []
    server.requests, server.keys, server.respond = [], set(), lambda method, path: (404, "NoSuchKey", {})
    for name, value in (("ENDPOINT_URL", server.url), ("ACCESS_KEY_ID", "KEY"), ("SECRET_ACCESS_KEY", "secret")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-x")
    return server


def listing(*keys: str) -> Response:
    """Return a page of a bucket's listing."""
    entries = "".join(
        f"<Contents><Key>{key}</Key><Size>7</Size><LastModified>2026-01-02T03:04:05Z</LastModified></Contents>"
        for key in keys
    )
    return 200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode(), {}


@pytest.mark.parametrize(
    ("status", "code", "kind", "message", "attempts"),
    [
        (404, "NoSuchKey", NotFoundError, r"does not exist$", 1),
        (404, "NoSuchBucket", NotFoundError, r"there is no bucket 'bucket' at http://127", 1),
        (403, "InvalidAccessKeyId", RefusedError, r"refuses these credentials", 1),
        (403, "SignatureDoesNotMatch", RefusedError, r"refuses these credentials", 1),
        (403, "RequestTimeTooSkewed", RefusedError, r"the clock of this machine and that of http://\S+ differ", 1),
        (400, "ExpiredToken", RefusedError, r"have expired; renew them", 1),
        (401, "Unauthorized", RefusedError, r"refuses these credentials", 1),
        (405, "MethodNotAllowed", StorageError, r"MethodNotAllowed", 1),
        (501, "NotImplemented", StorageError, r"NotImplemented", 1),
        (408, "RequestTimeout", UnreachableError, r"does not serve this request now \(408", 2),
        (429, "TooManyRequests", UnreachableError, r"does not serve this request now \(429", 2),
        (500, "InternalError", UnreachableError, r"does not serve this request now \(500", 2),
        (503, "SlowDown", UnreachableError, r"does not serve this request now \(503", 2),
        (599, "Unknown", UnreachableError, r"does not serve this request now \(599", 2),
        (507, "XMinioStorageFull", DiskFullError, r"has no room", 1),
    ],
)
def test_responses_are_told_apart(
    server: Server, status: int, code: str, kind: type[StorageError], message: str, attempts: int
) -> None:
    server.respond = lambda method, path: (status, code, {})
    with pytest.raises(StorageError, match=rf"^{URI}\b.*{message}") as raised:
        storage.read_bytes(URI)
    assert type(raised.value) is kind
    assert len(server.requests) == attempts


def test_a_bucket_in_another_region_is_named(server: Server) -> None:
    server.respond = lambda method, path: (301, "PermanentRedirect", {"x-amz-bucket-region": "eu-north-1"})
    with pytest.raises(StorageError, match=r"the bucket is in eu-north-1; set AWS_REGION or region in ~/.aws/config"):
        storage.read_bytes(URI)


@pytest.mark.parametrize("status", [412, 409, 404])
def test_a_conditional_write_that_does_not_hold_is_a_conflict(server: Server, status: int) -> None:
    code = {412: "PreconditionFailed", 409: "ConditionalRequestConflict", 404: "NoSuchKey"}[status]
    server.respond = lambda method, path: (status, code, {})
    with pytest.raises(ConflictError, match=rf"^{URI} was (changed|deleted) by another process"):
        conditional.write(URI, b"new", "v1")


@pytest.mark.parametrize("version", ["v1", None])
def test_a_server_without_conditional_writes_is_named(server: Server, version: str | None) -> None:
    server.respond = lambda method, path: (501, "NotImplemented", {})
    with pytest.raises(StorageError, match=rf"^{URI}: {server.url} has no conditional writes, which runs"):
        conditional.write(URI, b"new", version)
    with pytest.raises(StorageError, match="NotImplemented"):
        storage.write_bytes(URI, b"new")


@pytest.mark.parametrize("version", ["v1", None])
def test_a_conditional_write_whose_response_is_lost_is_not_sent_again(server: Server, version: str | None) -> None:
    server.respond = lambda method, path: None
    with pytest.raises(UnreachableError, match=rf"^{URI}: "):
        conditional.write(URI, b"new", version)
    assert server.requests == [("PUT", "/bucket/run/x")]


class TestADownloadThatBreaksOff:
    """It is resumed where it broke off, if the object is still the same."""

    def part(self, content: bytes, start: int, etag: str, **headers: str) -> Response:
        """Return the content from `start` on."""
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return 206, content[start:], {"Content-Range": span, "ETag": f'"{etag}"', **headers}

    def test_the_rest_is_requested_of_the_same_version(self, server: Server, tmp_path: Path) -> None:
        etag = hashlib.md5(b"0123456789", usedforsecurity=False).hexdigest()
        responses = [self.part(b"0123456789", 0, etag, Cut="4"), self.part(b"0123456789", 4, etag)]
        server.respond = lambda method, path: responses.pop(0)
        storage.download(URI, tmp_path / "x")
        assert (tmp_path / "x").read_bytes() == b"0123456789"
        assert server.ranges == [("bytes=0-", None), ("bytes=4-", etag)]

    def test_another_version_is_read_from_its_start(
        self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(retries, "ATTEMPTS", 3)
        monkeypatch.setattr(retries, "PATIENT_ATTEMPTS", 3)
        responses = [
            self.part(b"0123456789", 0, "one-2", Cut="4"),
            (412, "PreconditionFailed", {}),
            self.part(b"abcdefg", 0, "two-2"),
        ]
        server.respond = lambda method, path: responses.pop(0)
        storage.download(URI, tmp_path / "x")
        assert (tmp_path / "x").read_bytes() == b"abcdefg"
        assert server.ranges == [("bytes=0-", None), ("bytes=4-", "one-2"), ("bytes=0-", None)]

    def test_a_server_that_does_not_know_ranges_sends_all_of_it_again(
        self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(retries, "ATTEMPTS", 3)
        monkeypatch.setattr(retries, "PATIENT_ATTEMPTS", 3)
        headers = {"ETag": '"' + hashlib.md5(b"0123456789", usedforsecurity=False).hexdigest() + '"'}
        responses: list[Response] = [
            (200, b"0123456789", {**headers, "Cut": "4"}),
            (200, b"0123456789", headers),
            (200, b"0123456789", headers),
        ]
        server.respond = lambda method, path: responses.pop(0)
        storage.download(URI, tmp_path / "x")
        assert (tmp_path / "x").read_bytes() == b"0123456789"

    def test_a_reader_never_mixes_two_versions(self, server: Server) -> None:
        content = bytes(3_000_000)
        span = f"bytes 0-{(1 << 20) - 1}/{len(content)}"
        server.respond = lambda method, path: (206, content[: 1 << 20], {"Content-Range": span, "ETag": '"one-2"'})
        with storage.open_input(URI) as file:
            server.respond = lambda method, path: (412, "PreconditionFailed", {})
            with pytest.raises(ConflictError, match="was changed by another process since it was read"):
                file.read(2_000_000)
        assert server.ranges[1][1] == "one-2"


class TestCredentialsThatMayNotListTheBucket:
    """S3 then responds with 403 to a request for an object that does not exist."""

    def respond(self, listed: Response) -> Callable[[str, str], Response]:
        return lambda method, path: listed if "list-type" in path else (403, "AccessDenied", {})

    def test_a_file_that_is_not_in_the_list_below_their_prefix_does_not_exist(self, server: Server) -> None:
        server.respond = self.respond(listing("run/x-other"))
        with pytest.raises(NotFoundError, match=rf"^{URI} does not exist$"):
            storage.read_bytes(URI)
        assert conditional.read(URI) == (None, None)
        assert all("prefix=run%2Fx" in path for _, path in server.requests if "list-type" in path)

    def test_one_that_is_in_the_list_exists_and_may_not_be_read(self, server: Server) -> None:
        server.respond = self.respond(listing("run/x"))
        with pytest.raises(RefusedError, match=r"refuses these credentials"):
            storage.read_bytes(URI)
        assert storage.exists(URI)
        assert storage.size(URI) == 7

    def test_without_a_list_the_message_names_both_possibilities(self, server: Server) -> None:
        server.respond = self.respond((403, "AccessDenied", {}))
        with pytest.raises(NotFoundError, match=rf"^{URI} does not exist, or these credentials may not read it"):
            storage.read_bytes(URI)
        assert not storage.exists(URI)
        with pytest.raises(RefusedError):
            storage.list_names("s3://bucket/run")

    def test_wrong_keys_are_not_mistaken_for_a_missing_file(self, server: Server) -> None:
        server.respond = lambda method, path: (403, "SignatureDoesNotMatch", {})
        for attempt in (storage.read_bytes, storage.exists, storage.size, storage.delete, storage.list_names):
            with pytest.raises(RefusedError):
                attempt(URI)


class TestProfiles:
    """`~/.aws/config` and `~/.aws/credentials`."""

    @pytest.mark.parametrize("where", ["profile", "services"])
    def test_endpoint_region_and_credentials_are_those_of_the_profile(
        self, home: Path, server: Server, monkeypatch: pytest.MonkeyPatch, where: str
    ) -> None:
        for name in ("ENDPOINT_URL", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "DEFAULT_REGION"):
            monkeypatch.delenv(f"AWS_{name}")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(home / "config"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(home / "credentials"))
        place = f"endpoint_url={server.url}"
        config = {"profile": place, "services": f"services=here\n[services here]\ns3=\n  {place}"}[where]
        (home / "config").write_text(f"[profile site]\nregion=eu-site-1\n{config}\n")
        (home / "credentials").write_text("[site]\naws_access_key_id=FIRST\naws_secret_access_key=s\n")
        monkeypatch.setenv("AWS_PROFILE", "site")
        with pytest.raises(NotFoundError):
            storage.read_bytes(URI)
        assert {key.split("/")[0] + key[-len("/eu-site-1/s3") :] for key in server.keys} == {"FIRST/eu-site-1/s3"}
        (home / "credentials").write_text("[site]\naws_access_key_id=SECOND\naws_secret_access_key=s\n")
        with pytest.raises(NotFoundError):
            storage.read_bytes(URI)
        assert any(key.startswith("SECOND/") for key in server.keys), "new credentials are used at once"

    def test_a_profile_that_does_not_exist_is_named(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_PROFILE", "nowhere")
        with pytest.raises(RefusedError, match=rf"^{URI}: the AWS settings cannot be used: .*nowhere"):
            storage.read_bytes(URI)


def test_a_host_that_cannot_be_resolved_is_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.invalid:9000")
    with pytest.raises(UnreachableError, match=r"http://store.invalid:9000 cannot be reached; .*cannot be resolved"):
        storage.read_bytes(URI)


def test_a_port_that_nobody_listens_on_is_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(UnreachableError, match=r"cannot be reached; check AWS_ENDPOINT_URL, endpoint_url in"):
        storage.read_bytes(URI)


def test_a_certificate_that_cannot_be_verified_is_not_retried(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ssl.SSLCertVerificationError(1, "certificate verify failed: self-signed certificate")

    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url.replace("http:", "https:"))
    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", refuse)
    with pytest.raises(StorageError, match=r"the certificate of https://\S+ cannot be verified .*AWS_CA_BUNDLE"):
        storage.read_bytes(URI)
    assert "retrying" not in caplog.text


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://", r"expected s3://BUCKET/KEY"),
        ("s3://bucket", r"expected a file, s3://BUCKET/KEY"),
        ("s3://no_such bucket!/x", r"expected s3://BUCKET/KEY; 'no_such bucket!' is not a valid bucket name"),
    ],
)
def test_a_uri_that_names_no_object_is_refused(server: Server, uri: str, message: str) -> None:
    for attempt in (storage.read_bytes, lambda uri: storage.write_bytes(uri, b"")):
        with pytest.raises(StorageError, match=rf"^{uri}: {message}"):
            attempt(uri)
    assert server.requests == []


def test_errors_name_no_secret(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.respond = lambda method, path: (403, "InvalidAccessKeyId", {})
    with pytest.raises(RefusedError) as raised:
        storage.read_bytes(URI)
    assert "secret" not in str(raised.value)

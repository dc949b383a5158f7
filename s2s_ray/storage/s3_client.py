"""The S3 client of a process, with the settings that the AWS command line has too.

Credentials, region and endpoint come from the environment and from the profiles in `~/.aws/config` and
`~/.aws/credentials`, as botocore reads them. boto3 is imported when an S3 URI is first used.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from s2s_ray.errors import RefusedError, StorageError
from s2s_ray.storage import retries

_CONNECTIONS = 32
_AWS = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")
_lock = threading.Lock()
_connections: dict[tuple[object, ...], Connection] = {}


@dataclass(frozen=True)
class Connection:
    """A client of botocore, which makes one attempt at each request, and where it leads to."""

    client: Any
    session: Any
    endpoint: str | None
    """The S3 server that the settings name; None for AWS."""

    @property
    def server(self) -> str:
        """The server's name for messages."""
        return self.endpoint or "AWS"


def connection(uri: str) -> Connection:
    """Return the client for the settings of this moment; the URI is for messages alone.

    It is not shared with a forked child, nor kept when the environment or a profile changes.

    Raises:
        RefusedError: the profile does not exist, or its files cannot be read.
        StorageError: the endpoint is not a URL.
    """
    key = (os.getpid(), retries.CONNECT_TIMEOUT_S, retries.STALL_TIMEOUT_S, *_settings())
    found = _connections.get(key)
    if found is None:
        with _lock:  # sessions of boto3 are not safe in threads while a client is made
            found = _connections.get(key)
            if found is None:
                if len(_connections) >= 16:
                    _connections.clear()
                found = _connections[key] = _connect(uri)
    return found


def _after_fork() -> None:
    """Replace the lock, which another thread may have held, and forget the parent's clients."""
    global _lock
    _lock = threading.Lock()
    _connections.clear()


os.register_at_fork(after_in_child=_after_fork)


def _settings() -> tuple[object, ...]:
    """Return everything that the choice of server, region and credentials depends on."""
    names = [name for name in os.environ if name.startswith("AWS_") or name.upper().endswith("_PROXY")]
    files = []
    for name, default in (("AWS_CONFIG_FILE", "config"), ("AWS_SHARED_CREDENTIALS_FILE", "credentials")):
        path = os.path.expanduser(os.environ.get(name) or f"~/.aws/{default}")
        try:
            found = os.stat(path)
            files.append((path, found.st_mtime_ns, found.st_size))
        except OSError:
            files.append((path, 0, 0))
    return (*sorted((name, os.environ[name]) for name in names), *files)


def _connect(uri: str) -> Connection:
    from boto3.session import Session  # takes long to import, and only S3 needs it
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(
        connect_timeout=retries.CONNECT_TIMEOUT_S,
        read_timeout=retries.STALL_TIMEOUT_S,
        retries={"total_max_attempts": 1},  # `retries.patiently` repeats what is safe to repeat
        max_pool_connections=_CONNECTIONS,
        # uploads state their MD5 instead, which servers other than AWS know too; downloads are checked against it
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        session = Session()
        client = session.client("s3", config=config)
    except ValueError as error:
        raise StorageError(
            f"{uri}: AWS_ENDPOINT_URL or endpoint_url in ~/.aws/config: {error}; expected http://HOST:PORT or "
            "https://HOST:PORT"
        ) from None
    except BotoCoreError as error:
        raise RefusedError(f"{uri}: the AWS settings cannot be used: {error}") from None
    endpoint = str(client.meta.endpoint_url)
    host = urlsplit(endpoint).hostname or ""
    return Connection(client, session, None if host.endswith(_AWS) else endpoint)

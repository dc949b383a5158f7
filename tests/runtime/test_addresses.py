"""Addresses of HTTP servers."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from s2s_ray.runtime.addresses import authority, bare_host, http_url


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("localhost", "http://localhost:8000"),
        ("::1", "http://[::1]:8000"),
        ("[::1]", "http://[::1]:8000"),
        ("2001:db8::7", "http://[2001:db8::7]:8000"),
        ("::ffff:10.0.0.1", "http://[::ffff:10.0.0.1]:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("[::]", "http://[::1]:8000"),
    ],
)
def test_urls_of_hosts(host: str, url: str) -> None:
    assert http_url(host, 8000) == url
    assert urlsplit(url).port == 8000
    assert urlsplit(f"//{authority(host, 8000)}").hostname == bare_host(host)

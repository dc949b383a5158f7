"""Secrets in text: passwords and keys inside addresses, and the values of secret environment variables.

No file, log line or message of this library contains one. A configuration that holds one is refused
(`s2s_ray.config.section`), and messages are masked, because those of other libraries may name an address. This module
imports no other module of the package.
"""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import unquote

MASK = "***"
REFERENCE = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")
"""`${env:NAME}`, which stands for the value of an environment variable."""

_WORDS = re.compile(
    "accesskey|accountkey|apikey|auth|credentials?|key|pass|passphrase|passwd|password|pwd|sas|secret|secretkey|"
    "sharedkey|sig|signature|token"
)
_VARIABLE = re.compile(r"(?:^|_)(?:APIKEY|CREDENTIAL|KEY|PASSPHRASE|PASSWD|PASSWORD|SECRET|SIGNATURE|TOKEN)$")
_OTHER_VARIABLES = ("AWS_ACCESS_KEY_ID", "AZURE_STORAGE_CONNECTION_STRING")
_SHORTEST = 8
"""Characters of the shortest value of an environment variable that is masked wherever it appears: the value of
RAY_AUTH_MODE, for example, is a common word."""
_STORAGE = (
    "abfs|abfss|az|azure|file|ftp|ftps|gcs|git|grpc|gs|hdfs|http|https|r2|ray|s3|s3a|ssh|sftp|viewfs|webdav|webdavs"
)
_TOKEN_SCHEMES = ("ftp", "http", "https", "s3", "s3a")
"""Schemes whose user alone, without a password, is a secret."""

_referenced: set[str] = set()


def masked(text: str) -> str:
    """Return a message without the secrets in it: each is replaced by `***`."""
    for value in _values():
        text = text.replace(value, MASK)
    return _ASSIGNMENT.sub(_without_value, _IN_TEXT.masked(text))


def holds_secret(text: str) -> bool:
    """Return whether a text is an address that contains a password, a key or a signature; references are none."""
    return "://" in text and _ALONE.masked(text) != text


def masked_address(text: str) -> str:
    """Return one address, which may contain spaces and quotes, without the secrets in it."""
    return _ALONE.masked(masked(text))


def masked_tree(value: Any) -> Any:
    """Return a tree of plain values with the secrets in its addresses masked."""
    if isinstance(value, dict):
        return {key: masked_tree(item) for key, item in value.items()}
    if isinstance(value, list):
        return [masked_tree(item) for item in value]
    return masked_address(value) if isinstance(value, str) and holds_secret(value) else value


def expect(variable: str) -> None:
    """Mask the value of an environment variable from now on, whatever its name and length."""
    _referenced.add(variable)


class _Patterns:
    """The places of secrets in addresses.

    Args:
        end: characters that end an address, as the inside of a regular expression's character class.
    """

    def __init__(self, end: str) -> None:
        # Between :// and the last @ of the authority; a database's password may contain a slash as well. Lengths are
        # limited, because callers of the service choose a part of some messages.
        self._login = re.compile(
            rf"(?P<start>\b(?P<scheme>{_STORAGE})://)(?P<login>[^/?#{end}]{{0,500}})@"
            rf"|(?P<start2>\b(?!(?:{_STORAGE}):)[a-z][a-z0-9+.-]{{0,40}}://)"
            rf"(?P<login2>[^:/?#@{end}]{{0,200}}:[^{end}]{{0,500}})@",
            re.IGNORECASE,
        )
        self._parameter = re.compile(rf"(?P<start>[?&;](?P<name>[\w.%-]+)=)(?P<value>[^&;#{end}]+)")

    def masked(self, text: str) -> str:
        if "://" in text and "@" in text:
            text = self._login.sub(_without_login, text)
        return self._parameter.sub(_without_value, text)


_IN_TEXT = _Patterns(r"\s'\"<>")
_ALONE = _Patterns(r"\0")
_ASSIGNMENT = re.compile(
    r"\b(?P<start>(?P<name>(?:\w+[_-])?(?:password|passwd|passphrase|secret|secret_access_key))=)"
    r"(?P<value>[^\s&;,'\"]+)",
    re.IGNORECASE,
)
"""The way in which the clients of databases name a password."""


def _without_login(found: re.Match[str]) -> str:
    scheme = (found["scheme"] or "").lower()
    start, login = found["start"] or found["start2"], found["login"] or found["login2"] or ""
    user, colon, password = login.partition(":")
    if not colon:
        known = scheme in _TOKEN_SCHEMES and not _is_harmless(login)
        return f"{start}{MASK}@" if known else found[0]
    if _is_harmless(password) and (scheme not in _TOKEN_SCHEMES or _is_harmless(user) or not password):
        return found[0]
    return f"{start}{MASK}@" if scheme in _TOKEN_SCHEMES else f"{start}{user}:{MASK}@"


def _without_value(found: re.Match[str]) -> str:
    words = re.split(r"[^a-z0-9]+", re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", unquote(found["name"])).lower())
    secret = any(map(_WORDS.fullmatch, words)) and not _is_harmless(found["value"])
    return f"{found['start']}{MASK}" if secret else found[0]


def _is_harmless(text: str) -> bool:
    """Return whether a text in the place of a secret is none: nothing, references, or a mask."""
    return REFERENCE.sub("", text).replace(MASK, "") == ""


def _values() -> list[str]:
    """Return the values of secret environment variables, longest first."""
    found = set()
    for name, value in os.environ.items():
        known = name in _referenced or (
            (_VARIABLE.search(name) or name in _OTHER_VARIABLES) and len(value) >= _SHORTEST
        )
        if known and value.strip():
            found |= {value.strip(), unquote(value.strip())}
    return sorted(found, key=len, reverse=True)

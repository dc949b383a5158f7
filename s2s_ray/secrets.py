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
    "accesskey|accesstoken|accountkey|apikey|auth|authtoken|credentials?|jwt|key|pass|passphrase|passwd|password|pw|"
    "pwd|sas|sastoken|secret|secretkey|sharedkey|sig|signature|token"
)
"""Words in the name of a parameter of an address whose value is a secret."""
_LAST_WORD = re.compile(
    r"(?:.*_)?(?:access_?key(?:_id)?|account_?key|api_?key|(?:private|secret|shared|storage|subscription)_?key|jwt|"
    r"pwd|sastoken|secret|\w*token|\w*(?:passphrase|passwd|password))"
)
"""Names, in words that underscores separate, of secrets outside addresses, where `key=3` is none."""
_VARIABLE = re.compile(
    r"(?:APIKEY|PASSPHRASE|PASSWD|PASSWORD|SECRET|TOKEN)$|(?:^|_)(?:CREDENTIAL|KEY|SIGNATURE)$|_(?:PW|PWD)$"
)
_OTHER_VARIABLES = ("AWS_ACCESS_KEY_ID", "AZURE_STORAGE_CONNECTION_STRING", "REDISCLI_AUTH")
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
    return _without_assignments(_IN_TEXT.masked(text))


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
            rf"|(?P<start2>\b(?!(?:{_STORAGE}):)[a-z][a-z0-9+._-]{{0,40}}://)"
            # Not a port, as in redis://h:6379/0?user=a@b.
            rf"(?P<login2>[^:/?#@{end}]{{0,200}}:(?!\d{{1,5}}(?:/[^@?#{end}]{{0,200}})?[?#])[^{end}]{{0,500}})@",
            re.IGNORECASE,
        )
        self._parameter = re.compile(rf"(?P<start>[?&;#](?P<name>[\w.%-]+)=)(?P<value>[^&;#{end}]+)")

    def masked(self, text: str, inner: bool = False) -> str:
        """Return a text without the secrets in it; one that is not `inner` has other texts as values."""
        if "://" in text and "@" in text:
            text = self._login.sub(_without_login, text)
        return self._parameter.sub(lambda found: self._without_value(found, inner), text)

    def _without_value(self, found: re.Match[str], inner: bool) -> str:
        """Mask the value of a secret parameter, and a value that contains a secret itself, such as `PWD%3Dpw`."""
        value = ";" + unquote(found["value"])
        names_secret = any(map(_WORDS.fullmatch, _words(unquote(found["name"]))))
        secret = names_secret and not _is_harmless(found["value"])
        if not secret and not inner:
            secret = _without_assignments(self.masked(value, inner=True)) != value
        return f"{found['start']}{MASK}" if secret else found[0]


_IN_TEXT = _Patterns(r"\s'\"<>")
_ALONE = _Patterns(r"\0")
_NAME = re.compile(
    r"""(?<![\w.-])(?P<name>[\w.-]++)"""
    r"""(?P<sign>[ \t]{0,3}=[ \t]{0,3}|\\?['"]\s{0,3}[:=]\s{0,3}(?=\\?['"])|:[ ])"""
)
_VALUE = re.compile(
    r"""\\?(?P<quote>['"])(?P<quoted>(?:(?!(?P=quote))[^\\]|\\(?!['"][\s,;}\])]).){0,500})\\?(?P=quote)"""
    r"""|['"]?(?P<bare>[^\s&;,'"]+)"""
)
"""A name and a value, as the clients of databases write them (`password='a b'`), JSON, and headers of HTTP."""
_AUTHORIZATION = re.compile(
    r"""(?P<start>\bauthorization\\?['"]?[ \t]{0,3}[:=][ \t]{0,3}\\?['"]?(?:[a-z0-9-]{1,20}[ ]{1,3})?)"""
    r"""(?P<value>[^\s'",\\]+)""",
    re.IGNORECASE,
)


def _without_assignments(text: str) -> str:
    """Return a text without the secrets that are named in it outside addresses."""
    text = _AUTHORIZATION.sub(_without_authorization, text)
    parts, position = [], 0
    while name := _NAME.search(text, position):
        parts.append(text[position : name.end()])
        position = name.end()
        if _names_secret(name["name"], name["sign"]) and (value := _VALUE.match(text, position)):
            content = value["quoted"] or value["bare"] or ""
            # PWD=/home/me is the shell's name of the working directory.
            harmless = _is_harmless(content) or (name["name"] == "PWD" and content.startswith("/"))
            parts.append(value[0] if harmless else MASK)
            position = value.end()
    return "".join([*parts, text[position:]])


def _without_authorization(found: re.Match[str]) -> str:
    value = found["value"].rstrip(".")
    explains = value.isalpha() and value.isupper()  # "Authorization: Bearer TOKEN"
    return found[0] if explains or _is_harmless(value) else f"{found['start']}{MASK}"


def _names_secret(name: str, sign: str) -> bool:
    if sign == ": " and not name.lower().startswith("x-"):
        return False  # a sentence, such as "password: expected text", and no header
    return _LAST_WORD.fullmatch("_".join(_words(name[-100:]))) is not None  # limited, because the time is quadratic


def _words(name: str) -> list[str]:
    """Return the words of a name in lower case: `X-Amz-Token`, `accessKey` and `ACCESS_KEY` have several."""
    return re.split(r"[^a-z0-9]+", re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name).lower())


_USER = re.compile(r"(?P<user>(?:\$\{env:\w+\}|[^:])*)(?::(?P<password>.*))?", re.DOTALL)
"""The user before the first colon that is not part of a reference, and the password."""


def _without_login(found: re.Match[str]) -> str:
    scheme = (found["scheme"] or "").lower()
    start, login = found["start"] or found["start2"], found["login"] or found["login2"] or ""
    found_login = _USER.match(login)
    assert found_login is not None  # it matches every text
    user, password = found_login["user"], found_login["password"]
    if password is None:
        known = scheme in _TOKEN_SCHEMES and not _is_harmless(login)
        return f"{start}{MASK}@" if known else found[0]
    if _is_harmless(password) and (scheme not in _TOKEN_SCHEMES or _is_harmless(user) or not password):
        return found[0]
    return f"{start}{MASK}@" if scheme in _TOKEN_SCHEMES else f"{start}{user}:{MASK}@"


def _is_harmless(text: str) -> bool:
    """Return whether a text in the place of a secret is none: nothing, references, or a mask."""
    return REFERENCE.sub("", text).replace(MASK, "") == ""


def _values() -> list[str]:
    """Return the values of secret environment variables, longest first."""
    found = set()
    for name, value in os.environ.items():
        known = name in _referenced or (
            (_VARIABLE.search(name.upper()) or name in _OTHER_VARIABLES) and len(value) >= _SHORTEST
        )
        if known and value.strip():
            found |= {value.strip(), unquote(value.strip())}
    return sorted(found, key=len, reverse=True)

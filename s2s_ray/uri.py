"""The place of a file or directory: a path on this machine, `file://`, or a URI of an object store."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from s2s_ray.errors import InputError
from s2s_ray.secrets import masked_address

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9.-]*(?:\+[\w.-]+)*)://")  # drivers of SQLAlchemy have underscores
_MISTYPED = re.compile(r"(file|s3|gs|gcs|abfss?|hdfs|viewfs|https?):(?!//)", re.IGNORECASE)
_FILE = re.compile(r"file://(?:localhost(?=/))?", re.IGNORECASE)


def without_slash(uri: str) -> str:
    """Return a path or URI without the slashes at its end; those that belong to its scheme stay."""
    found = _SCHEME.match(uri)
    scheme = found[0] if found else ""
    return scheme + uri[len(scheme) :].rstrip("/")


def _local_part(uri: str) -> str | None:
    """Return the absolute path in a `file://`, with all of its characters; None for another URI, or with a host."""
    found = _FILE.match(uri)
    return None if found is None or uri[found.end() : found.end() + 1] != "/" else uri[found.end() :]


def _require_scheme(text: str) -> None:
    """Refuse a mistyped scheme, for the text would be a path on this machine. Raises InputError."""
    if found := _MISTYPED.match(text):
        slashes = ":///" if found[1].lower() == "file" else "://"
        meant = found[1] + slashes + text[found.end() :].lstrip("/\\")
        raise InputError(
            f"{found[0]} is not followed by //: expected {masked_address(meant)!r}, or a path on this machine that "
            "begins with ./"
        )
    before, mark, _ = text.partition("://")
    if mark and "/" not in before and not _SCHEME.match(text):
        raise InputError(f"{masked_address(text)!r}: expected SCHEME://..., and {before!r} is not a scheme")


class Uri(str):
    """A path on this machine, `file://PATH`, or `SCHEME://...` for anything else.

    It is a string, so it can be stored and shown as one. As the type of a field of a pydantic model it validates the
    text; fields of this type are the ones that `absolute` applies to when a process in another working directory
    needs them.

    Raises:
        InputError: an empty text, a NUL, a character that is not of Unicode, a scheme without its two slashes or after
            something else, or `file://` with a host or with escapes that are not UTF-8.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        if not text.strip():
            raise InputError(f"{text!r}: expected a path or a URI, found nothing")
        _require_scheme(text)
        local = _local_part(text)
        if _FILE.match(text) and local is None:
            raise InputError(f"{text!r}: expected file:///PATH, a path on this machine")
        try:
            text.encode()
            path = text if local is None else unquote(local, errors="strict")
        except UnicodeError:
            raise InputError(f"{text!r}: a path or a URI is text in UTF-8, and this one is not; rename it") from None
        if "\0" in path:
            raise InputError(f"{text!r}: a path or a URI holds no NUL")
        return super().__new__(cls, text)

    def __truediv__(self, part: str) -> Self:
        """Return the URI of something below this one."""
        return type(self)(f"{without_slash(self)}/{part.strip('/')}")

    @property
    def scheme(self) -> str:
        """The scheme in lower case; `file` for a path."""
        found = _SCHEME.match(self)
        return found[1].lower() if found else "file"

    @property
    def is_local(self) -> bool:
        """True for a path on this machine."""
        return self.scheme == "file"

    @property
    def path(self) -> Path:
        """The path of a local URI."""
        if not self.is_local:
            raise InputError(f"{self!r}: expected a path on this machine")
        return Path(unquote(_local_part(self) or "/")) if _FILE.match(self) else Path(self)

    @property
    def absolute(self) -> Self:
        """The same place under a name that holds in a process with another working directory."""
        return type(self)(str(self.path.absolute())) if self.is_local else self

    @property
    def parent(self) -> Self:
        """The directory that holds it; the root of a file system and a bucket are their own."""
        found = _SCHEME.match(self)
        if found is None:
            above = str(Path(self).parent)
            return type(self)(f"./{above}" if _MISTYPED.match(above) else above)
        above, slash, _ = self[found.end() :].rstrip("/").rpartition("/")
        return type(self)(found[0] + (above or "/")) if slash else self

    @property
    def name(self) -> str:
        """The last part; empty for the root of a file system."""
        return without_slash(self).rpartition("/")[2]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(
            cls, core_schema.str_schema(), serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

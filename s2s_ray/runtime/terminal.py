"""Text of users in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a program that prints no table starts without it
    from rich.text import Text


def printable(text: str) -> str:
    """Return text in one line: control characters, line ends and what is no Unicode as their escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def as_typed(text: str, style: str = "") -> Text:
    """Return text that Rich shows as it is, without markup and emoji codes, and made `printable`."""
    from rich.text import Text

    return Text(printable(text), style=style)

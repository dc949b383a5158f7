"""Text of users in tables of a terminal."""

from __future__ import annotations

from rich.text import Text


def as_typed(text: str, style: str = "") -> Text:
    """Return text that Rich shows as it is: no markup, no emoji codes, and control characters by their escapes."""
    return Text("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text), style=style)

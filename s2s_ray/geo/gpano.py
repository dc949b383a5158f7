"""The properties of XMP GPano (Google's Photo Sphere metadata), by their names in that schema."""

from __future__ import annotations

from dataclasses import dataclass, field
from xml.parsers import expat

NAMESPACE = "http://ns.google.com/photos/1.0/panorama/"
_PREFIX = NAMESPACE + " "
_MOST_BYTES, _MOST_ELEMENTS, _DEEPEST, _LONGEST = 1 << 20, 20_000, 64, 200


class _UnsafeError(Exception):
    """A packet with a construction that XMP does not have, or that is too large to be one."""


@dataclass(slots=True)
class _Reader:
    """Collector of the properties in a packet: attributes, or elements with a text."""

    found: dict[str, str] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    elements: int = 0
    text: str = ""

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """Take the properties among an element's attributes."""
        self.elements += 1
        self.names.append(name)
        self.text = ""
        if self.elements > _MOST_ELEMENTS or len(self.names) > _DEEPEST:
            raise _UnsafeError("it has too many elements")
        for key, value in attributes.items():
            self._take(key, value)

    def end(self, name: str) -> None:
        """Take an element's text if the element is a property."""
        self._take(name, self.text)
        self.names.pop()
        self.text = ""

    def characters(self, text: str) -> None:
        """Collect the text of a property."""
        if self.names and self.names[-1].startswith(_PREFIX) and len(self.text) <= _LONGEST:
            self.text += text

    def _take(self, name: str, value: str) -> None:
        value = value.strip()
        if name.startswith(_PREFIX) and value:
            self.found.setdefault(name.removeprefix(_PREFIX), value[:_LONGEST])


def read_gpano(packet: bytes) -> tuple[dict[str, str], list[str]]:
    """Return the texts of the GPano properties of an XMP packet, and in sentences why it was ignored.

    Packets with a document type are refused, so that no entity is ever expanded.
    """
    marker = NAMESPACE.encode()
    if not any(mark in packet for mark in (marker, NAMESPACE.encode("utf-16-le"), NAMESPACE.encode("utf-16-be"))):
        return {}, []
    if len(packet) > _MOST_BYTES:
        return {}, [f"XMP is ignored: it has {len(packet):,} bytes, more than {_MOST_BYTES:,}"]
    reader = _Reader()
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.characters
    parser.StartDoctypeDeclHandler = _refuse
    parser.EntityDeclHandler = _refuse
    try:
        parser.Parse(packet.strip(b"\0\t\r\n "), True)
    except (expat.ExpatError, _UnsafeError, ValueError, LookupError) as error:
        return {}, [f"XMP is ignored: it is not a valid packet ({error})"]
    return reader.found, []


def _refuse(*_: object) -> None:
    raise _UnsafeError("it has a document type")

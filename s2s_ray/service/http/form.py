"""The form of several images: its parts are kept as they arrive, and the body itself is not."""

from __future__ import annotations

from collections.abc import Callable

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from s2s_ray.errors import RequestError
from s2s_ray.service.http.holding import Buffer, Image
from s2s_ray.service.http.parameters import shown

FIELD = "image"
"""Name of all parts."""


class Form:
    """A `multipart/form-data` body that is parsed while it arrives.

    Args:
        boundary: of the parts, from the Content-Type.
        max_images: largest number of parts.
        hold: accounts for bytes that are kept.

    Raises:
        RequestError: the boundary cannot be one.
    """

    def __init__(self, boundary: bytes, max_images: int, hold: Callable[[int], None]) -> None:
        self._max_images = max_images
        self._hold = hold
        self._parts: list[tuple[str, Buffer]] = []
        self._header, self._value = bytearray(), bytearray()
        self._disposition = b""
        self._end = b"\r\n--" + boundary + b"--"
        self._tail = b"\r\n"
        self._closed = False
        self._fault: Exception | None = None
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._add_header,
                    "on_header_value": self._add_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._start_file,
                    "on_part_data": self._add_data,
                },
            )
        except FormParserError as error:
            raise _malformed(error) from None

    def write(self, chunk: bytes) -> None:
        """Add the next bytes of the body. Raises RequestError."""
        recent = self._tail + chunk
        self._closed = self._closed or self._end in recent
        self._tail = recent[-len(self._end) :]
        if self._fault is not None:
            return  # a form that is cut short is reported as that, whatever else is wrong with it
        try:
            self._parser.write(chunk)
        except RequestError:
            raise
        except (ValueError, LookupError) as error:
            self._fault = error

    def images(self) -> list[Image]:
        """Return the files of the complete form in its order. Raises RequestError."""
        if not self._closed:
            raise RequestError(400, "The form is cut short: its closing boundary is missing.")
        if self._fault is not None:
            raise _malformed(self._fault)
        if not self._parts:
            raise RequestError(400, "The form has no image; send each as a part with a filename.")
        return [Image(name, buffer.content()) for name, buffer in self._parts]

    def _begin(self) -> None:
        self._disposition = b""

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _start_file(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise ValueError("a part has no Content-Disposition with a name")
        name = _text(options[b"name"])
        if b"filename" not in options:
            raise RequestError(
                400,
                f"The form has a field {shown(name)} that is not a file: files need a filename, parameters go into "
                "the URL.",
            )
        if name != FIELD:
            raise RequestError(400, f"Unknown field {shown(name)} of the form: name each image {FIELD!r}.")
        if len(self._parts) == self._max_images:
            raise RequestError(413, f"The form has more than {self._max_images} images; send fewer at a time.")
        self._parts.append((_text(options[b"filename"]), Buffer(self._hold)))

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._parts[-1][1].write(memoryview(data)[start:end])


def _text(encoded: bytes) -> str:
    try:
        return encoded.decode()
    except UnicodeDecodeError:
        return encoded.decode("latin-1")


def _malformed(error: Exception) -> RequestError:
    return RequestError(400, f"The form cannot be parsed: {str(error).rstrip('.')}.")

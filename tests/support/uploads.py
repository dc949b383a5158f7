"""Damaged uploads: valid requests, damaged in ways that a seed determines."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

PATHS = ("/v1/embed/street", "/v1/embed/satellite", "/v1/synthesize", "/v1/localize")
_KINDS = ("image/png", "image/jpeg", "application/octet-stream", "image/x", "text/plain", "", "multipart/form-data")
_VALUES = (
    "", "0", "-1", "1e999", "nan", "0,1", "0.1,0.9", "1,2,3", "1,2,3,4", "ü", "9" * 400, "\x00", "polar", "5",
    "unknown", "auto", "true", "file,50", "rectilinear", "70",
)  # fmt: skip
_NAMES = (
    "heading", "fov", "projection", "pitch", "roll", "rows", "k", "layout", "near", "bbox", "prior", "true", "together",
    "other",
)  # fmt: skip
_ACCEPT = ("*/*", "application/json", "application/x-npy", "image/webp", "application/geo+json", "", "q=;;,", "a/b")


class Upload(NamedTuple):
    """One request to send."""

    path: str
    params: list[tuple[str, str]]
    headers: dict[str, str]
    content: bytes


def uploads(seed: int, count: int) -> Iterator[Upload]:
    """Yield this many damaged requests; the same for the same seed."""
    dice = random.Random(seed)
    valid = _valid()
    for _ in range(count):
        content = dice.choice(valid)
        for _ in range(dice.randint(0, 3)):
            content = _damaged(content, dice)
        headers = {"content-type": dice.choice(_KINDS)}
        if headers["content-type"].startswith("multipart"):
            content, headers["content-type"] = _form(content, dice)
        if dice.random() < 0.3:
            headers["accept"] = dice.choice(_ACCEPT)
        params = [(dice.choice(_NAMES), dice.choice(_VALUES)) for _ in range(dice.choice((0, 0, 0, 1, 2)))]
        yield Upload(dice.choice(PATHS), params, headers, content)


def _valid() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    panorama, tile = Image.fromarray(pixels), Image.fromarray(pixels[:, :40])
    files = []
    for image in (panorama, tile, tile.convert("L"), tile.convert("P"), tile.convert("CMYK"), tile.convert("RGBA")):
        for kind in ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "JPEG2000"):
            buffer: Any = io.BytesIO()
            try:
                image.save(buffer, kind)
            except (OSError, ValueError, KeyError):
                continue  # this format does not support these pixels
            files.append(buffer.getvalue())
    for kind, options in (("GIF", {}), ("WEBP", {}), ("PNG", {}), ("TIFF", {"compression": "tiff_lzw"})):
        buffer = io.BytesIO()
        tile.save(buffer, kind, save_all=True, append_images=[tile.rotate(90)], **options)
        files.append(buffer.getvalue())
    return files


def _damaged(content: bytes, dice: random.Random) -> bytes:
    data = bytearray(content)
    if not data:
        return bytes(dice.randbytes(dice.randint(0, 50)))
    place, length = dice.randrange(len(data)), dice.choice((1, 2, 4, 16, 64))
    match dice.randrange(7):
        case 0:  # flipped bits
            data[place] ^= 1 << dice.randrange(8)
        case 1:  # other bytes, near the start, where sizes and counts are
            place = dice.randrange(min(64, len(data)))
            data[place : place + length] = dice.randbytes(length)
        case 2:
            data[place : place + length] = bytes([dice.choice((0, 0x7F, 0xFF))]) * length
        case 3:  # cut short
            del data[place:]
        case 4:  # a hole
            del data[place : place + length]
        case 5:  # repeated bytes
            data[place:place] = data[place : place + length]
        case _:  # noise
            data[place:place] = dice.randbytes(length)
    return bytes(data)


def _form(content: bytes, dice: random.Random) -> tuple[bytes, str]:
    boundary = dice.choice(("b", "b", "b", "-" * 70, "", "x;y"))
    head = dice.choice(
        (
            'Content-Disposition: form-data; name="image"; filename="a.png"',
            'Content-Disposition: form-data; name="image"; filename="\xfc"',
            'Content-Disposition: form-data; name="k"',
            "Content-Disposition: form-data",
            "Content-Type: image/png",
            "",
        )
    )
    part = f"--{boundary}\r\n{head}\r\n\r\n".encode("latin-1") + content + b"\r\n"
    body = part * dice.choice((1, 1, 2, 5)) + dice.choice((f"--{boundary}--\r\n", "")).encode()
    if dice.random() < 0.3:
        body = _damaged(body, dice)
    charset = dice.choice(("", "", "; charset=utf-8", "; charset=zlib", "; charset=idna", "; charset=none"))
    return body, f"multipart/form-data; boundary={boundary}{charset}"

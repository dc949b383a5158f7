"""Metadata of files that Pillow writes, as cameras do, and of files that are damaged."""

from __future__ import annotations

import io
import math
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from s2s_ray.geo.camera import Crop
from s2s_ray.geo.images import decode
from s2s_ray.geo.metadata import COMPASS_SPREAD, MAGNETIC_SPREAD, PhotoMetadata, read_metadata

GPANO = "http://ns.google.com/photos/1.0/panorama/"
PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">{}</rdf:RDF></x:xmpmeta><?xpacket end="w"?>"""
SPHERE = {"ProjectionType": "equirectangular", "FullPanoWidthPixels": 4000, "FullPanoHeightPixels": 2000}


def packet(prefix: str = "GPano", *, elements: bool = False, **properties: object) -> bytes:
    if elements:
        inner = "".join(f"<{prefix}:{key}> {value}\n</{prefix}:{key}>" for key, value in properties.items())
        body = f'<rdf:Description rdf:about="" xmlns:{prefix}="{GPANO}">{inner}</rdf:Description>'
    else:
        inner = " ".join(f'{prefix}:{key}="{value}"' for key, value in properties.items())
        body = f'<rdf:Description rdf:about="" xmlns:{prefix}="{GPANO}" {inner}/>'
    return PACKET.format(body).encode()


def exif(
    gps: dict[int, Any] | None = None, focal: int | None = None, orientation: int | None = None, **sizes: int
) -> bytes:
    tags = Image.Exif()
    if orientation is not None:
        tags[0x0112] = orientation
    inner = tags.get_ifd(0x8769)
    if focal is not None:
        inner[0xA405] = focal
    if sizes:
        inner[0xA002], inner[0xA003] = sizes["width"], sizes["height"]
    if gps is not None:
        tags.get_ifd(0x8825).update(gps)
    return tags.tobytes()


def picture(kind: str = "JPEG", size: tuple[int, int] = (60, 40), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (90, 120, 30)).save(buffer, kind, **options)
    return buffer.getvalue()


POSITION = {1: "S", 2: (33.0, 51.0, 24.5), 3: "E", 4: (151.0, 12.0, 30.0)}
DIRECTION = {16: "T", 17: 123.25}


def test_a_phones_photograph_says_position_bearing_and_field_of_view() -> None:
    found = read_metadata(picture(exif=exif({**POSITION, **DIRECTION}, focal=26)))
    assert found.position == pytest.approx((-(33 + 51 / 60 + 24.5 / 3600), 151 + 12 / 60 + 30 / 3600))
    assert (found.heading, found.heading_spread, found.heading_reference) == (123.25, COMPASS_SPREAD, "true")
    assert found.projection == "rectilinear"
    assert found.fov == pytest.approx(2 * math.degrees(math.atan(18 / 26)))
    assert found.warnings == ()


def test_a_portrait_sees_less_of_the_horizon() -> None:
    narrow = 2 * math.degrees(math.atan(18 * 40 / 60 / 26))
    assert read_metadata(picture(size=(40, 60), exif=exif(focal=26))).fov == pytest.approx(narrow)
    assert read_metadata(picture(exif=exif(focal=26, orientation=6))).fov == pytest.approx(narrow)
    sideways = exif(focal=26, orientation=6, width=6000, height=4000)
    assert read_metadata(picture(exif=sideways)).fov == pytest.approx(narrow)


def test_a_magnetic_bearing_is_named_and_widened() -> None:
    found = read_metadata(picture(exif=exif({16: "M", 17: 123.25})))
    assert (found.heading, found.heading_spread, found.heading_reference) == (123.25, MAGNETIC_SPREAD, "magnetic")
    assert "magnetic north" in found.warnings[0]
    unnamed = read_metadata(picture(exif=exif({17: 123.25})))
    assert (unnamed.heading, unnamed.heading_spread, unnamed.heading_reference) == (123.25, MAGNETIC_SPREAD, None)
    assert "GPSImgDirectionRef is missing" in unnamed.warnings[0]


@pytest.mark.parametrize("elements", [False, True])
@pytest.mark.parametrize("prefix", ["GPano", "ns1"])
def test_a_photo_sphere_in_attributes_or_elements(prefix: str, elements: bool) -> None:
    data = packet(
        prefix, elements=elements, **SPHERE, PoseHeadingDegrees=350.5, PosePitchDegrees=-2.5, PoseRollDegrees="1e1",
        CroppedAreaImageWidthPixels=2000, CroppedAreaImageHeightPixels=1000, CroppedAreaLeftPixels=1500,
        CroppedAreaTopPixels=300, UsePanoramaViewer=True, InitialViewHeadingDegrees=77,
    )  # fmt: skip
    found = read_metadata(picture(size=(200, 100), xmp=data))
    assert (found.fov, found.projection, found.pitch, found.roll) == (180.0, "equirectangular", -2.5, 10.0)
    assert found.crop == pytest.approx(Crop(-45.0, 135.0, 63.0, -27.0))
    # the middle column lies 45 degrees to the right of the panorama's
    assert (found.heading, found.heading_spread, found.heading_reference) == (35.5, COMPASS_SPREAD, "true")
    assert found.warnings == ()


def test_a_cylinders_heights_are_tangents() -> None:
    data = packet(ProjectionType="cylindrical", FullPanoWidthPixels=6283, FullPanoHeightPixels=1000)
    found = read_metadata(picture(size=(628, 100), xmp=data))
    assert (found.projection, found.fov) == ("cylindrical", 360.0)
    assert found.crop is not None
    assert found.crop.top == -found.crop.bottom == pytest.approx(math.degrees(math.atan(0.5)), abs=0.01)


def test_all_containers_say_the_same() -> None:
    tags, data = exif({**POSITION, **DIRECTION}), packet(**SPHERE, PosePitchDegrees=3)
    expected = read_metadata(picture("JPEG", (80, 40), exif=tags, xmp=data))
    assert expected.pitch == 3
    assert expected.position is not None
    for kind in ("WEBP", "MPO"):
        assert read_metadata(picture(kind, (80, 40), exif=tags, xmp=data)) == expected
    for compressed in (False, True):
        chunks = PngImagePlugin.PngInfo()
        chunks.add_itxt("XML:com.adobe.xmp", data.decode(), zip=compressed)
        assert read_metadata(picture("PNG", (80, 40), exif=tags, pnginfo=chunks)) == expected
    with Image.open(io.BytesIO(picture("JPEG", exif=tags))) as image:
        whole = image.getexif()
        whole.get_ifd(0x8825)
        whole[700] = data
        assert read_metadata(picture("TIFF", (80, 40), exif=whole)) == expected


def oriented(kind: str, orientation: int, where: str) -> bytes:
    """A file with a focal length that is to be turned, as EXIF or XMP says."""
    tags = exif(focal=26, orientation=orientation if where == "exif" else None)
    data = packet(UsePanoramaViewer=True)
    if where == "xmp":
        data = data.replace(b"<rdf:Description", b'<rdf:Description tiff:Orientation="%d"' % orientation, 1)
    if kind == "TIFF":
        whole = Image.Exif()
        whole.load(tags)
        whole.get_ifd(0x8769)
        if where == "xmp":
            whole[700] = data
        return picture(kind, exif=whole)
    if kind == "PNG":
        chunks = PngImagePlugin.PngInfo()
        chunks.add_itxt("XML:com.adobe.xmp", data.decode())
        return picture(kind, exif=tags, pnginfo=chunks)
    if kind == "PNG, raw":
        profile = f"\nexif\n{len(tags):8d}\n{tags.hex()}"
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text("Raw profile type exif", profile, zip=orientation % 2 == 0)
        chunks.add_itxt("XML:com.adobe.xmp", data.decode())
        return picture("PNG", pnginfo=chunks)
    return picture(kind, exif=tags, xmp=data)


@pytest.mark.parametrize("where", ["exif", "xmp"])
@pytest.mark.parametrize("kind", ["JPEG", "MPO", "WEBP", "TIFF", "PNG", "PNG, raw"])
def test_the_size_is_that_of_the_decoded_picture(kind: str, where: str) -> None:
    for orientation in range(1, 9):
        data = oriented(kind, orientation, where)
        height, width = decode(data).shape[:2]
        assert (height > width) == (orientation >= 5)
        expected = 2 * math.degrees(math.atan(36 / 2 / 26 * min(1, width / height)))
        assert read_metadata(data).fov == pytest.approx(expected), orientation


@pytest.mark.parametrize(
    ("size", "properties"),
    [
        ((80, 40), {**SPHERE, "CroppedAreaImageWidthPixels": 1000, "CroppedAreaLeftPixels": 3500}),
        ((80, 40), {**SPHERE, "CroppedAreaImageWidthPixels": 3000}),
        ((80, 40), {**SPHERE, "FullPanoWidthPixels": "wide"}),
        ((60, 40), {}),
    ],
)
def test_the_pose_of_an_unknown_part_of_a_panorama_is_ignored(
    size: tuple[int, int], properties: dict[str, object]
) -> None:
    data = packet(**properties, PoseHeadingDegrees=30, PosePitchDegrees=4)
    found = read_metadata(picture(size=size, xmp=data))
    assert (found.heading, found.heading_spread, found.pitch, found.crop) == (None, 180, None, None)
    assert "GPano's pose is ignored" in found.warnings[-1]
    found = read_metadata(picture(size=size, xmp=data, exif=exif(DIRECTION)))
    assert found.heading == 123.25


def test_the_pose_of_a_whole_panorama_needs_no_sizes() -> None:
    found = read_metadata(picture(size=(80, 40), xmp=packet(PoseHeadingDegrees=30, PosePitchDegrees=4)))
    assert (found.heading, found.heading_spread, found.pitch, found.warnings) == (30, COMPASS_SPREAD, 4, ())


def test_a_sweep_does_not_say_which_part_of_it_looked_there() -> None:
    found = read_metadata(picture(size=(200, 40), exif=exif(DIRECTION)))
    assert (found.heading, found.heading_spread) == (None, 180)
    assert "GPSImgDirection=123.2 is ignored: the picture is made of several photographs" in found.warnings[0]
    sphere = read_metadata(picture(size=(80, 40), exif=exif(DIRECTION), xmp=packet(**SPHERE)))
    assert (sphere.heading, sphere.heading_spread, sphere.warnings) == (123.25, COMPASS_SPREAD, ())


def test_chunks_of_png_are_found_behind_the_pixels() -> None:
    plain = picture("PNG")
    body = exif(DIRECTION).removeprefix(b"Exif\0\0")
    chunk = len(body).to_bytes(4, "big") + b"eXIf" + body + zlib.crc32(b"eXIf" + body).to_bytes(4, "big")
    assert read_metadata(plain[:-12] + chunk + plain[-12:]).heading == 123.25


def test_a_file_without_metadata_says_nothing() -> None:
    assert read_metadata(picture()) == PhotoMetadata()
    assert read_metadata(picture("BMP")) == PhotoMetadata()


@pytest.mark.parametrize(
    ("gps", "words"),
    [
        ({**POSITION, 2: (95.0, 0.0, 0.0)}, "GPSLatitude is ignored: expected 0 to 90 degrees"),
        ({**POSITION, 2: (33.0, 61.0, 0.0)}, "minutes and seconds up to 60"),
        ({**POSITION, 1: "X"}, "GPSLatitudeRef is 'X', expected N or S"),
        ({key: POSITION[key] for key in (1, 2, 4)}, "GPSLongitudeRef is missing"),
        ({key: POSITION[key] for key in (1, 2)}, "GPSLongitude is ignored"),
        ({**POSITION, 9: "V"}, "GPSStatus=V"),
        ({1: "N", 2: (0.0, 0.0, 0.0), 3: "E", 4: (0.0, 0.0, 0.0)}, "both are 0"),
        ({**POSITION, 2: (1.0, 2.0, 3.0, 4.0)}, "expected degrees, minutes and seconds"),
    ],
)
def test_a_position_that_cannot_be_is_ignored(gps: dict[int, Any], words: str) -> None:
    found = read_metadata(picture(exif=exif(gps)))
    assert found.position is None
    assert words in " ".join(found.warnings)


def test_fractions_by_zero_are_unknown() -> None:
    block = exif(DIRECTION)
    written = struct.pack(">II", 493, 4)
    assert written in block
    block = block.replace(written, struct.pack(">II", 493, 0))
    found = read_metadata(picture(exif=block))
    assert found.heading is None
    assert "GPSImgDirection=nan is ignored" in found.warnings[0]


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({"PoseHeadingDegrees": 400}, "GPano PoseHeadingDegrees='400' is ignored"),
        ({"PoseHeadingDegrees": "nan"}, "PoseHeadingDegrees='nan'"),
        ({"PosePitchDegrees": "steep"}, "PosePitchDegrees='steep'"),
        ({"PoseRollDegrees": -181}, "PoseRollDegrees='-181'"),
        ({**SPHERE, "ProjectionType": "fisheye"}, "ProjectionType='fisheye' is ignored"),
        ({**SPHERE, "FullPanoWidthPixels": -4}, "FullPanoWidthPixels='-4'"),
        ({**SPHERE, "CroppedAreaImageWidthPixels": 5000}, "does not lie within FullPanoWidthPixels=4000"),
        (
            {**SPHERE, "CroppedAreaImageHeightPixels": 1500, "CroppedAreaTopPixels": 600},
            "CroppedAreaImageHeightPixels=1500 at 600 does not lie within",
        ),
        ({**SPHERE, "CroppedAreaImageWidthPixels": 3000}, "edited later"),
        (
            {
                "FullPanoWidthPixels": 1000,
                "FullPanoHeightPixels": 700,
                "CroppedAreaImageHeightPixels": 500,
                "CroppedAreaTopPixels": 0,
            },
            "more than a sphere has",
        ),
    ],
)
def test_panoramas_that_cannot_be_are_ignored(properties: dict[str, object], words: str) -> None:
    found = read_metadata(picture(size=(80, 40), xmp=packet(**properties)))
    assert words in " ".join(found.warnings)
    assert (found.heading, found.fov, found.pitch, found.roll, found.crop) == (None,) * 5


def test_heights_of_an_odd_panorama_have_the_scale_of_widths() -> None:
    data = packet(FullPanoWidthPixels=3600, FullPanoHeightPixels=900, PoseHeadingDegrees=10)
    found = read_metadata(picture(size=(400, 100), xmp=data))
    assert found.crop == pytest.approx(Crop(-180, 180, 45, -45))
    assert "not twice as wide as high" in found.warnings[0]


@pytest.mark.parametrize(
    ("size", "sizes", "words"),
    [
        ((120, 40), {}, "made of several photographs"),
        ((60, 40), {"width": 4000, "height": 3000}, "was cropped from 4000 x 3000"),
    ],
)
def test_a_focal_length_says_nothing_of_an_edited_picture(
    size: tuple[int, int], sizes: dict[str, int], words: str
) -> None:
    found = read_metadata(picture(size=size, exif=exif(focal=26, **sizes)))
    assert (found.fov, found.projection) == (None, None)
    assert words in found.warnings[0]


def test_an_unknown_focal_length_is_no_fault() -> None:
    assert read_metadata(picture(exif=exif(focal=0))) == PhotoMetadata()


def test_the_sphere_comes_before_the_camera() -> None:
    data = packet(**SPHERE, PoseHeadingDegrees=10)
    found = read_metadata(picture(size=(80, 40), xmp=data, exif=exif(DIRECTION, focal=26)))
    assert (found.heading, found.fov, found.projection) == (10, 360, "equirectangular")
    assert "GPSImgDirection=123.2 is ignored: GPano PoseHeadingDegrees says 10.0" in found.warnings[0]


@pytest.mark.parametrize(
    ("hostile", "words"),
    [
        (b'<!DOCTYPE x [<!ENTITY a "b">]><x xmlns:G="%s" G:PosePitchDegrees="&a;"/>', "document type"),
        (b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><x xmlns:G="%s"/>', "document type"),
        (b'<x xmlns:G="%s" G:PosePitchDegrees="3">', "not a valid packet"),
        (b'<x xmlns:G="%s"/>' + b" " * (1 << 20) + b"<", "more than 1,048,576"),
        (b'<x xmlns:G="%s">' + b"<y>" * 100, "too many elements"),
        (b'<x xmlns:G="%s">' + b"<y/>" * 30_000, "too many elements"),
        (b'<?xml version="1.0" encoding="no-such"?><x xmlns:G="%s"/>', "not a valid packet"),
    ],
    ids=["entity", "external", "cut short", "large", "deep", "many", "encoding"],
)
def test_hostile_packets_are_ignored(hostile: bytes, words: str) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("XML:com.adobe.xmp", hostile.replace(b"%s", GPANO.encode()).decode())
    found = read_metadata(picture("PNG", pnginfo=chunks))
    assert found.pitch is None
    assert words in " ".join(found.warnings)


def test_a_compressed_packet_that_explodes_is_ignored() -> None:
    body = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(packet(PosePitchDegrees=3) + b" " * (1 << 22))
    chunk = len(body).to_bytes(4, "big") + b"iTXt" + body + zlib.crc32(b"iTXt" + body).to_bytes(4, "big")
    plain = picture("PNG")
    found = read_metadata(plain[:33] + chunk + plain[33:])
    assert found.pitch is None
    assert "too large" in found.warnings[0]


@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_other_files_are_a_warning(data: bytes) -> None:
    found = read_metadata(data)
    assert "cannot be read" in found.warnings[0]
    assert found.fov is None


def test_damaged_files_never_raise() -> None:
    tags, data = exif({**POSITION, **DIRECTION}, focal=26, orientation=6), packet(**SPHERE, PoseHeadingDegrees=10)
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("XML:com.adobe.xmp", data.decode())
    whole = [
        picture("JPEG", (80, 40), exif=tags, xmp=data),
        picture("WEBP", (80, 40), exif=tags, xmp=data),
        picture("PNG", (80, 40), exif=tags, pnginfo=chunks),
        picture("TIFF", (8, 4), exif=Image.Exif()),
    ]
    rng = np.random.default_rng(0)
    for number in range(600):
        damaged = bytearray(whole[number % len(whole)])
        head = min(len(damaged), 900)  # where the metadata are
        for at in rng.integers(0, head, rng.integers(1, 6)):
            damaged[at] = rng.integers(0, 256)
        if number % 3 == 0:
            del damaged[rng.integers(0, len(damaged)) :]
        found = read_metadata(bytes(damaged))
        assert found.heading is None or 0 <= found.heading < 360
        assert found.fov is None or 0 < found.fov <= 360
        assert found.position is None or np.isfinite(found.position).all()

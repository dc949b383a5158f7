"""Users' own images, listed in a manifest."""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from s2s_ray import storage
from s2s_ray.config import ManifestSourceConfig, SyntheticSourceConfig
from s2s_ray.data.schema import Record
from s2s_ray.data.sources import open_source
from s2s_ray.data.sources.manifest import (
    ManifestSource,
)
from s2s_ray.errors import DamagedError, ManifestError, NotFoundError, StorageError, UnreadableImageError
from s2s_ray.geo.utm import to_utm, utm_zone

if TYPE_CHECKING:
    from tests.support.pair_folder import PairFolder

HEADER = "id,satellite,street,split"


def manifest(tmp_path: Path, text: str | bytes) -> ManifestSource:
    path = tmp_path / "m.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return ManifestSource(ManifestSourceConfig(uri=str(path)))


def records(tmp_path: Path, text: str | bytes) -> list[Record]:
    return list(manifest(tmp_path, text).records())


def test_each_kind_of_source_is_opened(tmp_path: Path) -> None:
    assert isinstance(open_source(ManifestSourceConfig(uri="x.csv")), ManifestSource)
    assert type(open_source(SyntheticSourceConfig())).__name__ == "SyntheticSource"


def test_rows_become_records_in_their_order(tmp_path: Path) -> None:
    found = records(tmp_path, f"{HEADER},heading,colour\n007,a.png,b.png,test,90,red\nx,c.png,d.png,train,,\n")
    assert found == [Record("007", "test", heading=90.0), Record("x", "train", heading=0.0)]


def test_byte_order_mark_blank_lines_and_spaces_are_accepted(tmp_path: Path) -> None:
    text = f"\ufeff{HEADER}\r\n\r\n é 1 ,a.png,b.png, val\r\n\r\n"
    assert records(tmp_path, text) == [Record("é 1", "val")]


def test_parquet_with_numbers_and_gaps(tmp_path: Path) -> None:
    table = pa.table(
        {
            "split": ["train", "test"],
            "id": [12, 3],
            "satellite": ["a", "b"],
            "street": ["c", "d"],
            "latitude": [None, -35.25],
            "longitude": [None, 149.125],
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    source = ManifestSource(ManifestSourceConfig(uri=str(tmp_path / "m.parquet"), panorama_heading=180.0))
    first, second = source.records()
    assert first == Record("12", "train", heading=180.0)
    assert (second.id, second.latitude, second.longitude, second.zone) == ("3", -35.25, 149.125, 32755)


@pytest.mark.parametrize(
    "unknown", ["", "nan", "NaN", "-nan", "NA", "N/A", "#N/A", "<NA>", "NaT", "None", "null", " NaN "]
)
def test_a_number_that_is_not_available_is_unknown(tmp_path: Path, unknown: str) -> None:
    columns = ("latitude", "longitude", "easting", "northing", "zone", "heading", "fov")
    text = f"{HEADER},{','.join(columns)}\nNA,s,p,train{f',{unknown}' * len(columns)}\n"
    assert records(tmp_path, text) == [Record("NA", "train")]


def test_arrow_reads_a_parquet_file_without_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread of Arrow that still holds a Python file at the end of the process aborts it, now and then."""
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({name: ["train"] for name in HEADER.split(",")}), path)
    read, given = pq.read_table, []

    def spied(source: object) -> pa.Table:
        given.append(source)
        return read(source)

    monkeypatch.setattr(pq, "read_table", spied)
    assert len(ManifestSource(ManifestSourceConfig(uri=str(path))).records()) == 1
    [source] = given
    assert isinstance(source, pa.NativeFile)
    assert not isinstance(source, pa.PythonFile)


def test_nan_in_parquet_is_unknown(tmp_path: Path) -> None:
    nan = float("nan")
    rows = {"id": ["a", "b"], "satellite": ["s", "s"], "street": ["p", "p"], "split": ["test", "test"]}
    numbers = {"latitude": [nan, 48.0], "longitude": [nan, 11.0], "heading": [90.0, nan], "fov": [nan, None]}
    uri = str(tmp_path / "m.parquet")
    for kind in (pa.float64(), pa.float32()):
        pq.write_table(pa.table(rows | {name: pa.array(each, kind) for name, each in numbers.items()}), uri)
        first, second = ManifestSource(ManifestSourceConfig(uri=uri)).records()
        assert first == Record("a", "test", heading=90.0)
        assert (second.latitude, second.longitude, second.zone, second.heading) == (48.0, 11.0, 32632, 0.0)
    for column in ("id", "satellite", "street"):
        pq.write_table(pa.table(rows | {column: pa.array([1.0, nan])}), uri)
        with pytest.raises(ManifestError, match=f"row 2: {column} is empty"):
            ManifestSource(ManifestSourceConfig(uri=uri)).records()


def test_heading_of_a_row_overrides_the_configured_one(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(f"{HEADER},heading\na,s,p,train,0\nb,s,p,train,\n")
    source = ManifestSource(ManifestSourceConfig(uri=str(tmp_path / "m.csv"), panorama_heading=45.0))
    assert [record.heading for record in source.records()] == [0.0, 45.0]


def test_coordinates_become_utm(tmp_path: Path) -> None:
    text = f"{HEADER},latitude,longitude\na,s,p,train,47.5,11.25\nb,s,p,train,-35.3,149.1\nc,s,p,train,47.5,9\n"
    north, south, middle = records(tmp_path, text)
    assert (north.zone, south.zone) == (32632, 32755)
    # on a central meridian the easting is 500 km, and the northing is k0 times the length of the meridian arc
    assert middle.easting == pytest.approx(500_000.0, abs=1e-6)
    assert middle.northing == pytest.approx(0.9996 * meridian_arc(47.5), abs=1e-3)
    assert north.easting is not None
    assert south.northing is not None
    assert 500_000 < north.easting < 700_000
    assert south.northing == pytest.approx(10_000_000 - 0.9996 * meridian_arc(35.3), abs=4000)


def test_positions_near_a_pole_have_degrees_only(tmp_path: Path) -> None:
    text = f"{HEADER},latitude,longitude\na,s,p,train,84.1,20\nb,s,p,train,-80.1,20\nc,s,p,train,90,0\n"
    found = records(tmp_path, text)
    assert [record.latitude for record in found] == [84.1, -80.1, 90.0]
    assert {(record.easting, record.northing, record.zone) for record in found} == {(None, None, None)}


def meridian_arc(latitude: float) -> float:
    """Metres along WGS 84's meridian from the equator, by quadrature of the radius of curvature."""
    a, f = 6378137.0, 1 / 298.257223563
    e2 = f * (2 - f)
    edges = np.linspace(0, math.radians(latitude), 20001)
    middles = (edges[1:] + edges[:-1]) / 2
    return float((a * (1 - e2) * (1 - e2 * np.sin(middles) ** 2) ** -1.5 * np.diff(edges)).sum())


def test_given_utm_is_kept(tmp_path: Path) -> None:
    text = f"{HEADER},latitude,longitude,easting,northing,zone\na,s,p,train,47.5,11.25,1.5,2.5,32633\n"
    (found,) = records(tmp_path, text)
    assert (found.easting, found.northing, found.zone, found.latitude) == (1.5, 2.5, 32633, 47.5)


@pytest.mark.parametrize(
    ("latitude", "longitude", "zone"),
    [(0.0, -180.0, 32601), (-0.1, -174.0001, 32701), (1.0, -174.0, 32602), (50.0, 179.9, 32660), (50.0, 180.0, 32660)],
)
def test_utm_zones(latitude: float, longitude: float, zone: int) -> None:
    assert utm_zone(latitude, longitude) == zone


def test_utm_keeps_centimetres() -> None:
    _, northing = to_utm([-35.3, -35.3000001], [149.1, 149.1], 32755)
    assert northing[0] - northing[1] == pytest.approx(0.0111, abs=2e-4)


ROW = "a,s.png,p.png,train"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (f"{HEADER}\n", "has no rows"),
        (
            "id,satellite,panorama,split\na,b,c,train\n",
            r"column street is missing; the file has id, satellite, panorama",
        ),
        ("id\na\n", "column satellite, street, split is missing"),
        (f"{HEADER}\n{ROW},extra\n", "row 1: 5 fields, the header has 4"),
        (f"{HEADER}\n{ROW}\n ,s,p,train\n", "row 2: id is empty"),
        (f"{HEADER}\na,,p,train\n", "row 1: satellite is empty"),
        (f"{HEADER}\na,s,p,Train\n", "row 1: split is 'Train', expected one of train, val, test"),
        (f"{HEADER}\n" + f"{ROW}\n" * 2 + "b,s,p,test\nc,s,p,val\nc,s,p,test\n", "2 are repeated: a, c$"),
        (f"{HEADER},latitude\n{ROW},1\n", "longitude missing; give latitude, longitude or none"),
        (f"{HEADER},latitude,longitude\n{ROW},1,\n", "row 1: longitude missing"),
        (f"{HEADER},latitude,longitude\n{ROW},91,0\n", "row 1: latitude is 91, expected between -90 and 90"),
        (f"{HEADER},latitude,longitude\n{ROW},0,181\n", "row 1: longitude is 181"),
        (f"{HEADER},latitude,longitude\n{ROW},5 N,0\n", "row 1: latitude is '5 N', expected a number"),
        (f"{HEADER},heading\n{ROW},inf\n", "row 1: heading is 'inf', expected a number"),
        (f"{HEADER}\n{ROW}\nb,NaN,p,test\n", "row 2: satellite is 'NaN', but every row needs one"),
        (f"{HEADER}\n{ROW}\nb,s,<NA>,test\n", "row 2: street is '<NA>', but every row needs one"),
        (f"{HEADER},latitude,longitude\n{ROW},nan,1\n", "row 1: latitude missing; give latitude, longitude or none"),
        (f"{HEADER},easting,northing,zone\n{ROW},1,,32632\n", "northing missing; give easting, northing, zone"),
        (f"{HEADER},easting,northing,zone\n{ROW},1,2,32\n", "row 1: zone is 32, expected the EPSG code"),
        (b"\xff\xfe\x00id", "neither Parquet nor CSV in UTF-8"),
        (b"PAR1 and no more", "not a readable Parquet file"),
        (f"{HEADER}\na,s\0.png,p,train\n", r"row 1: satellite='s\\x00.png' contains a NUL character"),
        (f'{HEADER}\n"a,b', "neither Parquet nor CSV"),
    ],
)
def test_a_manifest_that_cannot_be_used_says_why(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ManifestError, match=message) as caught:
        records(tmp_path, text)
    assert str(tmp_path / "m.csv") in str(caught.value)


@pytest.mark.parametrize(
    "column",
    [pa.array([2**58], pa.timestamp("us")), pa.array([2**30], pa.date32())],
    ids=["timestamp", "date"],
)
def test_a_parquet_file_with_values_that_python_cannot_hold(tmp_path: Path, column: pa.Array) -> None:
    row = dict(zip(HEADER.split(","), ROW.split(","), strict=True))
    pq.write_table(
        pa.table({**{name: [value] for name, value in row.items()}, "taken": column}), tmp_path / "m.parquet"
    )
    with pytest.raises(ManifestError, match="is not a readable Parquet file"):
        ManifestSource(ManifestSourceConfig(uri=str(tmp_path / "m.parquet"))).records()


def test_a_missing_manifest_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"none\.csv does not exist"):
        ManifestSource(ManifestSourceConfig(uri=str(tmp_path / "none.csv"))).records()


def test_images_are_found_beside_the_manifest_by_absolute_path_and_by_uri(
    pairs: PairFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs.add("a")
    pairs.add("b")
    pairs.rows[1]["satellite"] = str(pairs.path / "a-satellite.png")
    pairs.rows[1]["street"] = f"file://{pairs.path}/a-street.png"
    pairs.source()
    monkeypatch.chdir(pairs.path)
    source = ManifestSource(ManifestSourceConfig(uri="pairs.csv"))
    monkeypatch.chdir(tmp_path)  # as in a worker with another working directory
    source = pickle.loads(pickle.dumps(source))
    first, second = (source.read(record) for record in source.records())
    assert first.satellite.shape == (24, 24, 3)
    assert first.street.shape == (20, 44, 3)
    assert np.array_equal(first.satellite, second.satellite)
    assert np.array_equal(first.street, second.street)


def test_unreadable_images_give_their_reason_and_no_id(pairs: PairFolder) -> None:
    pairs.add("one")
    pairs.add("two")
    (pairs.path / "one-street.png").unlink()
    (pairs.path / "two-satellite.png").write_bytes(b"no image")
    source = ManifestSource(pairs.source())
    one, two = source.records()
    with pytest.raises(UnreadableImageError, match=r"^street image is missing: .*one-street.png does not exist$"):
        source.read(one)
    with pytest.raises(UnreadableImageError, match=r"^satellite image two-satellite.png is not a JPEG"):
        source.read(two)


def faulty(path: Path, kind: str) -> None:
    """Put something that is not an image file at a path."""
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "dangling":
        path.symlink_to(path.with_name("nowhere"))
    elif kind == "empty":
        path.touch()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("folder", "street image one-street.png is a directory, expected a file"),
        ("fifo", "street image one-street.png is not a regular file"),
        ("device", "street image one-street.png is not a regular file"),
        ("loop", "street image one-street.png cannot be opened .Too many levels of symbolic links"),
        ("dangling", "street image is missing: "),
        ("empty", r"street image one-street.png is empty .0 bytes"),
    ],
)
def test_a_fault_of_one_file_is_an_unreadable_image(pairs: PairFolder, kind: str, reason: str) -> None:
    pairs.add("one")
    source = ManifestSource(pairs.source())
    (record,) = source.records()
    faulty(pairs.path / "one-street.png", kind)
    with pytest.raises(UnreadableImageError, match=f"^{reason}"):
        source.read(record)


def test_a_row_that_names_no_place_in_a_store_is_an_unreadable_image(pairs: PairFolder) -> None:
    pairs.add("one")
    for reference in (
        "htp://x/a.png",
        "ftp://x/a.png",
        "s3://",
        "s3://bucket",
        "s3:///a.png",
        "file://host/a.png",
        "://x",
    ):
        pairs.rows[0]["street"] = reference
        source = ManifestSource(pairs.source())
        with pytest.raises(UnreadableImageError, match=r"^street image .*(cannot be opened|is no file|is missing)"):
            source.read(source.records()[0])


@pytest.mark.parametrize(
    ("reference", "reason"),
    [(".", "is a directory"), ("x" * 300, "cannot be opened"), ("one-street.png/below.png", "cannot be opened")],
)
def test_a_row_that_names_no_file_is_an_unreadable_image(pairs: PairFolder, reference: str, reason: str) -> None:
    pairs.add("one")
    pairs.rows[0]["satellite"] = reference
    source = ManifestSource(pairs.source())
    with pytest.raises(UnreadableImageError, match=reason):
        source.read(source.records()[0])


def test_a_file_without_permission_is_an_unreadable_image_and_a_directory_without_is_not(
    pairs: PairFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs.add("one")
    source = ManifestSource(pairs.source())
    (record,) = source.records()
    refused = {pairs.path / "one-street.png"}
    monkeypatch.setattr(os, "access", lambda path, mode: path not in refused)
    with pytest.raises(UnreadableImageError, match=r"street image one-street\.png may not be read by this user"):
        source.read(record)

    def refuse(uri: str) -> bytes:
        raise StorageError(f"{uri}: Permission denied")

    refused.add(pairs.path)
    monkeypatch.setattr(storage, "read_bytes", refuse)
    with pytest.raises(StorageError, match="Permission denied"):
        source.read(record)


def test_images_that_disappear_together_with_their_manifest_are_not_missing(pairs: PairFolder) -> None:
    pairs.add("one")
    source = ManifestSource(pairs.source())
    (record,) = source.records()
    pairs.path.rename(pairs.path.with_name("unmounted"))
    with pytest.raises(StorageError, match=r"pairs.csv has disappeared while its images were read: .* resumes"):
        source.read(record)


def test_a_damaged_object_is_an_unreadable_image(pairs: PairFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs.add("one")
    source = ManifestSource(pairs.source())
    (record,) = source.records()

    def damaged(uri: str) -> bytes:
        raise DamagedError(f"{uri} is changed each time on its way")

    monkeypatch.setattr(storage, "read_bytes", damaged)
    with pytest.raises(UnreadableImageError, match=r"satellite image one-satellite\.png is damaged"):
        source.read(record)


def test_a_transparent_tile_is_an_unreadable_image(pairs: PairFolder) -> None:
    pairs.add("one")
    source = ManifestSource(pairs.source())
    (record,) = source.records()
    tile = np.full((24, 24, 4), 120, np.uint8)
    tile[0, 0, 3] = 0  # outside of the circle that the polar image shows
    Image.fromarray(tile).save(pairs.path / "one-satellite.png")
    assert source.read(record).satellite.min() == 120
    tile[:, :12, 3] = 0
    Image.fromarray(tile).save(pairs.path / "one-satellite.png")
    with pytest.raises(UnreadableImageError, match=r"satellite image one-satellite.png has no imagery in 50% of it"):
        source.read(record)
    Image.fromarray(np.full((20, 44, 4), 0, np.uint8)).save(pairs.path / "one-street.png")
    tile[..., 3] = 1
    Image.fromarray(tile).save(pairs.path / "one-satellite.png")
    assert source.read(record).street.shape == (20, 44, 3)


def test_a_store_that_cannot_be_reached_is_not_an_unreadable_image(
    pairs: PairFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs.add("one")
    source = ManifestSource(pairs.source())
    (record,) = source.records()

    def unreachable(uri: str) -> bytes:
        raise StorageError(f"{uri}: cannot be reached")

    monkeypatch.setattr(storage, "read_bytes", unreachable)
    with pytest.raises(StorageError, match="cannot be reached"):
        source.read(record)

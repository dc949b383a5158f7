"""Verification of a data set."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from s2s_ray import storage
from s2s_ray.data.prepare import prepare
from s2s_ray.data.shard import RECORD_FIELDS, arrow_bytes
from s2s_ray.data.verify import verify
from s2s_ray.errors import DamagedError, DatasetError, UnreachableError
from s2s_ray.geo.images import encode

if TYPE_CHECKING:
    from tests.support.pair_folder import PairFolder


@pytest.fixture(scope="module")
def prepared(pair_folder: type[PairFolder], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with a quarantined pair and several shards."""
    place = tmp_path_factory.mktemp("verify")
    pairs = pair_folder(place / "pairs")
    for k in range(6):
        pairs.add(f"train{k}")
    pairs.add("val", "val")
    for k in range(4):
        pairs.add(f"test{k}", "test")
    (pairs.path / "test3-street.png").unlink()
    prepare(pairs.config(place / "set", shard_mb=0.02))
    return place / "set"


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """A copy of the data set, to damage."""
    shutil.copytree(prepared, tmp_path / "set")
    return tmp_path / "set"


def rewrite(folder: Path, name: str, change: Callable[[dict[str, list[Any]]], None]) -> None:
    """Change a shard's columns and update its size and checksum in dataset.json."""
    import pyarrow as pa

    table = pa.ipc.open_file((folder / name).read_bytes()).read_all()
    columns = table.to_pydict()
    change(columns)
    data = arrow_bytes(table.schema, columns)
    (folder / name).write_bytes(data)
    tree = json.loads((folder / "dataset.json").read_text())
    for info in tree["splits"].values():
        for file in (*info["shards"], info["records"]):
            if file["name"] == name:
                file |= {"bytes": len(data), "sha256": storage.sha256(data)}
    (folder / "dataset.json").write_text(json.dumps(tree))


@pytest.mark.parametrize("quick", [False, True])
def test_a_whole_data_set(folder: Path, quick: bool) -> None:
    report = verify(str(folder), quick=quick)
    assert report.ok
    lines = report.lines()
    assert any(line.startswith("train: 6 pairs in 2 shards") for line in lines)
    assert any(line.startswith("quarantined: test3 (test): street image is missing") for line in lines)
    assert lines[-1] == "ok"


def test_files_that_are_missing_damaged_or_cut_short_are_all_listed(folder: Path) -> None:
    (folder / "train-00000.arrow").unlink()
    data = bytearray((folder / "train-00001.arrow").read_bytes())
    data[-300] ^= 1
    (folder / "train-00001.arrow").write_bytes(data)
    (folder / "test-00000.arrow").write_bytes((folder / "test-00000.arrow").read_bytes()[:500])
    (folder / "val-records.arrow").unlink()
    report = verify(str(folder), quick=True)
    assert not report.ok
    text = "\n".join(report.faults)
    assert "train-00000.arrow is missing" in text
    assert "train-00001.arrow fails its checksum (right size, different bytes)" in text
    assert "test-00000.arrow fails its checksum (500 bytes" in text
    assert "test-00000.arrow is not an Arrow file" in text
    assert "val-records.arrow is missing" in text
    assert "val-records.arrow lists 0 pairs, 1 expected" in text
    assert text.count("listed in train, but in none of its shards") == 3
    assert report.lines()[-1] == f"{len(report.faults)} faults"


def test_images_that_cannot_be_decoded_are_listed_by_id(folder: Path) -> None:
    def spoil(columns: dict[str, list[Any]]) -> None:
        columns["polar"][0] = b"nothing"
        columns["street"][1] = encode(np.zeros((32, 41, 3), np.uint8), "png")

    rewrite(folder, "test-00000.arrow", spoil)
    assert verify(str(folder), quick=True).ok
    assert verify(str(folder)).faults == [
        "test0: polar image in test-00000.arrow is not a JPEG, PNG, WebP, TIFF, BMP, GIF or JPEG 2000 file",
        "test1: street image in test-00000.arrow is 41 x 32",
    ]


def test_pairs_that_are_missing_or_repeated_are_listed_by_id(folder: Path) -> None:
    def rename(columns: dict[str, list[Any]]) -> None:
        columns["id"][0] = "stranger"

    rewrite(folder, "test-00000.arrow", rename)
    faults = verify(str(folder)).faults
    assert "test0: listed in test, but in none of its shards" in faults
    assert "stranger: in a shard of test, but not listed there" in faults


def test_a_pair_in_two_splits_is_a_fault(folder: Path) -> None:
    for name in ("val-00000.arrow", "val-records.arrow"):
        rewrite(folder, name, lambda columns: columns.update(id=["train0"]))
    assert verify(str(folder)).faults == ["train0: in more than one split"]


def test_a_different_order_of_the_pairs_is_a_fault(folder: Path) -> None:
    def turn(columns: dict[str, list[Any]]) -> None:
        for values in columns.values():
            values.reverse()

    rewrite(folder, "train-records.arrow", turn)
    assert verify(str(folder)).faults == [
        "train: the shards hold the pairs in a different order from train-records.arrow"
    ]


def test_records_have_the_fields_of_the_schema(folder: Path) -> None:
    import pyarrow as pa

    table = pa.ipc.open_file((folder / "train-records.arrow").read_bytes()).read_all()
    assert table.schema.names == [field.name for field in RECORD_FIELDS]


def test_a_file_without_the_expected_columns_is_a_fault(folder: Path) -> None:
    import pyarrow as pa

    table = pa.table({"name": ["a"], "polar": ["text"]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    for name in ("val-records.arrow", "test-00000.arrow"):
        (folder / name).write_bytes(sink.getvalue().to_pybytes())
    faults = verify(str(folder)).faults
    others = "latitude, longitude, easting, northing, zone, heading"
    assert f"val-records.arrow has no usable column id, {others}" in faults
    assert f"test-00000.arrow has no usable column id, {others}, polar, street" in faults


def edit(*path: str | int, value: Any) -> Callable[[Path], None]:
    """Change a value in dataset.json."""

    def apply(folder: Path) -> None:
        tree = json.loads((folder / "dataset.json").read_text())
        inner = tree
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value(inner[path[-1]]) if callable(value) else value
        (folder / "dataset.json").write_text(json.dumps(tree))

    return apply


def flip(name: str, place: float) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[int(place * (len(data) - 1))] ^= 1
        (folder / name).write_bytes(data)

    return apply


def replaced(name: str, how: Callable[[Path], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).unlink()
        how(folder / name)

    return apply


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    **{
        f"bit at {place} of {name}": (flip(name, place), f"{name} fails its checksum .right size, different bytes.")
        for name in ("train-00001.arrow", "test-records.arrow")
        for place in (0, 0.1, 0.5, 0.9, 1)
    },
    **{
        f"{name} is {kind}": (replaced(name, how), f"{name} {message}")
        for name in ("train-00000.arrow", "val-records.arrow")
        for kind, how, message in (
            ("missing", lambda path: None, "is missing"),
            ("empty", Path.touch, "fails its checksum .0 bytes"),
            ("a folder", Path.mkdir, "cannot be read"),
            ("a link to itself", lambda path: path.symlink_to(path), "cannot be read"),
        )
    },
    "plan is missing": (lambda folder: (folder / "plan.json").unlink(), "plan.json is missing: `s2s prepare` does not"),
    "plan is damaged": (lambda folder: (folder / "plan.json").write_text("{"), "plan.json is not JSON"),
    "plan of another": (
        lambda folder: (folder / "plan.json").write_text(
            (folder / "plan.json").read_text().replace('"webp"', '"png"').replace('"digest": "', '"digest": "x')
        ),
        "prepare.encoding='webp', but plan.json has 'png'",
    ),
    "digest": (edit("digest", value="0" * 64), "dataset.json and plan.json have different digests"),
    "count": (edit("splits", "train", "count", value=7), "train-records.arrow lists 6 pairs, 7 expected"),
    "count of a shard": (edit("splits", "train", "shards", 0, "count", value=9), "holds 3 pairs, 9 expected"),
    "count of the records": (edit("splits", "test", "records", "count", value=9), "holds 3 pairs, 9 expected"),
    "bytes": (edit("splits", "test", "shards", 0, "bytes", value=9), "fails its checksum .* 9 expected"),
    "checksum": (edit("splits", "test", "records", "sha256", value="0" * 64), "test-records.arrow fails its checksum"),
    "name": (edit("splits", "test", "records", "name", value="x.arrow"), "x.arrow is missing"),
    "a shard less": (
        edit("splits", "train", "shards", value=lambda shards: shards[1:]),
        "listed in train, but in none",
    ),
    "a shard twice": (
        edit("splits", "train", "shards", value=lambda shards: [*shards, shards[0]]),
        "train-00000.arrow is listed more than once in dataset.json",
    ),
    "a split less": (edit("splits", value=lambda splits: {**splits, "val": splits["test"]}), "in more than one split"),
    "no split": (edit("splits", value={}), "lists 1 pairs with those in quarantine, but plan.json has 11"),
    "quarantine": (edit("quarantine", value=[]), "lists 10 pairs with those in quarantine, but plan.json has 11"),
    "height": (edit("geometry", "height", value=33), "model.height=33, but plan.json has 32"),
    "encoding": (edit("encoding", value="png"), "prepare.encoding='png', but plan.json has 'webp'"),
    "tiles": (edit("keep_tiles", value=True), "prepare.keep_tiles=True, but plan.json has False"),
    "source": (edit("source", "uri", value="elsewhere"), "dataset.json has source="),
    "panoramas": (edit("panoramas", value={"sphere": 4}), "counts 4 panoramas for 10 pairs"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_kind_of_damage_is_found(folder: Path, damage: str) -> None:
    apply, message = DAMAGES[damage]
    apply(folder)
    faults = verify(str(folder), quick=True).faults
    assert any(re.search(message, fault) for fault in faults), faults


def test_records_that_differ_from_the_shards_are_listed_by_id(folder: Path) -> None:
    def turn(columns: dict[str, list[Any]]) -> None:
        columns["heading"][1] = 90.0
        columns["zone"][1] = 32632

    rewrite(folder, "test-records.arrow", turn)
    assert verify(str(folder)).faults == ["test1: heading, zone in test-records.arrow differs from the shard"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema_version": 1}'])
def test_a_damaged_description_is_a_storage_error(folder: Path, content: str) -> None:
    (folder / "dataset.json").write_text(content)
    with pytest.raises(DamagedError, match=r"dataset\.json"):
        verify(str(folder))


def test_a_store_that_is_away_is_no_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = storage.read_bytes

    def away(uri: str) -> bytes:
        if uri.endswith(".arrow"):
            raise UnreachableError(f"{uri}: the store does not respond")
        return read(uri)

    monkeypatch.setattr(storage, "read_bytes", away)
    with pytest.raises(UnreachableError, match="does not respond"):
        verify(str(folder))


def test_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no complete data set"):
        verify(str(tmp_path))

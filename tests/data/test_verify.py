"""Verification of a data set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from s2s_ray import storage
from s2s_ray.data.prepare import prepare
from s2s_ray.data.shard import RECORD_FIELDS, arrow_bytes
from s2s_ray.data.verify import verify
from s2s_ray.errors import DatasetError
from s2s_ray.geo.images import encode

if TYPE_CHECKING:
    from tests.support.pair_folder import PairFolder


@pytest.fixture
def folder(pairs: PairFolder, tmp_path: Path) -> Path:
    """A data set with a quarantined pair and several shards."""
    for k in range(6):
        pairs.add(f"train{k}")
    pairs.add("val", "val")
    for k in range(4):
        pairs.add(f"test{k}", "test")
    (pairs.path / "test3-street.png").unlink()
    prepare(pairs.config(tmp_path / "set", shard_mb=0.02))
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
    assert "val-records.arrow has no usable column id" in faults
    assert "test-00000.arrow has no usable column id, polar, street" in faults


def test_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no complete data set"):
        verify(str(tmp_path))

"""`dataset.json`: versions, damage, and the exact keys that earlier versions of the library wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from s2s_ray import storage
from s2s_ray.data.description import DatasetInfo, read_dataset_info
from s2s_ray.errors import DamagedError, DatasetError
from s2s_ray.geo.views import CONVENTION, ViewGeometry

FILE = {"name": "train-00000.arrow", "count": 2, "bytes": 10, "sha256": "ab"}
WRITTEN: dict[str, Any] = {
    "schema_version": 1,
    "created_by": "s2s-ray 0.1.0",
    "digest": "d1",
    "geometry": {
        "height": 32,
        "width": 40,
        "panorama_rows": [0.25, 0.75],
        "polar_size": [224, 1232],
        "polar_contrast": "stretch",
        "resize": "cubic",
        "convention": CONVENTION,
    },
    "encoding": "webp",
    "keep_tiles": False,
    "source": {"kind": "manifest", "uri": "pairs.csv"},
    "validation": "named by the source",
    "splits": {"train": {"count": 2, "records": FILE, "shards": [FILE]}},
    "quarantine": [{"id": "a", "split": "train", "reason": "satellite image is missing"}],
    "panoramas": {"sphere": 2},
}


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path)


def write(uri: str, **changes: Any) -> None:
    storage.write_json(storage.join(uri, "dataset.json"), WRITTEN | changes)


def test_a_file_is_written_as_earlier_versions_wrote_it(uri: str) -> None:
    write(uri)
    before = (Path(uri) / "dataset.json").read_bytes()
    info = read_dataset_info(uri)
    assert info.geometry == ViewGeometry(32, 40, (0.25, 0.75), (224, 1232), "stretch", "cubic")
    info.write(storage.join(uri, "dataset.json"))
    assert (Path(uri) / "dataset.json").read_bytes() == before
    assert info.geometry.tree() == WRITTEN["geometry"]


def test_fields_that_the_first_data_sets_lack_have_defaults(uri: str) -> None:
    first = {key: WRITTEN["geometry"][key] for key in ("height", "width", "panorama_rows", "convention")}
    write(uri, geometry=first)
    tree = json.loads((Path(uri) / "dataset.json").read_text())
    del tree["panoramas"]
    storage.write_json(storage.join(uri, "dataset.json"), tree)
    info = read_dataset_info(uri)
    assert info.geometry == ViewGeometry(32, 40, (0.25, 0.75))
    assert info.panoramas == {}


@pytest.mark.parametrize(("kind", "heading"), [("cvusa", 0.0), ("cvact", 0.0), ("manifest", None), (["cvusa"], None)])
def test_the_first_data_sets_of_aligned_panoramas_have_a_default_heading(uri: str, kind: Any, heading: object) -> None:
    write(uri, source={"kind": kind})
    assert read_dataset_info(uri).geometry.default_heading == heading
    write(uri, source={"kind": kind}, geometry=WRITTEN["geometry"] | {"default_heading": 90.0})
    assert read_dataset_info(uri).geometry.default_heading == 90.0


def test_a_newer_version_is_refused(uri: str) -> None:
    write(uri, schema_version=2)
    with pytest.raises(DatasetError, match=r"dataset.json has schema_version 2, this program reads 1 and earlier"):
        read_dataset_info(uri)


def test_keys_of_a_newer_release_are_ignored_and_logged(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    write(uri, colour="green")
    assert read_dataset_info(uri).digest == "d1"
    assert "ignored keys that this version does not know: colour" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 0}, "dataset.json: schema_version=0"),
        ({"schema_version": None}, "dataset.json: schema_version=None"),
        ({"digest": None}, "digest: Input should be a valid string"),
        ({"geometry": {"height": 32}}, "geometry.width: Field required"),
        ({"geometry": WRITTEN["geometry"] | {"resize": "nearest"}}, "geometry.resize: Input should be"),
    ],
)
def test_a_damaged_file_is_named(uri: str, changes: dict[str, Any], message: str) -> None:
    write(uri, **changes)
    with pytest.raises(DamagedError, match=message):
        read_dataset_info(uri)


def test_a_missing_file_is_no_data_set(uri: str) -> None:
    with pytest.raises(DatasetError, match=r"holds no complete data set \(dataset.json is missing\)"):
        read_dataset_info(uri)


def test_a_description_can_be_made_without_its_format() -> None:
    assert DatasetInfo.parse(WRITTEN, "x").tree() == WRITTEN

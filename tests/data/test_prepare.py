"""Preparation of shards and `dataset.json` in this process; the integration tests cover Ray."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest

from s2s_ray import storage
from s2s_ray.data.description import (
    DatasetInfo,
    read_dataset_info,
)
from s2s_ray.data.prepare import prepare
from s2s_ray.data.schema import Pair, Record
from s2s_ray.data.shard import prepare_pair
from s2s_ray.data.sources.manifest import ManifestSource
from s2s_ray.errors import (
    DamagedError,
    DatasetError,
    DiskFullError,
    RefusedError,
    StorageError,
    UnreachableError,
    UnreadableImageError,
)
from s2s_ray.geo.images import (
    decode,
)
from s2s_ray.geo.views import ViewGeometry
from s2s_ray.runtime.progress import Advance
from s2s_ray.storage import conditional

if TYPE_CHECKING:
    from tests.support.pair_folder import PairFolder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def fill(pairs: PairFolder, train: int = 12, test: int = 5) -> None:
    for k in range(train):
        pairs.add(f"train{k}", "train", latitude=47.0 + k / 1000, longitude=11.0, heading=90.0 if k == 1 else "")
    for k in range(test):
        pairs.add(f"test{k}", "test")


def rows(folder: Path, manifest: DatasetInfo, split: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for shard in manifest.split(split).shards:
        found += pa.ipc.open_file((folder / shard.name).read_bytes()).read_all().to_pylist()
    return found


def test_a_panorama_is_turned_north_and_cropped() -> None:
    street = np.zeros((12, 40, 3), np.uint8)
    street[3:9] = 100
    street[3:9, 10] = 200  # a quarter of the way from the left edge
    pair = Pair(np.zeros((8, 8, 3), np.uint8), street)
    shape = ViewGeometry(height=6, width=40, panorama_rows=(0.25, 0.75))
    for heading, column in ((0.0, 10), (90.0, 20), (180.0, 30), (-90.0, 0), (450.0, 20)):
        _, found = prepare_pair(pair, Record("a", "train", heading=heading), shape)
        assert found.shape == (6, 40, 3)
        assert found.min() == 100
        assert set(np.argwhere(found == 200)[:, 1].tolist()) == {column}


def test_a_tile_is_unrolled_around_its_centre() -> None:
    tile = np.zeros((40, 40, 3), np.uint8)
    tile[:18] = 200  # the north of the tile
    polar, _ = prepare_pair(
        Pair(tile, np.zeros((4, 8, 3), np.uint8)),
        Record("a", "train"),
        ViewGeometry(height=16, width=32, panorama_rows=(0.0, 1.0)),
    )
    assert polar.shape == (16, 32, 3)
    assert polar[4:11, 14:19].min() == 200  # the middle column looks north
    assert polar[:, :4].max() == 0
    assert polar[:, -4:].max() == 0
    assert polar[-1].max() == 0  # the centre itself


@pytest.mark.parametrize(
    ("tile", "street", "reason"),
    [
        ((8, 9), (8, 16), r"satellite tile is 9 x 8 pixels \(width x height\), expected a square"),
        ((1, 1), (8, 16), "satellite tile is 1 x 1"),
        ((8, 8), (1, 16), "panorama"),
    ],
)
def test_pairs_that_cannot_be_used(tile: tuple[int, int], street: tuple[int, int], reason: str) -> None:
    pair = Pair(np.zeros((*tile, 3), np.uint8), np.zeros((*street, 3), np.uint8))
    with pytest.raises(UnreadableImageError, match=reason):
        prepare_pair(pair, Record("a", "train"), ViewGeometry(height=8, width=16, panorama_rows=(0.3, 0.4)))


def test_shards_hold_the_prepared_pairs(pairs: PairFolder, tmp_path: Path) -> None:
    fill(pairs)
    config = pairs.config(tmp_path / "out", keep_tiles=True, shard_mb=0.03)
    manifest = prepare(config)
    assert manifest == read_dataset_info(str(tmp_path / "out"))
    assert {split: info.count for split, info in manifest.splits.items()} == {"train": 11, "val": 1, "test": 5}
    assert len(manifest.split("train").shards) > 1
    source = ManifestSource(pairs.source())
    records = {record.id: record for record in source.records()}
    seen = []
    for split in ("train", "val", "test"):
        for row in rows(tmp_path / "out", manifest, split):
            record = records[str(row["id"])]
            pair = source.read(record)
            polar, street = prepare_pair(pair, record, manifest.geometry)
            assert np.array_equal(decode(row["polar"]), polar)  # type: ignore[arg-type]
            assert np.array_equal(decode(row["street"]), street)  # type: ignore[arg-type]
            assert np.array_equal(decode(row["satellite"]), pair.satellite)  # type: ignore[arg-type]
            for name in ("latitude", "longitude", "easting", "northing", "zone", "heading"):
                assert row[name] == getattr(record, name)
            seen.append(record.id)
    assert sorted(seen) == sorted(records)


def test_tiles_are_left_out_unless_they_are_requested(pairs: PairFolder, tmp_path: Path) -> None:
    fill(pairs)
    manifest = prepare(pairs.config(tmp_path / "out"))
    assert "satellite" not in rows(tmp_path / "out", manifest, "test")[0]


def test_shards_have_about_the_configured_size(pairs: PairFolder, tmp_path: Path) -> None:
    fill(pairs, train=40)
    manifest = prepare(pairs.config(tmp_path / "out", shard_mb=0.05))
    sizes = [shard.bytes for shard in manifest.split("train").shards]
    assert len(sizes) > 2
    assert min(sizes) > 30_000
    assert max(sizes) < 60_000
    counts = [shard.count for shard in manifest.split("train").shards]
    assert max(counts) - min(counts) <= 1


def test_the_same_source_gives_the_same_bytes(pairs: PairFolder, tmp_path: Path) -> None:
    fill(pairs)
    prepare(pairs.config(tmp_path / "one", shard_mb=0.03))
    prepare(pairs.config(tmp_path / "two", shard_mb=0.03))
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_training_pairs_are_mixed_and_test_pairs_keep_their_order(
    pairs: PairFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s2s_ray.data.plan._RUN", 4)
    fill(pairs)
    manifest = prepare(pairs.config(tmp_path / "out"))
    train = [int(str(row["id"]).removeprefix("train")) for row in rows(tmp_path / "out", manifest, "train")]
    assert train != sorted(train)
    held_out = {int(str(row["id"]).removeprefix("train")) for row in rows(tmp_path / "out", manifest, "val")}
    source = [number for number in range(len(train) + len(held_out)) if number not in held_out]
    runs = [source[first : first + 4] for first in range(0, len(source), 4)]
    runs.sort(key=lambda run: train.index(run[0]))
    assert [number for run in runs for number in run] == train
    assert [row["id"] for row in rows(tmp_path / "out", manifest, "test")] == [f"test{k}" for k in range(5)]


def stopping_after(shards: int) -> object:
    """A progress that is interrupted when this many shards are done."""

    @contextmanager
    def progress(total: int, label: str, unit: str) -> Iterator[Advance]:
        left = [shards]

        def advance(count: int) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt

        yield advance

    return progress


def test_an_interrupted_run_is_resumed(pairs: PairFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    fill(pairs)
    config = pairs.config(tmp_path / "out", shard_mb=0.02)
    with pytest.raises(KeyboardInterrupt):
        prepare(config, progress=stopping_after(2))  # type: ignore[arg-type]
    assert "the same command resumes" in caplog.text
    with pytest.raises(DatasetError, match=r"holds no complete data set \(dataset.json is missing\)"):
        read_dataset_info(str(tmp_path / "out"))
    done = {path.name: path.stat().st_ino for path in (tmp_path / "out").glob("*.arrow")}
    assert len(done) == 2
    prepare(config)
    assert done.items() <= {path.name: path.stat().st_ino for path in (tmp_path / "out").iterdir()}.items()
    prepare(pairs.config(tmp_path / "whole", shard_mb=0.02))
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_shard_without_its_side_car_or_of_another_size_is_written_again(pairs: PairFolder, tmp_path: Path) -> None:
    fill(pairs)
    config = pairs.config(tmp_path / "out", shard_mb=0.02)
    prepare(config)
    whole = content(tmp_path / "out")
    (tmp_path / "out" / "dataset.json").unlink()
    (tmp_path / "out" / "train-00000.json").unlink()
    (tmp_path / "out" / "train-00000.arrow").write_bytes(b"cut sh")
    (tmp_path / "out" / "train-00001.arrow").write_bytes(b"cut sh")
    (tmp_path / "out" / "test-00000.arrow").unlink()
    prepare(config)
    assert content(tmp_path / "out") == whole


def test_a_finished_data_set_is_left_alone(pairs: PairFolder, tmp_path: Path) -> None:
    fill(pairs)
    config = pairs.config(tmp_path / "out")
    manifest = prepare(config)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    for image in pairs.path.glob("*.png"):
        image.unlink()
    assert prepare(config) == manifest
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize("cut", [True, False])
def test_files_that_a_complete_data_set_has_lost_are_written_again(
    pairs: PairFolder, tmp_path: Path, cut: bool, caplog: pytest.LogCaptureFixture
) -> None:
    fill(pairs)
    (pairs.path / "train3-satellite.png").unlink()
    config = pairs.config(tmp_path / "out", shard_mb=0.02)
    manifest = prepare(config)
    whole = content(tmp_path / "out")
    for name in ("train-00001.arrow", "test-00000.arrow", "train-records.arrow"):
        if cut:
            os.truncate(tmp_path / "out" / name, 100)
        else:
            (tmp_path / "out" / name).unlink()
    assert prepare(config) == manifest
    assert content(tmp_path / "out") == whole
    assert caplog.text.count("is missing or cut short: writing it again") == 3


@pytest.mark.parametrize("gone", [True, False])
def test_a_lost_shard_whose_images_have_changed_is_not_written(pairs: PairFolder, tmp_path: Path, gone: bool) -> None:
    """The files that were lost beside it are written again, as far as they come before it."""
    fill(pairs)
    (pairs.path / "test1-satellite.png").unlink()
    config = pairs.config(tmp_path / "out", shard_mb=0.02)
    prepare(config)
    (tmp_path / "out" / "test-00000.arrow").unlink()
    without = content(tmp_path / "out")
    (tmp_path / "out" / "train-00000.arrow").unlink()
    for column in ("satellite", "street"):
        image = pairs.path / f"test0-{column}.png"
        image.unlink() if gone else shutil.copy(pairs.path / f"train0-{column}.png", image)
    reason = (
        r"1 of its pairs cannot be read any more \(test0: satellite .*\): restore the images"
        if gone
        else r"its images are not those from which s2s-ray .* prepared it, or this version encodes them differently"
    )
    with pytest.raises(DatasetError, match=rf"test-00000.arrow cannot be written again, because {reason}") as caught:
        prepare(config)
    assert "test1" not in str(caught.value)
    assert content(tmp_path / "out") == without


@pytest.mark.parametrize("name", ["train-00000.arrow", "train-00000.json", "train-records.arrow", "dataset.json"])
@pytest.mark.parametrize("times", [1, 2])
def test_every_file_is_read_back(
    pairs: PairFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, times: int
) -> None:
    fill(pairs)
    write = storage.write_bytes
    damaged: list[str] = []

    def damage(uri: str, data: bytes) -> None:
        hit = storage.name(uri) == name and len(damaged) < times
        damaged.extend([uri] if hit else [])
        write(uri, data[:-1] + b"!" if hit else data)

    monkeypatch.setattr(storage, "write_bytes", damage)
    if times > 1:
        with pytest.raises(DamagedError, match=rf"{name} was damaged 2 times while it was written"):
            prepare(pairs.config(tmp_path / "out"))
        return
    prepare(pairs.config(tmp_path / "out"))
    assert len(damaged) == times
    prepare(pairs.config(tmp_path / "whole"))
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize("fault", [UnreachableError, RefusedError, StorageError])
def test_a_store_that_is_away_stops_the_preparation_and_nothing_is_lost(
    pairs: PairFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: type[StorageError]
) -> None:
    fill(pairs)
    read, left = storage.read_bytes, [30]

    def away(uri: str) -> bytes:
        if uri.endswith(".png"):
            left[0] -= 1
            if left[0] < 0:
                raise fault(f"{uri}: the store is away")
        return read(uri)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "read_bytes", away)
        with pytest.raises(fault, match="the store is away"):
            prepare(pairs.config(tmp_path / "out", shard_mb=0.02))
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert prepare(pairs.config(tmp_path / "out", shard_mb=0.02)).quarantine == ()
    prepare(pairs.config(tmp_path / "whole", shard_mb=0.02))
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize("moment", range(8))
def test_a_full_disk_stops_the_preparation_which_resumes(
    pairs: PairFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    fill(pairs)
    write, left = storage.write_bytes, [moment]

    def full(uri: str, data: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise DiskFullError(f"{uri}: No space left on device")
        write(uri, data)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", full)
        with pytest.raises(DiskFullError):
            prepare(pairs.config(tmp_path / "out", shard_mb=0.02))
    prepare(pairs.config(tmp_path / "out", shard_mb=0.02))
    prepare(pairs.config(tmp_path / "whole", shard_mb=0.02))
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_rows_that_name_no_image_are_quarantined(pairs: PairFolder, tmp_path: Path) -> None:
    fill(pairs)
    (pairs.path / "folder").mkdir()
    for row, reference in zip(pairs.rows[2:6], ("folder", ".", "x" * 300, "pairs.csv/below.png"), strict=True):
        row["street"] = reference
    manifest = prepare(pairs.config(tmp_path / "out"))
    assert sorted(entry.id for entry in manifest.quarantine) == ["train2", "train3", "train4", "train5"]
    assert "street image folder is a directory, expected a file" in {entry.reason for entry in manifest.quarantine}


def test_another_data_set_is_not_overwritten(pairs: PairFolder, tmp_path: Path) -> None:
    fill(pairs)
    prepare(pairs.config(tmp_path / "out"))
    before = content(tmp_path / "out")
    with pytest.raises(DatasetError, match=r"out already holds another .*prepare.encoding was 'webp', now 'png'\)"):
        prepare(pairs.config(tmp_path / "out", encoding="png"))
    pairs.add("another")
    with pytest.raises(DatasetError, match="the source had 17 pairs, now 18"):
        prepare(pairs.config(tmp_path / "out"))
    pairs.rows[-1]["id"] = pairs.rows.pop(0)["id"]
    with pytest.raises(DatasetError, match="the source's records changed"):
        prepare(pairs.config(tmp_path / "out"))
    assert content(tmp_path / "out") == before


def test_a_plan_without_a_shard_is_not_replaced(pairs: PairFolder, tmp_path: Path) -> None:
    """Another process may be about to write the first one."""
    fill(pairs)
    plan = tmp_path / "out" / "plan.json"
    other = {"digest": "x", "settings": {}, "records": 0, "pairs_per_shard": 1}
    storage.write_json(str(plan), other)
    with pytest.raises(DatasetError, match=r"already holds the plan of another data set .*or delete plan\.json there"):
        prepare(pairs.config(tmp_path / "out"))
    assert storage.read_json(str(plan)) == other
    assert [path.name for path in plan.parent.iterdir()] == ["plan.json"]
    plan.unlink()
    prepare(pairs.config(tmp_path / "out"))


@pytest.mark.parametrize("encoding", ["png", "webp"])
def test_two_preparations_at_the_same_moment(
    pairs: PairFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    """The second begins, and finishes, when the first is about to claim the place."""
    fill(pairs)
    first, second = (
        pairs.config(tmp_path / "out", shard_mb=0.03),
        pairs.config(tmp_path / "out", shard_mb=0.03, encoding=encoding),
    )
    write_once, faster = conditional.write_once, [second]

    def claim(uri: str, content: bytes) -> bytes:
        if faster:
            prepare(faster.pop())
        return write_once(uri, content)

    monkeypatch.setattr(conditional, "write_once", claim)
    if encoding == first.prepare.encoding:
        assert prepare(first) == read_dataset_info(str(tmp_path / "out"))
    else:
        with pytest.raises(DatasetError, match=r"already holds another data set \(prepare\.encoding was 'png', now"):
            prepare(first)
    before = content(tmp_path / "out")
    prepare(second)
    assert content(tmp_path / "out") == before
    prepare(pairs.config(tmp_path / "alone", shard_mb=0.03, encoding=encoding))
    assert content(tmp_path / "alone") == before


def test_unusable_pairs_are_quarantined(pairs: PairFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(pairs)
    (pairs.path / "train3-satellite.png").unlink()
    (pairs.path / "test1-street.png").write_bytes(b"not an image")
    os.truncate(pairs.path / "test2-street.png", 300)
    manifest = prepare(pairs.config(tmp_path / "out"))
    found = {entry.id: (entry.split, entry.reason) for entry in manifest.quarantine}
    assert sorted(found) == ["test1", "test2", "train3"]
    assert found["train3"][0] == "train"
    assert "satellite image is missing" in found["train3"][1]
    assert found["test1"] == (
        "test",
        "street image test1-street.png is not a JPEG, PNG, WebP, TIFF, BMP, GIF or JPEG 2000 file",
    )
    assert "damaged or cut short" in found["test2"][1]
    assert {split: info.count for split, info in manifest.splits.items()} == {"train": 10, "val": 1, "test": 3}
    assert [row["id"] for row in rows(tmp_path / "out", manifest, "test")] == ["test0", "test3", "test4"]
    assert "quarantined: train3 (train): satellite image is missing" in caplog.text


def test_a_shard_of_nothing_but_quarantine_is_not_listed(pairs: PairFolder, tmp_path: Path) -> None:
    fill(pairs)
    (pairs.path / "test0-street.png").unlink()
    config = pairs.config(tmp_path / "out", shard_mb=0.0001)
    manifest = prepare(config)
    assert [shard.name for shard in manifest.split("test").shards] == [f"test-{k:05d}.arrow" for k in (1, 2, 3, 4)]
    (tmp_path / "out" / "dataset.json").unlink()
    assert prepare(config) == manifest


@pytest.mark.parametrize(
    ("train", "test", "spoilt", "message"),
    [
        (5, 0, "", "^test split is empty: the source has no pair for it"),
        (0, 5, "", "^train split has fewer than 2 pairs"),
        (2, 5, "", "^train split has fewer than 2 pairs"),
        (
            6,
            2,
            "test",
            r"^test split has too few usable pairs: 0, at least 1 needed \(test0: satellite image is missing",
        ),
        (6, 2, "train", r"^train split has too few usable pairs: 0"),
        (6, 2, "t", r"^none of the 8 pairs could be read; first errors: .*missing"),
    ],
)
def test_a_split_without_pairs_is_named(
    pairs: PairFolder, tmp_path: Path, train: int, test: int, spoilt: str, message: str
) -> None:
    fill(pairs, train, test)
    if spoilt:
        for image in pairs.path.glob(f"{spoilt}*-satellite.png"):
            image.unlink()
    with pytest.raises(DatasetError, match=message):
        prepare(pairs.config(tmp_path / "out"))
    assert not storage.exists(str(tmp_path / "out" / "dataset.json"))


def test_the_same_images_may_be_in_every_split_under_other_ids(pairs: PairFolder, tmp_path: Path) -> None:
    for k in range(3):
        pairs.add(f"train{k}", "train")
    for split in ("val", "test"):
        pairs.rows += [row | {"id": f"{split}{k}", "split": split} for k, row in enumerate(pairs.rows[:3])]
    manifest = prepare(pairs.config(tmp_path / "out"))
    assert {split: info.count for split, info in manifest.splits.items()} == {"train": 3, "val": 3, "test": 3}
    assert manifest.validation == "named by the source"


@pytest.mark.parametrize("content", ["{", "[]", '{"digest": 1}'])
def test_a_shard_with_a_damaged_side_car_is_written_again(pairs: PairFolder, tmp_path: Path, content: str) -> None:
    fill(pairs)
    config = pairs.config(tmp_path / "out", shard_mb=0.03)
    prepare(config)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out" / "dataset.json").unlink()
    (tmp_path / "out" / "train-00000.json").write_text(content)
    prepare(config)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == whole


def test_a_damaged_plan_is_named(pairs: PairFolder, tmp_path: Path) -> None:
    fill(pairs)
    config = pairs.config(tmp_path / "out")
    prepare(config)
    (tmp_path / "out" / "plan.json").write_text('{"digest": 1}')
    with pytest.raises(
        DamagedError,
        match=r"plan.json is damaged: it is not a plan of a data set .*digest: Input should be a valid string",
    ):
        prepare(config)


def test_a_plan_keeps_its_keys(pairs: PairFolder, tmp_path: Path) -> None:
    """An earlier version resumes what this one began."""
    fill(pairs)
    prepare(pairs.config(tmp_path / "out"))
    plan = storage.read_json(str(tmp_path / "out" / "plan.json"))
    assert list(plan) == ["digest", "settings", "records", "pairs_per_shard", "metres"]
    side_car = storage.read_json(str(tmp_path / "out" / "train-00000.json"))
    assert list(side_car) == ["digest", "file", "quarantine", "panoramas"]


def test_a_data_set_begun_under_the_rule_of_zones_keeps_its_hold_out(pairs: PairFolder, tmp_path: Path) -> None:
    """A plan without the key `metres`, from an earlier version, for pairs on both sides of a border of zones."""
    for k in range(40):
        pairs.add(f"train{k}", "train", latitude=47.0, longitude=12.0 + (k - 20) / 1000)
    config = pairs.config(tmp_path / "data", splits=("train", "val"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("s2s_ray.data.prepare.metres_rule", lambda uri: "utm")
        earlier = prepare(config)
    path = tmp_path / "data" / "plan.json"
    tree = storage.read_json(str(path))
    assert tree.pop("metres") == "utm"
    storage.write_json(str(path), tree)
    (tmp_path / "data" / "dataset.json").unlink()
    assert prepare(config) == earlier
    assert prepare(pairs.config(tmp_path / "new", splits=("train", "val"))).digest != earlier.digest

"""Pictures that show a part of the horizon: columns of a manifest, masks in shards, and data sets of before."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from s2s_ray.config import AugmentationConfig, Config, ManifestSourceConfig
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.prepare import prepare
from s2s_ray.data.schema import Pair, Record
from s2s_ray.data.shard import prepare_views
from s2s_ray.data.sources.manifest import ManifestSource
from s2s_ray.data.verify import verify
from s2s_ray.errors import ManifestError
from s2s_ray.geo.metadata import PhotoMetadata
from s2s_ray.geo.query import Query
from s2s_ray.geo.views import ViewGeometry

HEADER = "id,satellite,street,split"
SHAPE = ViewGeometry(32, 80)


def picture(path: Path, height: int, width: int, *, seed: int = 0, bearing: float | None = None) -> Path:
    """Write a random picture; with the bearing and a focal length in its metadata if one is given."""
    pixels = np.random.default_rng(seed).integers(1, 256, (height, width, 3), dtype=np.uint8)
    exif = Image.Exif()
    if bearing is not None:
        exif.get_ifd(0x8825).update({16: "T", 17: IFDRational(round(bearing * 100), 100)})
        exif.get_ifd(0x8769)[0xA405] = 18  # mm in 35 mm terms: 90 degrees across
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def source(folder: Path, columns: str, *rows: str) -> ManifestSourceConfig:
    (folder / "pairs.csv").write_text("\n".join([f"{HEADER},{columns}", *rows]) + "\n")
    return ManifestSourceConfig(uri=str(folder / "pairs.csv"))


def configured(folder: Path, columns: str, *rows: str) -> Config:
    tree = {
        "model": {"height": 32, "width": 80},
        "source": source(folder, columns, *rows).model_dump(),
        "data": {"uri": str(folder / "set")},
        "prepare": {"parallel": False, "keep_tiles": True},
    }
    return Config.from_tree(tree)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Panoramas p, a photograph of 90 degrees q, the same with metadata r, and a tile s."""
    picture(tmp_path / "s.png", 40, 40)
    picture(tmp_path / "p.png", 40, 100, seed=1)
    picture(tmp_path / "q.png", 40, 60, seed=2)
    picture(tmp_path / "r.jpg", 40, 60, seed=2, bearing=120.0)
    return tmp_path


def rest() -> list[str]:
    """Rows that make a data set complete; they need the columns' number of commas."""
    return [f"{id},s.png,p.png,{part}" for id, part in (("x", "train"), ("y", "train"), ("z", "val"), ("w", "test"))]


class TestColumns:
    def records(self, folder: Path, columns: str, *values: str, split: str = "train") -> list[Record]:
        rows = [f"{k},s.png,q.png,{split},{value}" for k, value in enumerate(values)]
        return list(ManifestSource(source(folder, columns, *rows)).records())

    def test_a_row_says_what_its_picture_shows(self, folder: Path) -> None:
        columns = "heading,fov,projection,pitch,roll,place"
        found = self.records(
            folder, columns, ",,,,,", "450,90,Rectilinear,-3,1.5,corner", "auto,auto,auto,,,NaN", ",,cylindrical,,, a "
        )
        assert found == [
            Record("0", "train"),
            Record("1", "train", None, None, None, None, None, 450.0, 90.0, "rectilinear", -3.0, 1.5, "corner"),
            Record("2", "train", None, None, None, None, None, "auto", "auto", "auto"),
            Record("3", "train", None, None, None, None, None, 0.0, "auto", "cylindrical", place="a"),
        ]
        assert [record.is_panorama for record in found] == [True, False, False, False]
        assert [record.reads_metadata for record in found] == [False, False, True, True]

    def test_an_unknown_heading_is_for_the_test_split(self, folder: Path) -> None:
        assert self.records(folder, "heading", "unknown", split="test")[0].heading == "unknown"
        for split in ("train", "val"):
            with pytest.raises(
                ManifestError, match=f"row 1: heading is unknown, but a pair of the {split} split needs"
            ):
                self.records(folder, "heading", "unknown", split=split)

    @pytest.mark.parametrize(
        ("column", "value"),
        [
            ("heading", "north"),
            ("heading", "inf"),
            ("fov", "0"),
            ("fov", "wide"),
            ("projection", "fisheye"),
            ("pitch", "91"),
            ("roll", "auto"),
        ],
    )
    def test_a_value_that_cannot_be_is_named(self, folder: Path, column: str, value: str) -> None:
        with pytest.raises(ManifestError, match=rf"pairs.csv, row 2: {column}\b.*{value}"):
            self.records(folder, column, "", value)

    def test_a_plane_shows_less_than_180_degrees(self, folder: Path) -> None:
        with pytest.raises(ManifestError, match=r"row 1: fov=200 with projection=rectilinear"):
            self.records(folder, "fov,projection", "200,rectilinear")


class TestDataSet:
    def test_masks_say_what_is_seen(self, folder: Path) -> None:
        rows = [f"{row},,," for row in rest()]
        rows += [
            "a,s.png,q.png,train,90,80,rectilinear",
            "b,s.png,q.png,train,-30,100,",
            "c,s.png,r.jpg,test,auto,,auto",
        ]
        config = configured(folder, "heading,fov,projection", *rows)
        info = prepare(config)
        assert info.masked
        assert info.panoramas == {"cropped": 4, "part": 3}
        assert verify(config.data.uri).lines()[-1] == "ok"
        pixels = np.asarray(Image.open(folder / "q.png"))
        photo = np.asarray(Image.open(folder / "r.jpg"))
        expected = {
            "a": SHAPE.of_query(pixels, SHAPE.settle(Query(90, 80, "rectilinear"), pixels)),
            "b": SHAPE.of_query(pixels, SHAPE.settle(Query(-30, 100, "equirectangular"), pixels)),
            "c": SHAPE.of_query(photo, SHAPE.settle(Query(120, 90, "rectilinear"), photo)),
        }
        for split in ("train", "test"):
            dataset = PairDataset.open(config.data, split, flip=0.5)  # type: ignore[arg-type]
            for index, id in enumerate(dataset.ids):
                sample = dataset[index]
                if id not in expected:
                    assert sample.seen is None
                    continue
                view = expected[id]
                assert view.seen is not None
                assert 0.02 < view.seen.float().mean() < 0.4
                assert sample.seen is not None
                assert torch.equal(sample.seen, view.seen)
                assert torch.equal(sample.street, view.pixels)
                assert not sample.street[:, ~sample.seen].any()

    def test_a_mask_is_mirrored_and_turned_with_its_panorama(self, folder: Path) -> None:
        rows = [f"{row}," for row in rest()] + ["a,s.png,q.png,train,100", "b,s.png,q.png,train,60"]
        config = configured(folder, "fov", *rows)
        prepare(config)
        dataset = PairDataset.open(config.data, "train", flip=0.5, augmentation=AugmentationConfig(rotate=1.0))
        for epoch in range(6):
            batch = dataset.collate([dataset[epoch, index] for index in range(len(dataset))])
            assert batch.seen is not None
            assert batch.seen.shape == (len(dataset), 32, 80)
            for k, id in enumerate(dataset.ids):
                if id in "ab":
                    assert torch.equal(batch.street[k].amax(0) > 0, batch.seen[k])
                else:
                    assert batch.seen[k].all()
        plain = dataset.collate([dataset[dataset.ids.index(id)] for id in "xy"])
        assert plain.seen is None
        assert dataset.collate([dataset[index] for index in range(len(dataset))]).to("cpu").seen is not None

    def test_places_and_unknown_headings(self, folder: Path) -> None:
        rows = [f"{row},," for row in rest()] + ["a,s.png,p.png,test,unknown,square", "b,s.png,p.png,test,45,square"]
        config = configured(folder, "heading,place", *rows)
        info = prepare(config)
        assert not info.masked  # all of the horizon is seen, whatever its bearing
        assert verify(config.data.uri).lines()[-1] == "ok"
        test = PairDataset.open(config.data, "test")
        assert dict(zip(test.ids, test.places, strict=True)) == {"w": None, "a": "square", "b": "square"}
        assert dict(zip(test.ids, test.oriented.tolist(), strict=True)) == {"w": True, "a": False, "b": True}
        # one of unknown heading is prepared as if north were in the middle
        assert torch.equal(test[test.ids.index("a")].street, test[test.ids.index("w")].street)
        train = PairDataset.open(config.data, "train")
        assert train.places == [None, None]
        assert train.oriented.all()

    def test_warnings_on_files_are_counted(self, folder: Path) -> None:
        square, wide = np.zeros((8, 8, 3), np.uint8), np.zeros((40, 80, 3), np.uint8)
        record = Record("a", "train", heading="auto")
        photo = PhotoMetadata(heading=90.0, warnings=("it is doubtful",))
        counted = Counter[str]()
        for _ in range(2):
            prepare_views(Pair(square, wide), record, SHAPE, photo, masked=True, warnings=counted)
        assert counted["it is doubtful"] == 2

    def test_a_file_that_does_not_say_it_is_quarantined(self, folder: Path) -> None:
        rows = [f"{row},,," for row in rest()]
        rows += [
            "a,s.png,q.png,train,auto,80,rectilinear",
            "b,s.png,q.png,train,0,,rectilinear",
            "c,s.png,no.jpg,test,auto,,",
        ]
        info = prepare(configured(folder, "heading,fov,projection", *rows))
        reasons = {entry.id: entry.reason for entry in info.quarantine}
        assert reasons.keys() == {"a", "b", "c"}
        assert reasons["a"] == "the heading is unknown: the panorama's file does not say it; give a number"
        assert "fov" in reasons["b"]
        assert "street image is missing" in reasons["c"]

    def test_whole_panoramas_are_stored_as_before(self, folder: Path) -> None:
        config = configured(folder, "heading", *[f"{row}," for row in rest()])
        info = prepare(config)
        assert not info.masked
        place = Path(config.data.uri)
        assert "masked" not in json.loads((place / "plan.json").read_text())
        shard = pa.ipc.open_file((place / "train-00000.arrow").read_bytes()).read_all()
        assert shard.column_names[-4:] == ["heading", "polar", "street", "satellite"]
        assert not shard.schema.field("heading").nullable


def remake(place: Path) -> None:
    """Leave a data set as an earlier version would have left its plan, before it wrote anything else."""
    for path in place.iterdir():
        if path.name != "plan.json":
            path.unlink()
    stored = json.loads((place / "plan.json").read_text())
    (place / "plan.json").write_text(json.dumps({key: value for key, value in stored.items() if key != "masked"}))


def test_a_data_set_that_an_earlier_version_began_is_finished_as_it_began(folder: Path) -> None:
    rows = [f"{row},," for row in rest()] + ["a,s.png,q.png,train,90,100"]
    config = configured(folder, "heading,fov", *rows)
    marked = prepare(config)
    remake(Path(config.data.uri))
    info = prepare(config)
    assert not info.masked
    assert info.digest == marked.digest
    assert any("placed on black at their bearing" in line for line in info.panorama_lines())
    dataset = PairDataset.open(config.data, "train")
    sample = dataset[dataset.ids.index("a")]
    pixels = np.asarray(Image.open(folder / "q.png"))
    assert sample.seen is None
    assert torch.equal(sample.street, SHAPE.street(pixels, 90.0, fov=100.0))


def test_a_damaged_mask_is_a_fault(folder: Path) -> None:
    config = configured(folder, "fov", *[f"{row}," for row in rest()], "a,s.png,q.png,test,100")
    prepare(config)
    place = Path(config.data.uri) / "test-00000.arrow"
    shard = pa.ipc.open_file(place.read_bytes()).read_all()
    at = shard.column_names.index("seen")
    broken = [None if mask is None else b"nothing" for mask in shard["seen"].to_pylist()]
    with pa.OSFile(str(place), "wb") as file, pa.ipc.new_file(file, shard.schema) as writer:
        writer.write_table(
            shard.set_column(at, shard.schema.field("seen"), pa.array([broken[0], *broken[1:]], pa.large_binary()))
        )
    assert any(
        fault.startswith("a: seen image in test-00000.arrow is not a") for fault in verify(config.data.uri).faults
    )

"""CVUSA and CVACT from miniature archives in their distributed layout, with missing and broken members."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from s2s_ray import cli
from s2s_ray.config import (
    Config,
    CvactSourceConfig,
    CvusaSourceConfig,
    load_config,
)
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.description import (
    read_dataset_info,
)
from s2s_ray.data.prepare import prepare
from s2s_ray.data.schema import Record
from s2s_ray.data.sources import open_source, published_geometry
from s2s_ray.data.sources.cvact import CvactSource
from s2s_ray.data.sources.cvusa import CvusaSource
from s2s_ray.data.verify import verify
from s2s_ray.errors import ArchiveError, ConfigError, DatasetError, UnreadableImageError
from s2s_ray.geo.prepare import prepare_satellite, prepare_street
from s2s_ray.geo.views import ViewGeometry

PLACE = (692_000.25, 6_090_000.125)


def noise(height: int, width: int, seed: int, low: int = 0, high: int = 256) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(low, high, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return np.repeat(np.repeat(coarse, 4, 0), 4, 1)[:height, :width]


def save(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)


@pytest.fixture
def cvusa(tmp_path: Path) -> Path:
    """Eight training and three test pairs; one tile is missing, one panorama is truncated, one is not cropped."""
    root = tmp_path / "CVUSA"
    (root / "splits").mkdir(parents=True)
    for split, numbers in (("train", range(1, 9)), ("val", range(9, 12))):
        lines = []
        for number in numbers:
            paths = [f"bingmap/19/{number:07d}.jpg", f"streetview/panos/{number:07d}.jpg"]
            save(root / paths[0], noise(75, 75, number))
            save(root / paths[1], noise(56, 308, 100 + number))
            lines.append(",".join([*paths, f"streetview/annotations/{number:07d}.png"]))
        (root / "splits" / f"{split}-19zl.csv").write_text("\n".join(lines) + "\n")
    (root / "bingmap/19/0000002.jpg").unlink()
    whole = (root / "streetview/panos/0000003.jpg").read_bytes()
    (root / "streetview/panos/0000003.jpg").write_bytes(whole[: len(whole) // 2])
    save(root / "streetview/panos/0000010.jpg", noise(64, 128, 5))
    return root


def act_index(root: Path, ids: list[str], train: list[int], val: list[int], test: list[int]) -> None:
    """`ACT_data.mat` as CVACT has it: 1-based columns of rows in structures, ids as characters."""
    places = np.array(PLACE) + 0.5 * np.arange(2 * len(ids), dtype=np.float64).reshape(-1, 2)
    tree = {
        "panoIds": np.array(ids),
        "utm": places,
        "trainSet": {"trainInd": np.array(train)[:, None]},
        "valSet": {"valInd": np.array(val)[:, None]},
        "valSetAll": {"valInd": np.array(test)[:, None]},
    }
    root.mkdir(parents=True, exist_ok=True)
    savemat(root / "ACT_data.mat", tree)


@pytest.fixture
def cvact(tmp_path: Path) -> Path:
    """Seven training, three val and five test pairs (val among them); one tile of val is missing."""
    root = tmp_path / "CVACT"
    ids = [f"-pano_{k:02d}xyzABCDEFGHIJ" for k in range(12)]
    act_index(root, ids, train=[12, 1, 2, 3, 4, 5, 6], val=[7, 8, 9], test=[7, 8, 9, 10, 11])
    for folder, rows in (("ANU_data_small", [*range(9), 11]), ("ANU_data_test", range(6, 11))):
        for row in rows:
            save(root / folder / "satview_polish" / f"{ids[row]}_satView_polish.jpg", noise(60, 60, row, 60, 200))
            save(root / folder / "streetview" / f"{ids[row]}_grdView.jpg", noise(48, 96, 50 + row))
    (root / "ANU_data_small/satview_polish" / f"{ids[8]}_satView_polish.jpg").unlink()
    return root


def config(source: dict[str, Any], uri: Path, **prepare_options: Any) -> Config:
    tree = {
        "model": {"height": 32, "width": 176},
        "source": source,
        "data": {"uri": str(uri)},
        "prepare": {"parallel": False, "validation_fraction": 0.3, **prepare_options},
    }
    return Config.from_tree(tree)


class TestCvusa:
    def test_records_are_the_split_files_in_their_order(self, cvusa: Path) -> None:
        source = pickle.loads(pickle.dumps(open_source(CvusaSourceConfig(uri=str(cvusa)))))
        assert list(source.records()) == [
            Record(f"{number:07d}", "train" if number < 9 else "test") for number in range(1, 12)
        ]
        pair = source.read(source.records()[0])
        assert pair.satellite.shape == (75, 75, 3)
        assert pair.street.shape == (56, 308, 3)

    @pytest.mark.parametrize(
        ("id", "split", "reason"),
        [
            ("0000002", "train", "satellite image is missing: .*bingmap/19/0000002.jpg"),
            ("0000003", "train", "street image streetview/panos/0000003.jpg is damaged or cut short"),
            ("0000010", "test", r"street image is 128 x 64 pixels .*1232 x 224, cropped"),
        ],
    )
    def test_members_that_cannot_be_used(self, cvusa: Path, id: str, split: Any, reason: str) -> None:
        with pytest.raises(UnreadableImageError, match=reason):
            CvusaSource(CvusaSourceConfig(uri=str(cvusa))).read(Record(id, split))

    def test_prepared_and_compared_with_what_was_published(self, cvusa: Path, tmp_path: Path) -> None:
        manifest = prepare(config({"kind": "cvusa", "uri": str(cvusa)}, tmp_path / "set"))
        assert {split: info.count for split, info in manifest.splits.items()} == {"train": 4, "val": 2, "test": 2}
        assert manifest.validation == "2 of 8 training pairs, by the hash of the id"
        geometry = manifest.geometry
        assert (geometry.polar_size, geometry.resize, geometry.polar_contrast) == ((224, 1232), "cubic", "none")
        report = verify(str(tmp_path / "set"))
        assert report.ok
        assert not report.complete
        text = "\n".join(report.lines())
        assert (
            "train (including validation): 35,532 pairs published, the archive lists 8, 6 usable: "
            "35,526 missing" in text
        )
        assert "test: 8,884 pairs published, the archive lists 3, 2 usable: 8,882 missing" in text
        assert "quarantined: 0000002" in text
        assert report.lines()[-1] == "ok, but some published pairs are missing"

    def test_a_missing_pair_is_a_fault_if_all_are_required(self, cvusa: Path, tmp_path: Path) -> None:
        prepare(config({"kind": "cvusa", "uri": str(cvusa)}, tmp_path / "set"))
        cli.app(["verify", str(tmp_path / "set")], standalone_mode=False)
        assert cli.app(["verify", str(tmp_path / "set"), "--complete"], standalone_mode=False) == 1

    def test_missing_and_malformed_split_files(self, cvusa: Path) -> None:
        def records() -> object:
            return CvusaSource(CvusaSourceConfig(uri=str(cvusa))).records()

        (cvusa / "splits/val-19zl.csv").write_text("bingmap/19/0000001.jpg,streetview/panos/0000001.jpg,x\n")
        with pytest.raises(ArchiveError, match=r"val-19zl.csv, line 1: 0000001 is listed twice"):
            records()
        (cvusa / "splits/val-19zl.csv").write_text("bingmap/19/0000099.jpg\n")
        with pytest.raises(ArchiveError, match=r"line 1: 'bingmap/19/0000099.jpg', expected an aerial and a panorama"):
            records()
        (cvusa / "splits/val-19zl.csv").write_text("\n")
        with pytest.raises(ArchiveError, match="lists no pairs"):
            records()
        (cvusa / "splits/val-19zl.csv").unlink()
        with pytest.raises(ArchiveError, match=r"val-19zl.csv is missing: .* holds train-19zl.csv"):
            records()

    def test_the_treatment_of_the_released_scripts(self) -> None:
        """Unrolled at 224 x 1232, truncated to 8 bits, OpenCV's cubic: at half size, taps of -3 19 19 -3 over 32."""
        tile = noise(300, 300, 1)
        rows, columns = 224, 1232
        radius = 300 / (2 * rows) * (rows - 1 - np.arange(rows))[:, None]
        azimuth = 2 * np.pi * np.arange(columns)[None] / columns
        row, column = 150 + radius * np.cos(azimuth), 150 - radius * np.sin(azimuth)
        padded = np.pad(tile.astype(np.float64), ((1, 2), (1, 2), (0, 0)))
        top, left = np.floor(row).astype(int), np.floor(column).astype(int)
        down, right = (row - top)[..., None], (column - left)[..., None]
        top, left = top + 1, left + 1
        polar = (1 - down) * ((1 - right) * padded[top, left] + right * padded[top, left + 1])
        polar += down * ((1 - right) * padded[top + 1, left] + right * padded[top + 1, left + 1])
        whole = np.floor(polar + 1e-9)
        expected = halved(halved(whole).transpose(1, 0, 2)).transpose(1, 0, 2).clip(0, 255)
        found = prepare_satellite(tile, 112, 616, polar_size=(224, 1232), resize="cubic").permute(1, 2, 0).numpy()
        # a value within a rounding of a whole number may be cut off to the one below
        assert (np.abs(found - expected) <= 0.51).mean() > 0.999
        assert np.abs(found - expected).max() <= 2
        street = noise(224, 1232, 2)
        expected = halved(halved(street.astype(float)).transpose(1, 0, 2)).transpose(1, 0, 2).clip(0, 255)
        found = prepare_street(street, 0.0, (0.0, 1.0), 112, 616, resize="cubic").permute(1, 2, 0).numpy()
        assert np.abs(found - expected).max() <= 0.51


def halved(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half the rows by cubic convolution with a = -0.75: each new pixel lies between two old ones."""
    edge = np.pad(image, ((1, 1), (0, 0), (0, 0)), mode="edge")
    taps = (-3 / 32, 19 / 32, 19 / 32, -3 / 32)
    count = image.shape[0] // 2
    parts = [weight * edge[k : k + 2 * count : 2] for k, weight in enumerate(taps)]
    return np.sum(parts, axis=0)


class TestCvact:
    def test_records_have_the_splits_and_the_coordinates(self, cvact: Path) -> None:
        source = pickle.loads(pickle.dumps(open_source(CvactSourceConfig(uri=str(cvact)))))
        records = source.records()
        assert [record.split for record in records] == ["train"] * 7 + ["test"] * 3
        assert records[0].id == "-pano_11xyzABCDEFGHIJ"
        assert (records[1].easting, records[1].northing, records[1].zone) == (PLACE[0], PLACE[1] + 0.5, 32755)
        assert (records[0].easting, records[0].northing) == (PLACE[0] + 11.0, PLACE[1] + 11.5)
        assert records[1].latitude == pytest.approx(-35.31, abs=0.01)
        assert records[1].longitude == pytest.approx(149.11, abs=0.01)
        assert source.read(records[0]).street.shape == (48, 96, 3)

    def test_the_large_test_set_is_read_from_its_own_folder(self, cvact: Path) -> None:
        source = CvactSource(CvactSourceConfig(uri=str(cvact), test="test"))
        tests = [record for record in source.records() if record.split == "test"]
        assert len(tests) == 5
        for record in tests:
            source.read(record)  # one tile of val is missing, but none of the test set
        with pytest.raises(
            UnreadableImageError, match="satellite image is missing: neither ANU_data_small/satview_polish"
        ):
            CvactSource(CvactSourceConfig(uri=str(cvact))).read(tests[2])

    def test_prepared_with_blocks_for_validation_and_the_stretch(self, cvact: Path, tmp_path: Path) -> None:
        source = {"kind": "cvact", "uri": str(cvact)}
        manifest = prepare(config(source, tmp_path / "set", validation_block_m=3.0))
        assert manifest.validation.endswith("whole blocks of 3 m")
        assert manifest.split("test").count == 2
        assert [entry.id for entry in manifest.quarantine] == ["-pano_08xyzABCDEFGHIJ"]
        geometry = manifest.geometry
        assert (geometry.panorama_rows, geometry.polar_contrast, geometry.resize) == ((0.25, 0.75), "stretch", "area")
        polar = PairDataset(str(tmp_path / "set"), "test")[0].polar
        assert (int(polar.min()), int(polar.max())) == (0, 255)
        plain = prepare(config(source | {"polar_contrast": "none"}, tmp_path / "plain", splits=["test"]))
        assert plain.geometry.polar_contrast == "none"
        polar = PairDataset(str(tmp_path / "plain"), "test")[0].polar
        assert polar[:, :8].min() > 40
        assert verify(str(tmp_path / "set")).published[1].line() == (
            "test: 8,884 pairs published, the archive lists 3, 2 usable: 8,882 missing"
        )

    def test_a_data_set_of_the_test_split_alone(self, cvact: Path, tmp_path: Path) -> None:
        settings = config({"kind": "cvact", "uri": str(cvact), "test": "test"}, tmp_path / "set", splits=["test"])
        assert list(prepare(settings).splits) == ["test"]
        assert len(PairDataset(str(tmp_path / "set"), "test")) == 5
        with pytest.raises(DatasetError, match="no 'train' split; it has test"):
            PairDataset(str(tmp_path / "set"), "train")
        [part] = verify(str(tmp_path / "set")).published
        assert (part.published, part.listed, part.usable) == (92_802, 5, 5)
        assert prepare(settings) == read_dataset_info(str(tmp_path / "set"))

    def test_the_served_view_is_the_prepared_one(self, cvact: Path, tmp_path: Path) -> None:
        manifest = prepare(config({"kind": "cvact", "uri": str(cvact)}, tmp_path / "set", splits=["test"]))
        meta = {"dataset": {"geometry": manifest.geometry.tree()}}
        settings = load_config("paper", ["model.height=32", "model.width=176"])
        views = ViewGeometry.of_checkpoint(settings.model, meta, "checkpoint")
        source, dataset = CvactSource(CvactSourceConfig(uri=str(cvact))), PairDataset(str(tmp_path / "set"), "test")
        record = next(record for record in source.records() if record.id == dataset.ids[0])
        pair = source.read(record)
        assert torch.equal(views.satellite(pair.satellite), dataset[0].polar)
        assert torch.equal(views.street(pair.street), dataset[0].street)

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"utm": np.zeros((3, 2))}, r"utm has shape \(3, 2\), expected 12 x 2"),
            ({"valSet": {"valInd": np.array([[0]])}}, r"valSet.valInd is empty or has rows outside of 1 to 12"),
            ({"valSet": {"other": np.array([[1]])}}, "valSet.valInd is missing"),
            ({"valSet": {"valInd": np.array([[1]])}}, "-pano_00xyzABCDEFGHIJ is listed twice"),
            ({"trainSet": None}, "field trainSet is missing; it has "),
            ({"utm": np.full((12, 2), math.nan)}, "utm of -pano_11xyzABCDEFGHIJ is"),
        ],
    )
    def test_an_index_that_cannot_be_used(self, cvact: Path, change: dict[str, Any], reason: str) -> None:
        from scipy.io import loadmat

        tree = {key: value for key, value in loadmat(cvact / "ACT_data.mat").items() if not key.startswith("__")}
        savemat(cvact / "ACT_data.mat", {key: value for key, value in (tree | change).items() if value is not None})
        with pytest.raises(ArchiveError, match=reason):
            CvactSource(CvactSourceConfig(uri=str(cvact))).records()

    def test_no_index_and_no_mat_file(self, cvact: Path) -> None:
        (cvact / "ACT_data.mat").write_bytes(b"not a MATLAB file")
        with pytest.raises(ArchiveError, match="is not a MATLAB file that can be read"):
            CvactSource(CvactSourceConfig(uri=str(cvact))).records()
        (cvact / "ACT_data.mat").unlink()
        with pytest.raises(ArchiveError, match=r"ACT_data.mat is missing: .*; .* holds ANU_data_small, ANU_data_test"):
            CvactSource(CvactSourceConfig(uri=str(cvact))).records()


@pytest.mark.parametrize(
    ("kind", "rows", "polar_size", "edge"),
    [("cvusa", (0.0, 1.0), (224, 1232), 32.727), ("cvact", (0.25, 0.75), None, 45.0)],
)
def test_the_views_of_a_published_data_set_are_known_without_its_files(
    kind: str, rows: tuple[float, float], polar_size: tuple[int, int] | None, edge: float
) -> None:
    geometry = published_geometry(kind, 128, 512)
    assert (geometry.height, geometry.width, geometry.panorama_rows) == (128, 512, rows)
    assert geometry.polar_size == polar_size
    assert geometry.elevations == pytest.approx((edge, -edge), abs=1e-3)
    assert geometry.default_heading == 0.0


def test_the_presets_are_the_published_protocols() -> None:
    small, large = load_config("cvact"), load_config("cvact_test")
    assert small.loss.negative_min_distance_m == 25.0
    assert (small.evaluation.radius_m, large.evaluation.radius_m) == (None, 5.0)
    assert large.prepare.splits == ("test",)
    assert load_config("cvusa", ["source.uri=/x"]).source == CvusaSourceConfig(uri="/x")
    assert load_config("cvusa").model == load_config("paper").model
    with pytest.raises(ConfigError, match=r"source.test='all'.*'val' or 'test'"):
        load_config("cvact", ["source.test=all"])
    with pytest.raises(ConfigError, match=r"source.zoom=3: unknown key; valid keys: kind, uri, polar_contrast, resize"):
        load_config("cvusa", ["source.zoom=3"])

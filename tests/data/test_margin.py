"""Data sets whose raw tiles have a margin of imagery around them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from s2s_ray.config import Config, ManifestSourceConfig, load_config
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.description import margin_px, read_dataset_info
from s2s_ray.data.prepare import prepare
from s2s_ray.data.schema import TileSize
from s2s_ray.data.sources import open_imagery, open_source
from s2s_ray.data.sources.manifest import ManifestSource
from s2s_ray.data.verify import verify
from s2s_ray.errors import ConfigError, DatasetError, UnreadableImageError
from s2s_ray.geo.images import Pixels

if TYPE_CHECKING:
    from tests.support.pair_folder import PairFolder

PX, MARGIN = 32, 3  # pixels of 2 m


def configured(folder: Path, margin_m: float) -> Config:
    source = ["source.train_pairs=4", "source.test_pairs=2", f"source.tile_px={PX}", "source.panorama_rays=1"]
    source += ["source.panorama_height=32", "source.panorama_width=40"]
    sizes = ["model.height=32", "model.width=40", f"prepare.margin_m={margin_m}", "prepare.parallel=false"]
    return load_config("tiny", [*source, *sizes, f"data.uri={folder}/data"])


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A data set of the city with 5 m around tiles of 64 m: 3 pixels."""
    config = configured(tmp_path_factory.mktemp("margin"), 5)
    prepare(config)
    return config


def test_the_description_has_the_sizes(config: Config) -> None:
    info = read_dataset_info(config.data.uri)
    assert (info.tile_m, info.tile_px, info.margin_m, info.margin_px) == (64.0, PX, 5.0, MARGIN)
    assert verify(config.data.uri).lines()[-1] == "ok"


def test_the_polar_image_is_that_of_the_inner_tile(config: Config) -> None:
    dataset = PairDataset.open(config.data, "test")
    tile, wide = dataset.tile(0), dataset.wide_tile(0)
    assert tile is not None
    assert tile.shape == (PX, PX, 3)
    assert wide.shape == (PX + 2 * MARGIN, PX + 2 * MARGIN, 3)
    np.testing.assert_array_equal(tile, wide[MARGIN:-MARGIN, MARGIN:-MARGIN])
    polar = dataset.info.geometry.north_up(tile)
    np.testing.assert_array_equal(polar, dataset[0].polar)


def test_the_tile_is_that_of_a_data_set_without_a_margin(config: Config, tmp_path: Path) -> None:
    source = open_source(config.source)
    record = source.records()[0]
    narrow, wide = source.read(record), source.read(record, 7)
    np.testing.assert_array_equal(narrow.street, wide.street)
    # Shadows are sampled from another corner, so their edges differ by a cell.
    assert (np.abs(narrow.satellite.astype(int) - wide.satellite[7:-7, 7:-7]) > 0).mean() < 0.02


@pytest.mark.parametrize(
    ("east", "north", "column", "row"), [(0, 0, 3, 3), (4, 0, 5, 3), (0, 4, 3, 1), (-5, -5, 1, 5), (2.9, -0.9, 4, 3)]
)
def test_a_tile_around_another_centre(config: Config, east: float, north: float, column: int, row: int) -> None:
    dataset = PairDataset.open(config.data, "train")
    found = dataset.tile_around(1, east, north)
    np.testing.assert_array_equal(found, dataset.wide_tile(1)[row : row + PX, column : column + PX])


@pytest.mark.parametrize(("east", "north", "name"), [(5.1, 0, "east_m=5.1"), (0, -6, "north_m=-6"), (0, np.nan, "nan")])
def test_a_centre_beyond_the_margin_is_refused(config: Config, east: float, north: float, name: str) -> None:
    with pytest.raises(DatasetError, match=rf"{name} is outside the margin .*, 5 m around each tile: prepare it again"):
        PairDataset.open(config.data, "train").tile_around(0, east, north)


def test_another_margin_is_another_data_set(config: Config) -> None:
    other = configured(Path(config.data.uri).parent, 0)
    with pytest.raises(DatasetError, match=r"prepare.margin_m was 5.0, now None"):
        prepare(other)


def test_a_description_that_contradicts_the_plan_or_the_tiles_is_a_fault(config: Config, tmp_path: Path) -> None:
    path = Path(config.data.uri) / "dataset.json"
    before = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(before) | {"margin_m": 7.0}))
        faults = verify(config.data.uri).faults
        assert "dataset.json has prepare.margin_m=7.0, but plan.json has 5.0" in faults
        assert any("satellite image in test-00000.arrow is 38 x 38" in fault for fault in faults)
        with pytest.raises(DatasetError, match=r"satellite image of \S+ is 38 x 38, expected 40 x 40"):
            PairDataset.open(config.data, "test").tile(0)
    finally:
        path.write_text(before)


def test_tiles_that_are_files_have_no_margin(pairs: PairFolder, tmp_path: Path) -> None:
    for k, split in enumerate(("train", "train", "val", "test")):
        pairs.add(str(k), split)
    with pytest.raises(
        ConfigError, match=r"prepare.margin_m=2 needs a source .*kind=manifest.*: set prepare.margin_m=0, and"
    ):
        prepare(pairs.config(tmp_path / "set", keep_tiles=True, margin_m=2))
    assert not (tmp_path / "set").exists()
    info = prepare(pairs.config(tmp_path / "set", keep_tiles=True))
    assert (info.tile_m, info.tile_px, info.margin_m, info.margin_px) == (None, None, 0.0, 0)
    written = json.loads((tmp_path / "set" / "dataset.json").read_text())
    assert not {"tile_m", "tile_px", "margin_m", "masked"} & written.keys()  # as earlier versions wrote it
    with pytest.raises(DatasetError, match="was prepared without raw tiles of known size: prepare it again with"):
        PairDataset(str(tmp_path / "set"), "test").tile_around(0, 0.0, 0.0)


def test_a_margin_needs_the_raw_tiles() -> None:
    with pytest.raises(ConfigError, match="margin_m=5 is stored with the raw tiles: set keep_tiles to true"):
        load_config("tiny", ["prepare.margin_m=5", "prepare.keep_tiles=false"])
    with pytest.raises(ConfigError, match=r"prepare.margin_m"):
        load_config("tiny", ["prepare.margin_m=-1"])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"kind": "synthetic", "tile_m": 64.0, "tile_px": 128}, TileSize(64.0, 128)),
        ({"kind": "manifest", "geotiff": "x.tif", "tile_m": 50.0, "tile_px": 512}, TileSize(50.0, 512)),
        ({"kind": "manifest", "tile_m": 50.0, "tile_px": 512}, None),  # the tiles are files
        ({"kind": "cvusa"}, None),
    ],
)
def test_earlier_versions_named_the_size_with_the_source(
    config: Config, source: dict[str, Any], expected: TileSize | None
) -> None:
    info = read_dataset_info(config.data.uri)
    assert info.tile_size == TileSize(64.0, PX)
    earlier = info.model_copy(update={"tile_m": None, "tile_px": None, "margin_m": 0.0, "source": source})
    assert earlier.tile_size == expected


@pytest.mark.parametrize(
    ("margin_m", "tile_m", "tile_px", "expected"),
    [(0, 64, 128, 0), (16, 64, 128, 32), (16.1, 64, 128, 33), (0.3, 30, 300, 3), (5, 64, 32, 3)],
)
def test_a_margin_is_of_whole_pixels(
    config: Config, margin_m: float, tile_m: float, tile_px: int, expected: int
) -> None:
    assert margin_px(margin_m, tile_m, tile_px) == expected
    info = read_dataset_info(config.data.uri)
    assert info.model_copy(update={"margin_m": margin_m, "tile_m": tile_m, "tile_px": tile_px}).margin_px == expected


class _Recorder:
    """Imagery that shows what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, ...]] = []

    def cut(self, *place: float) -> Pixels:
        self.asked.append(place)
        return np.zeros((int(place[3]), int(place[3]), 3), np.uint8)


def test_a_manifest_cuts_a_wider_tile_of_the_same_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.csv").write_text("id,street,split,latitude,longitude\na,p.png,train,1,2\n")
    source = ManifestSource(ManifestSourceConfig(uri=str(tmp_path / "p.csv"), tiles="t", zoom=3, tile_m=30, tile_px=60))
    imagery = _Recorder()
    monkeypatch.setattr(ManifestSource, "_imagery", imagery)
    assert source.tile_size == TileSize(30.0, 60)
    assert source.tile(source.records()[0]).shape == (60, 60, 3)
    assert source.tile(source.records()[0], 4).shape == (68, 68, 3)
    assert imagery.asked == [(1.0, 2.0, 30.0, 60), (1.0, 2.0, 34.0, 68)]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ({"kind": "manifest", "uri": "x.csv"}, r"source.kind=manifest has no imagery .* set source.tiles or"),
        ({"kind": "cvusa", "uri": "x"}, r"source.kind=cvusa has no imagery"),
    ],
)
def test_a_source_without_imagery_says_so(source: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        open_imagery(Config.from_tree({"source": source}).source)


def test_a_position_without_imagery_is_quarantined_for_its_margin(tmp_path: Path) -> None:
    """The inner tile is on the map tiles, the margin is not."""
    size, zoom = 256, 18
    count = 2**zoom
    folder = tmp_path / "tiles" / str(zoom) / str(count // 2)
    folder.mkdir(parents=True)
    Image.fromarray(np.full((size, size, 3), 90, np.uint8)).save(folder / f"{count // 2}.png")
    middle = 360 / count / 2  # degrees from the equator and the meridian of Greenwich to the map tile's middle
    (tmp_path / "p.csv").write_text(f"id,street,split,latitude,longitude\na,p.png,train,{-middle},{middle}\n")
    tiles = {"tiles": str(tmp_path / "tiles"), "zoom": zoom, "tile_m": 100.0, "tile_px": 50}
    source = ManifestSource(ManifestSourceConfig(uri=str(tmp_path / "p.csv"), **tiles))
    record = source.records()[0]
    assert source.tile(record, 10).shape == (70, 70, 3)
    with pytest.raises(UnreadableImageError, match=r"map tile 18/\d+/\d+ is missing"):
        source.tile(record, 20)

"""A prepared data set as training and evaluation read it."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from s2s_ray.config import DataConfig
from s2s_ray.data.batch import Batch, Sample, collate
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.prepare import prepare
from s2s_ray.data.sampler import GlobalBatchSampler
from s2s_ray.data.shard import prepare_pair
from s2s_ray.data.sources.manifest import ManifestSource
from s2s_ray.errors import ConfigError, DamagedError, DatasetError
from tests.support.folder_store import serve_folder

if TYPE_CHECKING:
    from tests.support.pair_folder import PairFolder

TRAIN = 11


@pytest.fixture
def uri(pairs: PairFolder, tmp_path: Path) -> str:
    """A data set of eleven training pairs in several shards; the first two have coordinates."""
    pairs.add("train0", latitude=47.0, longitude=11.0)
    pairs.add("train1", latitude=-35.0, longitude=149.0)
    for k in range(2, TRAIN):
        pairs.add(f"train{k}")
    pairs.add("val", "val")
    pairs.add("test", "test")
    prepare(pairs.config(tmp_path / "set", shard_mb=0.02, keep_tiles=True))
    return str(tmp_path / "set")


def same(one: Sample, other: Sample) -> bool:
    return torch.equal(one.polar, other.polar) and torch.equal(one.street, other.street) and one.index == other.index


def test_items_are_the_prepared_pairs(uri: str, pairs: PairFolder) -> None:
    dataset = PairDataset(uri, "train")
    source = ManifestSource(pairs.source())
    records = {record.id: record for record in source.records()}
    assert len(dataset) == TRAIN == sum(dataset.shard_sizes)
    assert len(dataset.shard_sizes) > 2
    for index in (TRAIN - 1, *range(TRAIN)):
        record = records[dataset.ids[index]]
        pair = source.read(record)
        polar, street = prepare_pair(pair, record, dataset.info.geometry)
        sample = dataset[index]
        assert sample.polar.dtype == sample.street.dtype == torch.uint8
        assert sample.polar.shape == (3, 32, 40)
        assert np.array_equal(sample.polar.permute(1, 2, 0), polar)
        assert np.array_equal(sample.street.permute(1, 2, 0), street)
        assert sample.index == index
        assert np.array_equal(dataset.tile(index), pair.satellite)  # type: ignore[arg-type]


def test_records_come_with_the_pairs(uri: str) -> None:
    dataset = PairDataset(uri, "train")
    first, second, third = (dataset.ids.index(f"train{k}") for k in range(3))
    assert dataset.positions.dtype == dataset.latlon.dtype == np.float64
    assert dataset.zones.dtype == np.int64
    assert dataset.latlon[[first, second]].tolist() == [[47.0, 11.0], [-35.0, 149.0]]
    assert dataset.zones[[first, second, third]].tolist() == [32632, 32755, 0]
    assert np.isfinite(dataset.positions[[first, second]]).all()
    assert np.isnan(dataset.positions[third]).all()
    assert np.isnan(dataset.latlon[third]).all()


def test_a_data_set_without_tiles_has_none(pairs: PairFolder, tmp_path: Path) -> None:
    for k, split in enumerate(("train", "train", "val", "test")):
        pairs.add(str(k), split)
    prepare(pairs.config(tmp_path / "set"))
    assert PairDataset(str(tmp_path / "set"), "train").tile(0) is None


def test_flips_mirror_both_images_of_some_pairs(uri: str) -> None:
    dataset = PairDataset(uri, "train", flip=0.5, seed=3)
    flipped = 0
    for epoch in range(20):
        for index in range(TRAIN):
            plain, found = dataset[index], dataset[epoch, index]
            mirrored = Sample(plain.polar.flip(2), plain.street.flip(2), index)
            assert same(found, plain) != same(found, mirrored)
            flipped += same(found, mirrored)
    assert abs(flipped - 110) < 4 * (220 * 0.25) ** 0.5


def test_flips_depend_on_seed_epoch_and_id_alone(uri: str, pairs: PairFolder, tmp_path: Path) -> None:
    def flips(dataset: PairDataset, epoch: int) -> dict[str, bool]:
        return {id: not same(dataset[epoch, k], dataset[k]) for k, id in enumerate(dataset.ids)}

    dataset = PairDataset(uri, "train", flip=0.5, seed=3)
    prepare(pairs.config(tmp_path / "other", shard_mb=1))  # fewer and different shards
    assert flips(PairDataset(str(tmp_path / "other"), "train", flip=0.5, seed=3), 5) == flips(dataset, 5)
    assert flips(dataset, 6) != flips(dataset, 5)
    assert flips(PairDataset(uri, "train", flip=0.5, seed=4), 5) != flips(dataset, 5)


@pytest.mark.parametrize(("flip", "expected"), [(0.0, False), (1.0, True)])
def test_never_and_always_flipping(uri: str, flip: float, expected: bool) -> None:
    dataset = PairDataset(uri, "train", flip=flip)
    assert all(same(dataset[0, k], dataset[k]) != expected for k in range(TRAIN))


def test_collate(uri: str) -> None:
    dataset = PairDataset(uri, "train")
    batch = collate([dataset[4], dataset[1]])
    assert batch.polar.shape == batch.street.shape == (2, 3, 32, 40)
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in (batch.polar, batch.street))
    assert torch.equal(batch.street[1], dataset[1].street)
    assert torch.equal(batch.polar[0], dataset[4].polar)
    assert batch.index.tolist() == [4, 1]
    assert batch.index.dtype == torch.int64
    moved = batch.to("meta")
    assert (moved.polar.device.type, moved.street.device.type, moved.index.device.type) == ("meta",) * 3


def test_an_empty_share_is_an_empty_batch(uri: str) -> None:
    batch = PairDataset(uri, "train").collate([])
    assert batch.polar.shape == batch.street.shape == (0, 3, 32, 40)
    assert batch.polar.dtype == torch.uint8
    assert batch.index.shape == (0,)
    assert batch.index.dtype == torch.int64
    assert len(batch) == 0


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12 warns of fork
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_the_same_batches_with_any_number_of_processes(uri: str, workers: int) -> None:
    dataset = PairDataset(uri, "train", flip=0.5, seed=1)
    dataset[0]  # a shard that is open before the processes start
    sampler = GlobalBatchSampler(dataset.shard_sizes, seed=1, window=2, batch=4, rank=1, world=3, epoch=2)
    loader: DataLoader[Batch] = DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=sampler,
        collate_fn=dataset.collate,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )
    found = list(loader)
    expected = [dataset.collate([dataset[key] for key in part]) for part in sampler]
    assert len(found) == len(expected) == 3
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.polar, other.polar)
        assert torch.equal(one.street, other.street)
        assert torch.equal(one.index, other.index)


def test_pickling(uri: str) -> None:
    dataset = PairDataset(uri, "train")
    before = dataset[3]
    assert same(pickle.loads(pickle.dumps(dataset))[3], before)


@pytest.mark.parametrize("index", [-1, TRAIN])
def test_an_index_out_of_range(uri: str, index: int) -> None:
    with pytest.raises(IndexError, match=f"index {index} of {TRAIN} pairs"):
        PairDataset(uri, "train")[index]


def test_a_missing_data_set_or_split_is_named(uri: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere holds no complete data set .*s2s prepare"):
        PairDataset(str(tmp_path / "nowhere"), "train")
    with pytest.raises(DatasetError, match="no 'all' split; it has train, val, test"):
        PairDataset(uri, "all")  # type: ignore[arg-type]


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def test_damaged_files_are_named(uri: str) -> None:
    dataset = PairDataset(uri, "train")
    damage(Path(uri) / dataset.info.split("train").shards[0].name)
    with pytest.raises(DamagedError, match=r"shard .*train-00000.arrow fails its checksum"):
        dataset[0]
    assert dataset[TRAIN - 1].index == TRAIN - 1
    damage(Path(uri) / "train-records.arrow")
    with pytest.raises(DamagedError, match=r"train-records.arrow fails its checksum"):
        PairDataset(uri, "train")


def test_a_remote_data_set_goes_through_a_cache(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_folder(monkeypatch, Path("/"))
    with pytest.raises(ConfigError, match=r"^data\.cache_gb=1e-05 is less .*raise data.cache_gb or lower data.window"):
        PairDataset(f"s3:/{uri}", "train", cache_bytes=10_000, window=3)
    remote = PairDataset(f"s3:/{uri}", "train", cache_bytes=10**6, window=3, cache_dir=tmp_path / "cache")
    assert same(remote[0], PairDataset(uri, "train")[0])
    assert len(list((tmp_path / "cache" / "s2s-shards").glob("*.arrow"))) == 1


def test_the_section_data_says_how_a_data_set_is_opened(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_folder(monkeypatch, Path("/"))
    section = DataConfig(uri=f"s3:/{uri}", cache_dir=str(tmp_path / "cache"), cache_gb=0.001, window=2)
    dataset = PairDataset.open(section, "train", flip=1.0, seed=3)
    assert (dataset._cache.max_bytes, dataset._cache.window) == (1_000_000, 2)
    assert (dataset.flip, dataset.seed) == (1.0, 3)
    assert same(dataset[0], PairDataset(uri, "train")[0])
    assert (tmp_path / "cache" / "s2s-shards").is_dir()
    for section in (
        section.model_copy(update=small) for small in ({"cache_gb": 1e-5}, {"cache_gb": 5e-5, "window": 9})
    ):
        with pytest.raises(ConfigError, match=r"^data\.cache_gb=\S+ is less than two windows"):
            PairDataset.open(section, "train")


def test_every_data_set_is_opened_by_its_section() -> None:
    """A call of the class itself would forget the size of the cache, as many once did."""
    root = Path(__file__).resolve().parents[2]
    calls = [
        f"{path.relative_to(root)}:{node.lineno}"
        for folder in ("s2s_ray", "jobs", "serve")
        for path in sorted((root / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "PairDataset"
    ]
    assert calls == []

"""Building in parts: the same bytes as in one go, and nothing is embedded twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from s2s_ray import registry, storage
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.entries import COLUMNS
from s2s_ray.data.prepare import prepare
from s2s_ray.data.schema import Split
from s2s_ray.data.sources.manifest import ManifestSource
from s2s_ray.errors import OptionError, ReferenceIndexError, StorageError
from s2s_ray.geo.views import ViewGeometry
from s2s_ray.index import ReferenceIndex, parts, vectors
from s2s_ray.index.build import assemble, build_index
from s2s_ray.index.build import build as build_at_once
from s2s_ray.index.parts import Build, PartWriter, Plan, build_in_parts
from s2s_ray.index.tiles import DatasetTiles, ManifestTiles
from s2s_ray.index.vectors import HALVES_FILE, INDEX_FILE
from s2s_ray.model.checkpoint import load_checkpoint, save_model
from s2s_ray.model.s2s import S2S
from tests.support.models import tiny_model
from tests.support.pair_folder import PairFolder

TINY = tiny_model()
TILES = 7


@pytest.fixture
def build(pairs: PairFolder, tmp_path: Path) -> Build:
    for number in range(TILES):
        pairs.add(f"t{number}", "test", latitude=48 + number, longitude=11)
    for name in ("a", "b"):
        pairs.add(name, "train")
    pairs.add("v", "val")
    prepare(pairs.config(tmp_path / "data"))
    torch.manual_seed(0)
    save_model(S2S(TINY).eval(), {"run": "r", "step": 1, "metrics": {}}, tmp_path / "local")
    storage.publish(tmp_path / "local", str(tmp_path / "checkpoint"))
    source = DatasetTiles(PairDataset(str(tmp_path / "data"), "test"), "test")
    return Build(str(tmp_path / "checkpoint"), source, str(tmp_path / "index"), batch=2, part=3)


class First(DatasetTiles):
    """The first three tiles."""

    @property
    def ids(self) -> Sequence[str]:
        return super().ids[:3]


def content(folder: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_parts_make_the_same_bytes(build: Build, tmp_path: Path) -> None:
    index, left_out = build_in_parts(build, parallel=False)
    assert (len(index), left_out) == (TILES, [])
    assert not storage.exists(f"{build.out}.parts")
    whole = build_index(
        load_checkpoint(build.checkpoint),
        PairDataset(str(tmp_path / "data"), "test"),
        checkpoint_fingerprint=registry.fingerprint(build.checkpoint),
        split="test",
        batch=2,
    )
    whole.save(str(tmp_path / "whole"))
    assert content(build.out) == content(tmp_path / "whole")
    assert {INDEX_FILE, "entries.parquet", "index.json", "thumbnails.arrow"} < set(content(build.out))


def test_a_manifest_is_indexed_in_parts_as_at_once(build: Build, pairs: PairFolder, tmp_path: Path) -> None:
    for name in ("t1", "t2", "v"):
        (pairs.path / f"{name}-satellite.png").unlink()
    manifest, model = ManifestSource(pairs.source(), panoramas=False), load_checkpoint(build.checkpoint)
    views = ViewGeometry.of_checkpoint(TINY, {}, "checkpoint")
    mark = registry.fingerprint(build.checkpoint)
    whole, faults = build_at_once(model, ManifestTiles(manifest, views), checkpoint_fingerprint=mark, batch=2)
    whole.save(str(tmp_path / "whole"))
    in_parts = dataclasses.replace(build, source=ManifestTiles(manifest, views))
    index, left_out = build_in_parts(in_parts, parallel=False)
    assert left_out == faults
    assert [line.partition(":")[0] for line in left_out] == ["t1", "t2", "v"]
    assert len(index) == TILES
    assert content(build.out) == content(tmp_path / "whole")


def test_an_index_is_extended_in_parts_as_at_once(build: Build, tmp_path: Path) -> None:
    dataset = PairDataset(str(tmp_path / "data"), "test")
    first = dataclasses.replace(build, source=First(dataset, "test"), out=str(tmp_path / "first"))
    shorter = build_in_parts(first, parallel=False)[0]
    whole = build_index(
        load_checkpoint(build.checkpoint),
        dataset,
        checkpoint_fingerprint=registry.fingerprint(build.checkpoint),
        batch=2,
        extends=shorter,
    )
    whole.save(str(tmp_path / "whole"))
    index, _ = build_in_parts(dataclasses.replace(build, extends=str(tmp_path / "first")), parallel=False)
    assert (len(shorter), len(index)) == (3, TILES)
    assert content(build.out) == content(tmp_path / "whole")


class Drawn:
    """A source of so many tiles without images."""

    uri, digest, fingerprint = "memory", "digest", "fingerprint"
    split: Split | None = None
    region = None

    def __init__(self, count: int) -> None:
        self.ids = [f"t{row}" for row in range(count)]

    def polar(self, row: int) -> Any:
        raise AssertionError(row)

    def entries(self, rows: Sequence[int]) -> pa.Table:
        columns = {name: [None] * len(rows) for name in COLUMNS.names} | {"id": [self.ids[row] for row in rows]}
        return pa.table(columns, schema=COLUMNS)

    def pictures(self, rows: Sequence[int]) -> Callable[[Path], None] | None:
        return None


def test_a_compressed_index_has_the_same_bytes_however_it_was_divided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "EXACT_UP_TO", 100)
    monkeypatch.setattr(vectors, "_IN_MEMORY_BYTES", 1000)
    count, dimension = 700, 32
    drawn = np.random.default_rng(0).normal(size=(count, dimension)).astype(np.float32)
    descriptors = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    def split(size: int) -> Iterator[Any]:
        return (descriptors[start : start + size] for start in range(0, count, size))

    for name, size in (("whole", count), ("parts", 64)):
        index, _ = assemble(Drawn(count), range(count), split(size), {}, dimension, "c")
        assert index.info.kind == "compressed"
        index.save(str(tmp_path / name))
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    halves = np.frombuffer((tmp_path / "parts" / HALVES_FILE).read_bytes(), np.float16)
    np.testing.assert_array_equal(halves.reshape(count, dimension), descriptors.astype(np.float16))


@pytest.mark.parametrize("shape", [(4, 32), (6, 32), (5, 31), (5,), ()])
def test_parts_that_do_not_fit_the_tiles_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ReferenceIndexError, match="stored parts do not fit the 5 tiles"):
        assemble(Drawn(5), range(5), iter([np.zeros(shape, np.float32)]), {}, 32, "c")


def test_an_interrupted_build_resumes(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    write = PartWriter.__call__

    def stopped_at_one(self: PartWriter, row: dict[str, int]) -> dict[str, int]:
        if row["item"] == 1 and not written.count(1):
            written.append(1)
            raise KeyboardInterrupt
        written.append(row["item"])
        return write(self, row)

    monkeypatch.setattr(PartWriter, "__call__", stopped_at_one)
    with pytest.raises(KeyboardInterrupt):
        build_in_parts(build, parallel=False)
    assert not storage.is_complete(build.out)
    assert len(build_in_parts(build, parallel=False)[0]) == TILES
    assert written == [0, 1, 1], "existing parts are not made again"
    assert len(ReferenceIndex.load(build.out)) == TILES


def test_parts_of_another_build_are_not_used(build: Build, tmp_path: Path) -> None:
    torch.manual_seed(1)
    save_model(S2S(TINY).eval(), {"run": "r", "step": 2, "metrics": {}}, tmp_path / "other")
    storage.publish(tmp_path / "other", str(tmp_path / "second"))
    train = DatasetTiles(PairDataset(str(tmp_path / "data"), "train"), "train")
    rows = range(TILES)
    folders = {
        Plan.of(one, chosen).folder
        for one, chosen in (
            (build, rows),
            (dataclasses.replace(build, checkpoint=str(tmp_path / "second")), rows),
            (dataclasses.replace(build, source=train), rows),
            (dataclasses.replace(build, batch=3), rows),
            (dataclasses.replace(build, part=9), rows),
            (build, rows[1:]),
        )
    }
    assert len(folders) == 6
    mark, digest = registry.fingerprint(build.checkpoint)[:16], build.source.digest[:16]
    earlier = f"{mark}-{digest}-test-4"  # half precision
    assert not any(folder.endswith(f"/{earlier}") for folder in folders)


def test_only_the_parts_of_the_finished_build_are_deleted(build: Build, tmp_path: Path) -> None:
    others = dataclasses.replace(build, batch=3)  # to the same place, and interrupted
    PartWriter(Plan.of(others, range(TILES)))({"item": 0})
    build_in_parts(build, parallel=False)
    folder = Plan.of(others, range(TILES)).folder
    assert storage.list_names(folder) == ["000000.npy"]
    assert storage.list_folders(f"{build.out}.parts") == [storage.name(folder)]
    build_in_parts(others, parallel=False)
    assert not storage.exists(f"{build.out}.parts")


@pytest.mark.parametrize("extended", [False, True])
def test_another_process_may_build_the_same_index_first(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extended: bool
) -> None:
    """It deletes the parts when it has finished, before this process has read them."""
    if extended:
        first = dataclasses.replace(
            build, source=First(PairDataset(str(tmp_path / "data"), "test"), "test"), out=str(tmp_path / "first")
        )
        build_in_parts(first, parallel=False)
        build = dataclasses.replace(build, extends=first.out)
    faster(build, monkeypatch)
    index, left_out = build_in_parts(build, parallel=False)
    assert (index.ids(), left_out) == (frozenset(build.source.ids), [])
    assert len(ReferenceIndex.load(build.out)) == TILES


def test_parts_that_disappear_without_the_index_are_named(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = DatasetTiles(PairDataset(str(tmp_path / "data"), "train"), "train")
    for meanwhile in (lambda: None, lambda: build_in_parts(dataclasses.replace(build, source=train), parallel=False)):
        faster(build, monkeypatch, meanwhile)
        with pytest.raises(
            ReferenceIndexError, match=r"were deleted while it was built.* does not hold it: build it again"
        ):
            build_in_parts(build, parallel=False)


def faster(build: Build, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object] | None = None) -> None:
    """Let another process finish the same build, or do something else, right before this one reads its parts."""
    real = parts._faults

    def after_another(plan: Plan) -> dict[int, str]:
        monkeypatch.setattr(parts, "_faults", real)
        meanwhile() if meanwhile else build_in_parts(build, parallel=False)
        storage.delete(plan.folder)
        return real(plan)

    monkeypatch.setattr(parts, "_faults", after_another)


def test_parts_that_cannot_be_deleted_do_not_fail_the_build(
    build: Build, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    delete = storage.delete

    def busy(uri: str) -> None:
        if uri.startswith(f"{build.out}.parts/") and not uri.endswith(".json"):
            raise StorageError(f"{uri}: Directory not empty")
        delete(uri)

    monkeypatch.setattr(storage, "delete", busy)
    assert len(build_in_parts(build, parallel=False)[0]) == TILES
    assert "could not delete the parts of the finished index" in caplog.text


@pytest.mark.parametrize("slashes", ["/", "//"])
def test_parts_are_beside_the_index_and_not_in_it(build: Build, slashes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    write = storage.write_bytes

    def noted(uri: str, data: bytes) -> None:
        written.append(uri)
        write(uri, data)

    monkeypatch.setattr(storage, "write_bytes", noted)
    build_in_parts(dataclasses.replace(build, out=build.out + slashes), parallel=False)
    assert written
    assert all(uri.startswith(f"{build.out}.parts/") for uri in written)
    assert len(ReferenceIndex.load(build.out)) == TILES


def test_a_place_without_room_beside_it_is_refused(build: Build) -> None:
    for out in ("/", "s3://bucket", "s3://bucket/", "/somewhere/..", "file:///"):
        with pytest.raises(OptionError, match=rf"--out {out}: expected the name of a folder"):
            build_in_parts(dataclasses.replace(build, out=out), parallel=False)


def test_a_place_that_holds_something_else_is_refused_before_anything_is_embedded(build: Build) -> None:
    with pytest.raises(ReferenceIndexError, match=r"checkpoint holds meta\.json, .* which is not an index"):
        build_in_parts(dataclasses.replace(build, out=build.checkpoint), parallel=False)
    assert not storage.exists(f"{build.checkpoint}.parts")


def test_another_index_at_the_same_place_is_replaced(build: Build, tmp_path: Path) -> None:
    build_in_parts(build, parallel=False)
    train = DatasetTiles(PairDataset(str(tmp_path / "data"), "train"), "train")
    index, _ = build_in_parts(dataclasses.replace(build, source=train), parallel=False)
    found = ReferenceIndex.load(build.out)
    assert found.ids() == index.ids() == {"a", "b"}
    assert found.pictures is not None
    assert found.pictures.thumbnail(2) is None


def test_no_readable_tile_is_an_error(build: Build, pairs: PairFolder) -> None:
    for path in pairs.path.glob("*-satellite.png"):
        path.unlink()
    views = ViewGeometry.of_checkpoint(TINY, {}, "checkpoint")
    source = ManifestTiles(ManifestSource(pairs.source(), panoramas=False), views)
    with pytest.raises(ReferenceIndexError, match=r"none of the 10 tiles could be read; first errors: t0: satellite"):
        build_in_parts(dataclasses.replace(build, source=source), parallel=False)


def test_faults_of_an_interrupted_attempt_do_not_outlive_it(build: Build, pairs: PairFolder, tmp_path: Path) -> None:
    manifest = ManifestSource(pairs.source(), panoramas=False)
    views = ViewGeometry.of_checkpoint(TINY, {}, "checkpoint")
    planned = dataclasses.replace(build, source=ManifestTiles(manifest, views))
    plan = Plan.of(planned, list(range(len(planned.source.ids))))
    storage.write_json(plan.faults_file(0), {"1": "satellite image is missing"})  # killed before the descriptors
    index, left_out = build_in_parts(planned, parallel=False)
    assert (len(index), left_out) == (len(planned.source.ids), [])

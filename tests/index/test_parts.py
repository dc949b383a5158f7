"""Building in parts: the same index as in one go, and nothing is embedded twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from s2s_ray import registry, storage
from s2s_ray.config import ModelConfig
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.prepare import prepare
from s2s_ray.index import ReferenceIndex
from s2s_ray.index.build import build_index
from s2s_ray.index.parts import Build, PartWriter, build_in_parts
from s2s_ray.model.checkpoint import load_checkpoint, save_model
from s2s_ray.model.s2s import S2S
from tests.conftest import PairFolder

TINY = ModelConfig(
    height=32, width=40, channels=4, residual_blocks=1, discriminator_channels=4, street_blocks=(1, 1, 1), masks=2
)
TILES = 7


@pytest.fixture
def build(pairs: PairFolder, tmp_path: Path) -> Build:
    for number in range(TILES):
        pairs.add(f"t{number}", "test", latitude=48 + number, longitude=11)
    for name in ("a", "b"):
        pairs.add(name, "train")
    pairs.add("v", "val")
    prepare(pairs.config(tmp_path / "data"))
    save_model(S2S(TINY).eval(), {"run": "r", "step": 1, "metrics": {}}, tmp_path / "local")
    storage.publish(tmp_path / "local", str(tmp_path / "checkpoint"))
    return Build(str(tmp_path / "checkpoint"), str(tmp_path / "data"), "test", str(tmp_path / "index"), batch=2, part=3)


def test_parts_make_the_same_index(build: Build) -> None:
    assert build_in_parts(build, parallel=False) == TILES
    assert not storage.exists(f"{build.out}.parts")
    found = ReferenceIndex.load(build.out)
    mark = registry.fingerprint(build.checkpoint)
    whole = build_index(
        load_checkpoint(build.checkpoint), build.open_dataset(), checkpoint_fingerprint=mark, split="test"
    )
    assert found.info == whole.info
    queries = np.eye(TINY.descriptor_size, dtype=np.float32)[:4]
    for ours, theirs in zip(found.search(queries, 3), whole.search(queries, 3), strict=True):
        assert [match.id for match in ours] == [match.id for match in theirs]
    assert found.pictures is not None
    assert found.pictures.thumbnail(TILES - 1)


def test_a_stopped_build_goes_on(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    write = PartWriter.__call__

    def stopped_at_two(self: PartWriter, row: dict[str, int]) -> dict[str, int]:
        if row["item"] == 2 and not written.count(2):
            written.append(2)
            raise KeyboardInterrupt
        written.append(row["item"])
        return write(self, row)

    monkeypatch.setattr(PartWriter, "__call__", stopped_at_two)
    with pytest.raises(KeyboardInterrupt):
        build_in_parts(build, parallel=False)
    assert not storage.is_complete(build.out)
    assert build_in_parts(build, parallel=False) == TILES
    assert written == [0, 1, 2, 2], "what was there is not made again"
    assert len(ReferenceIndex.load(build.out)) == TILES


def test_parts_of_another_checkpoint_are_not_taken(build: Build, tmp_path: Path) -> None:
    save_model(S2S(TINY).eval(), {"run": "r", "step": 2, "metrics": {}}, tmp_path / "other")
    storage.publish(tmp_path / "other", str(tmp_path / "second"))
    dataset = PairDataset(build.dataset, "test")
    second = Build(str(tmp_path / "second"), build.dataset, "test", build.out)
    assert build.parts(dataset) != second.parts(dataset)

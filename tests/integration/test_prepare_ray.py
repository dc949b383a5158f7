"""Preparation as Ray Data tasks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from s2s_ray.data.manifest import DatasetError
from s2s_ray.data.prepare import prepare

if TYPE_CHECKING:
    from tests.conftest import PairFolder

pytestmark = [
    pytest.mark.integration,
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),  # Ray Data sets its own old options
]


@pytest.fixture
def filled(pairs: PairFolder) -> PairFolder:
    """Twenty pairs, two of them unusable."""
    for k in range(16):
        pairs.add(f"train{k}", latitude=47 + k / 100, longitude=11)
    for k in range(4):
        pairs.add(f"test{k}", "test")
    (pairs.path / "train5-street.png").unlink()
    os.truncate(pairs.path / "test2-satellite.png", 200)
    return pairs


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_ray_and_a_plain_loop_write_the_same_bytes(
    filled: PairFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with_ray = prepare(filled.config("with-ray", shard_mb=0.02, parallel=True))  # relative: the tasks run elsewhere
    plain = prepare(filled.config("plain", shard_mb=0.02, parallel=False))
    assert with_ray == plain
    assert len(plain.split("train").shards) > 2
    assert [entry.id for entry in plain.quarantine] == ["train5", "test2"]
    assert content(tmp_path / "with-ray") == content(tmp_path / "plain")


def test_ray_goes_on_where_a_run_was_stopped(filled: PairFolder, tmp_path: Path) -> None:
    config = filled.config(tmp_path / "set", shard_mb=0.02, parallel=True)
    prepare(config)
    whole = content(tmp_path / "set")
    (tmp_path / "set" / "dataset.json").unlink()
    (tmp_path / "set" / "train-00001.json").unlink()
    kept = (tmp_path / "set" / "train-00000.arrow").stat().st_ino
    replaced = (tmp_path / "set" / "train-00001.arrow").stat().st_ino
    prepare(config)
    assert content(tmp_path / "set") == whole
    assert (tmp_path / "set" / "train-00000.arrow").stat().st_ino == kept
    assert (tmp_path / "set" / "train-00001.arrow").stat().st_ino != replaced


def test_an_error_in_a_task_is_told_in_one_sentence(filled: PairFolder, tmp_path: Path) -> None:
    """The target breaks while the work is under way: a directory is where a shard should go."""
    (tmp_path / "set" / "train-00001.arrow").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"train-00001.arrow: Is a directory"):
        prepare(filled.config(tmp_path / "set", shard_mb=0.02, parallel=True))
    assert not (tmp_path / "set" / "dataset.json").exists()

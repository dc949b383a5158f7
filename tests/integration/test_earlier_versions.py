"""A data set, a run, a sweep and a release written by version 0.1.0 are still read, resumed, continued and served.

tests/fixtures/written_by_0.1.0/README.md says how they were made.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from s2s_ray import load_checkpoint, registry
from s2s_ray.client import Client
from s2s_ray.config import load_stored, with_values
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.verify import verify
from s2s_ray.index import ReferenceIndex
from s2s_ray.monitoring.inventory import take_inventory
from s2s_ray.service.settings import ServeArgs
from s2s_ray.training.loop import Trainer
from tests.support.in_process_service import application, listening

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = ROOT / "tests" / "fixtures" / "written_by_0.1.0"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Return a copy that a test may change, at another place than where the files were written."""
    return Path(shutil.copytree(WRITTEN, tmp_path / "written"))


def test_the_data_set_is_read(written: Path) -> None:
    verify(str(written / "data"))

    dataset = PairDataset(str(written / "data"), "train")

    assert len(dataset) == 7
    assert dataset[0].street.shape == (3, 32, 40)


def test_the_run_is_resumed_and_learns_what_the_earlier_version_learnt(written: Path) -> None:
    expected = json.loads((written / "expected_third_epoch.json").read_text())
    path = written / "runs" / "first" / "config.yaml"
    stored = load_stored(path.read_bytes(), str(path))
    values = {"data.uri": str(written / "data"), "train.storage": str(written / "runs"), "train.epochs": 3}

    Trainer(with_values(stored, values)).fit()

    history = json.loads((written / "runs" / "first" / "history.json").read_text())
    assert [epoch["step"] for epoch in history] == [2, 4, 6]
    for key, value in expected.items():
        assert history[-1][key] == pytest.approx(value, rel=1e-3), key


@pytest.mark.timeout(600)
def test_the_sweep_is_extended(written: Path) -> None:
    before = trials(written)
    values = [
        f"data.uri={written / 'data'}",
        f"tune.storage={written / 'sweeps'}",
        f"tune.registry={written / 'registry'}",
        "train.epochs=1",
        "tune.trials=3",
    ]
    options = [word for value in values for word in ("--set", value)]

    done = subprocess.run(
        [sys.executable, "-m", "s2s_ray.cli", "tune", "--config", str(written / "config.yaml"), *options],
        capture_output=True, text=True, timeout=500, cwd=written,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    after = trials(written)
    assert len(after) == len(before) + 1 == 3
    for old, new in zip(before, after, strict=False):
        assert {key: new[key] for key in ("number", "loss.alpha", "state")} == {
            key: old[key] for key in ("number", "loss.alpha", "state")
        }


def trials(written: Path) -> list[dict[str, Any]]:
    """Return the rows of the sweep's table of trials."""
    rows: list[dict[str, Any]] = pq.read_table(written / "sweeps" / "night" / "trials.parquet").to_pylist()
    return rows


def test_the_release_is_served_and_can_be_rolled_back(written: Path) -> None:
    root = str(written / "registry")
    release = registry.resolve(root, "city")
    image = np.random.default_rng(0).integers(0, 256, (20, 40, 3), np.uint8)

    with listening(application(ServeArgs(registry=root, name="city"))) as url, Client(url) as client:
        [matches] = client.localize([image], k=4)
        assert client.model()["release"] == release.id

    assert sorted(match.id for match in matches) == [f"test-{k:05d}" for k in range(4)]
    published = registry.publish(root, "city", release.checkpoint_uri, release.index_uri)
    assert published.id == release.id
    assert registry.promote(root, "city", release.id).id == release.id


def test_the_checkpoint_and_the_index_fit_each_other(written: Path) -> None:
    release = registry.resolve(str(written / "registry"), "city")
    assert release.index_uri is not None
    index = ReferenceIndex.load(release.index_uri)
    model = load_checkpoint(release.checkpoint_uri)

    index.info.require(model.config.descriptor_size, registry.fingerprint(release.checkpoint_uri))

    dataset = PairDataset(str(written / "data"), "test")
    polar = dataset[0].polar[None]
    [[match]] = index.search(model.embed_satellite(polar).detach().numpy(), 1)
    assert match.id == dataset.ids[0]
    assert match.descriptor_distance == pytest.approx(0, abs=1e-5)


def test_the_inventory_lists_everything(written: Path) -> None:
    found = json.dumps(take_inventory(str(written)).as_dict())

    for name in ("first", "night", "city"):
        assert name in found

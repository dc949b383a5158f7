"""`s2s checkpoint calibrate`, `publish`, `floor` and `promote` from a data set to a promoted release."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from s2s_ray import cli, registry, storage
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.entries import entries_table
from s2s_ray.data.prepare import prepare
from s2s_ray.index import IndexInfo, ReferenceIndex
from s2s_ray.localization import Calibration
from s2s_ray.model.checkpoint import save_model
from s2s_ray.model.s2s import S2S
from tests.support.models import tiny_model
from tests.support.pair_folder import PairFolder

PAIRS = 21


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with validation pairs, a checkpoint with random weights that was trained on it, and its index."""
    folder = tmp_path_factory.mktemp("city")
    pairs = PairFolder(folder / "pairs")
    for split, count in (("train", 3), ("val", PAIRS), ("test", 1)):
        for number in range(count):
            pairs.add(f"{split}-{number}", split, latitude=-35.3 + number / 1000, longitude=149.1)
    prepare(pairs.config(folder / "data"))
    torch.manual_seed(0)
    meta = {"run": "city", "step": 3, "metrics": {"recall_at_1": 0.4}, "dataset": {"uri": str(folder / "data")}}
    save_model(S2S(tiny_model()), meta, folder / "local")
    storage.publish(folder / "local", str(folder / "checkpoint"))
    dataset = PairDataset(str(folder / "data"), "val")
    size = tiny_model().descriptor_size
    info = IndexInfo(
        dimension=size,
        count=PAIRS,
        checkpoint=registry.fingerprint(str(folder / "checkpoint")),
        dataset="d",
        dataset_digest="x",
    )
    ReferenceIndex.build(info, np.eye(PAIRS, size, dtype=np.float32), entries_table(dataset)).save(
        str(folder / "index")
    )
    return folder


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Return the exit code, the output and the errors of `s2s checkpoint`."""
    code = 0
    try:
        cli.main(["checkpoint", *words])
    except SystemExit as ended:
        code = int(ended.code or 0)
    return code, *capsys.readouterr()


def test_from_calibration_to_promotion(city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, out, root = str(city / "checkpoint"), str(tmp_path / "calibration.json"), str(tmp_path / "registry")
    name = ("--registry", root, "--name", "city")
    code, printed, _ = run(capsys, "calibrate", "--checkpoint", checkpoint, "--out", out, "--device", "cpu")
    assert code == 0
    assert printed.splitlines()[0].startswith("fov  heading  right  within 68%")
    assert [line.split()[:2] for line in printed.splitlines()[1:9]] == [
        [fov, known] for known in ("known", "unknown") for fov in ("360", "180", "90", "70")
    ]
    made = Calibration.read(out)
    assert made.checkpoint == registry.fingerprint(checkpoint)
    assert made.tiles == PAIRS + 3, "validation and training tiles"
    assert made.kinds[0].reliability.pictures == PAIRS

    publish = ("publish", "--checkpoint", checkpoint, "--index", str(city / "index"), *name)
    code, printed, _ = run(capsys, *publish, "--no-calibration")
    id = printed.split()[1]
    assert (code, printed) == (0, f"release {id} of city, without a calibration\n")
    code, printed, _ = run(capsys, *publish, "--calibration", out)
    assert (code, printed) == (0, f"release {id} of city\n")
    assert registry.read_calibration(registry.resolve(root, "city", id)) == made
    assert run(capsys, *publish)[0] == 0, "one that is there is kept"

    assert run(capsys, "floor", *name)[1] == "floor of city: none\n"
    assert run(capsys, "floor", *name, "--recall", "0.5")[1] == "floor of city: recall 0.5\n"
    both = "floor of city: recall 0.5, calibration error 0.9\n"
    assert run(capsys, "floor", *name, "--calibration-error", "0.9")[1] == both
    assert run(capsys, "floor", *name)[1] == both
    code, _, error = run(capsys, "promote", id, *name)
    assert code == 2
    assert "its validation R@1 is 40.0%, below the floor of 50.0%" in error
    assert run(capsys, "promote", id, *name, "--force")[:2] == (0, f"city is now {id}\n")
    assert run(capsys, "floor", *name, "--none")[1] == "floor of city: none\n"


def test_published_with_a_calibration_of_its_own(
    city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(tmp_path / "registry")
    words = ("--checkpoint", str(city / "checkpoint"), "--index", str(city / "index"), "--registry", root)
    code, printed, _ = run(capsys, "publish", *words, "--name", "city", "--device", "cpu")
    assert code == 0
    release = registry.resolve(root, "city", printed.split()[1])
    found = registry.read_calibration(release)
    assert found is not None
    assert found.dataset == str(city / "data")


def test_a_name_without_releases_gets_no_floor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = run(capsys, "floor", "--registry", str(tmp_path), "--name", "typo", "--recall", "0.5")
    assert code != 0
    assert "has no releases of 'typo'" in error
    assert list(tmp_path.iterdir()) == []


def test_options_that_contradict_each_other(city: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = ("--registry", "r", "--name", "city")
    words = ("--checkpoint", str(city / "checkpoint"))
    for options, expected in (
        (("publish", *words, "--index", "i", *name, "--calibration", "c", "--no-calibration"), "give either"),
        (("floor", *name, "--none", "--recall", "0.5"), "--none asks for nothing"),
        (("calibrate", *words, "--out", "o", "--pictures", "5", "--device", "cpu"), "pictures=5: expected at least 20"),
        (("calibrate", *words, "--out", "o", "--every", "0", "--device", "cpu"), "every_m=0: expected metres above 0"),
    ):
        code, _, error = run(capsys, *options)
        assert code == 2
        assert expected in error

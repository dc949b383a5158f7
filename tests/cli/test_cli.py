"""The command line: errors as one line and an exit code, and what the verbs print."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from s2s_ray import cli, config, storage
from s2s_ray.cli import pipeline
from s2s_ray.config import EvaluationConfig
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.prepare import prepare
from s2s_ray.errors import DivergedError, StoppedError
from s2s_ray.evaluation.evaluate import evaluate
from s2s_ray.geo.region import Region
from s2s_ray.index import ReferenceIndex, read_info
from s2s_ray.inference import Embedder
from s2s_ray.model.checkpoint import save_model
from s2s_ray.model.s2s import S2S
from s2s_ray.sweep import sweep
from s2s_ray.training import ray_train
from tests.support.models import tiny_model

if TYPE_CHECKING:
    from tests.support.pair_folder import PairFolder


@pytest.mark.parametrize(
    ("verb", "fault", "code", "line"),
    [
        ("train", DivergedError("step 5: gan is nan"), 1, "s2s: training diverged at step 5: gan is nan\n"),
        ("train", StoppedError("training stopped"), 130, "s2s: training stopped\n"),
        ("tune", StoppedError("sweep stopped"), 130, "s2s: sweep stopped\n"),
    ],
)
def test_interrupted_work(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    fault: Exception,
    code: int,
    line: str,
) -> None:
    def interrupted(config: object) -> None:
        raise fault

    monkeypatch.setattr(pipeline, "ray_cluster", nullcontext)
    monkeypatch.setattr(ray_train, "train", interrupted)
    monkeypatch.setattr(sweep, "sweep", interrupted)
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "-c", "tiny"])
    assert (ended.value.code, capsys.readouterr().err) == (code, line)


def test_user_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["config", "-s", "train.batch=none"])
    error = capsys.readouterr().err
    assert error.startswith("s2s: train.batch='none': ")
    assert error.count("\n") == 1


def test_debug_shows_the_traceback_of_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["--debug", "config", "-s", "train.batch=none"])
    error = capsys.readouterr().err
    assert error.startswith("Traceback (most recent call last):")
    assert error.splitlines()[-1].startswith("s2s: train.batch='none': ")


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object) -> None:
        raise ValueError("not an error of the library")

    monkeypatch.setattr(config, "load_config", broken)
    with pytest.raises(ValueError, match="not an error of the library"):
        cli.main(["config"])


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, pair_folder: type[PairFolder]) -> dict[str, str]:
    """A data set of twelve test pairs, a narrow checkpoint with random weights and its recall at 5, in percent."""
    folder = tmp_path_factory.mktemp("measured")
    pairs = pair_folder(folder / "pairs")
    for split, count in (("train", 3), ("test", 12)):
        for number in range(count):
            pairs.add(f"{split}-{number}", split, latitude=-35.3 + number / 1000, longitude=149.1)
    prepare(pairs.config(folder / "data"))
    torch.manual_seed(0)
    model = S2S(tiny_model())
    save_model(model, {"run": "none", "step": 0}, folder / "local")
    storage.publish(folder / "local", str(folder / "checkpoint"))
    dataset = PairDataset(str(folder / "data"), "test")
    recall = evaluate(model, dataset, EvaluationConfig(batch=4)).street_to_satellite.recall["5"]
    return {"data": str(folder / "data"), "checkpoint": str(folder / "checkpoint"), "r5": f"{100 * recall:.2f}"}


def test_a_checkpoint_is_measured_again(measured: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    def verify(*arguments: str) -> int:
        try:
            cli.main(["checkpoint", "verify", measured["checkpoint"], "--data", measured["data"], *arguments])
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    assert verify("--expect", f"r5={measured['r5']}", "--expect", "r1=0") == 0
    assert f"R@5 {measured['r5']}% of 12 tiles" in capsys.readouterr().out
    assert verify("--expect", "r1=100", "--expect", "r5=99.9") == 1
    error = capsys.readouterr().err
    assert "r1 is " in error
    assert "below the expected 99.9% (tolerance 0.5)" in error
    assert verify("--expect", "r1=100", "--set", "evaluation.radius_m=100000") == 0  # every tile is correct
    assert verify("--expect", "top1=3") == 2
    assert "--expect 'top1=3': expected one of r1, r5, r10, r1%" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu(measured: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["evaluate", "--checkpoint", measured["checkpoint"], "--out", "nowhere", "-c", "paper"])
    assert "train.use_gpu=True, but this machine has no CUDA device" in capsys.readouterr().err


def test_tiles_are_indexed_without_panoramas(
    measured: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    rows = ["id,satellite,latitude,longitude"]
    for number in range(4):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / f"{number}.png")
        rows.append(f"tile-{number},{number}.png,{-35 - number / 100},149.0")
    (tmp_path / "2.png").unlink()
    (tmp_path / "tiles.csv").write_text("\n".join(rows))
    source = ["-s", "source.kind=manifest", "-s", f"source.uri={tmp_path / 'tiles.csv'}", "-c", "tiny"]
    verb = ["build-index", "--checkpoint", measured["checkpoint"], "--out", str(tmp_path / "index"), "--tiles"]
    with pytest.raises(SystemExit, match="0"):
        cli.main([*verb, *source])
    printed = capsys.readouterr()
    assert "3 tiles indexed" in printed.out
    assert "left out: tile-2: satellite image is missing" in printed.err
    embedder, index = Embedder.load(measured["checkpoint"]), ReferenceIndex.load(str(tmp_path / "index"))
    tile = np.asarray(Image.open(tmp_path / "3.png"))
    [[found]] = index.search(embedder.satellite([tile]), 1)
    assert (found.id, found.latitude, found.longitude) == ("tile-3", -35.03, 149.0)
    assert found.descriptor_distance == pytest.approx(0.0, abs=1e-5)

    shutil.copy(tmp_path / "3.png", tmp_path / "2.png")
    verb[4] = str(tmp_path / "longer")
    with pytest.raises(SystemExit, match="0"):
        cli.main([*verb, *source, "--extends", str(tmp_path / "index")])
    assert f"4 tiles indexed in {verb[4]}, 1 of them new\n" == capsys.readouterr().out
    assert {match.id for match in ReferenceIndex.load(verb[4]).search(embedder.satellite([tile]), 2)[0]} == {
        "tile-2",
        "tile-3",
    }
    with pytest.raises(SystemExit, match="2"):
        cli.main([*verb, "-c", "tiny"])
    assert "source.kind='synthetic': --tiles needs a source of the kind 'manifest'" in capsys.readouterr().err


def test_a_region_is_indexed_without_a_list_of_places(
    measured: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verb = ["build-index", "--checkpoint", measured["checkpoint"], "-c", "tiny", "-s", "source.tile_px=32"]
    every = ["--every", "20", "-s", "source.tile_m=64"]

    def index(out: str, region: str, *more: str) -> tuple[str, str]:
        with pytest.raises(SystemExit, match="0"):
            cli.main([*verb, *every, "--out", str(tmp_path / out), "--region", region, *more])
        printed = capsys.readouterr()
        return printed.out, printed.err

    out, err = index("west", "149.1,-35.31,149.102,-35.308")
    assert out == f"99 tiles indexed in {tmp_path / 'west'}\n"
    assert re.search(r"^99 tiles of 64 m, every 20 m\nabout \d+ (s|min) in one process, about 1 MB \(cpu\)$", err, re.M)
    info = read_info(str(tmp_path / "west"))
    assert (info.dataset, info.count) == ("synthetic:0", 99)
    assert info.region is not None
    assert (info.region.every_m, info.region.tile_m) == (20, 64)
    assert info.region.bounds == (149.1, -35.31, 149.102, -35.308)

    box = Region.parse("149.101,-35.31,149.103,-35.308")
    (tmp_path / "east.geojson").write_text(json.dumps(box.geojson()))
    out, err = index("both", str(tmp_path / "east.geojson"), "--extends", str(tmp_path / "west"))
    added = set(map(tuple, box.grid_cells(20).tolist()))
    added -= set(map(tuple, Region.parse("149.1,-35.31,149.102,-35.308").grid_cells(20).tolist()))
    assert out == f"{99 + len(added)} tiles indexed in {tmp_path / 'both'}, {len(added)} of them new\n"
    assert f", {len(added)} of them new\n" in err
    assert len(ReferenceIndex.load(str(tmp_path / "both"))) == 99 + len(added)


def test_a_missing_extra_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise ModuleNotFoundError("No module named 'optuna.samplers'", name="optuna.samplers")

    with pytest.raises(SystemExit, match="2"):
        cli.run("s2s", command)
    assert capsys.readouterr().err == "s2s: optuna is not installed: pip install 's2s-ray[tune]'\n"

    for error in (ModuleNotFoundError("No module named 'ray'", name="ray"), ImportError("pip install ray[serve]")):
        for verb, extra in (
            ("serve", "serve"),
            ("tune", "tune"),
            ("ablate", "tune"),
            ("train", "train"),
            (None, "train"),
        ):

            def without_ray(error: ImportError = error) -> None:
                raise error

            with pytest.raises(SystemExit, match="2"):
                cli.run("s2s", without_ray, {"verb": verb})
            assert capsys.readouterr().err == f"s2s: ray is not installed: pip install 's2s-ray[{extra}]'\n"

    def bug() -> None:
        raise ModuleNotFoundError("No module named 's2s_ray.nothing'", name="s2s_ray.nothing")

    with pytest.raises(ModuleNotFoundError):
        cli.run("s2s", bug)

"""`s2s evaluate`: protocols and the calibration, printed and in files."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from s2s_ray import cli, storage
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.prepare import prepare
from s2s_ray.evaluation.protocols import Protocol, measure
from s2s_ray.inference import Embedder
from s2s_ray.localization import calibrate
from s2s_ray.localization.calibration import Calibration
from s2s_ray.model.checkpoint import load_checkpoint, save_model
from s2s_ray.model.checkpoint_meta import fingerprint
from s2s_ray.model.s2s import S2S
from tests.support.calibrations import calibration
from tests.support.models import tiny_model
from tests.support.pair_folder import PairFolder

PAIRS = 22
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, pair_folder: type[PairFolder]) -> dict[str, str]:
    """A data set of test pairs with positions, and a narrow checkpoint with random weights."""
    folder = tmp_path_factory.mktemp("stored")
    pairs = pair_folder(folder / "pairs")
    for split, count in (("train", 3), ("test", PAIRS)):
        for number in range(count):
            pairs.add(f"{split}-{number}", split, latitude=-35.3 + number / 1000, longitude=149.1)
    prepare(pairs.config(folder / "data"))
    torch.manual_seed(0)
    save_model(S2S(tiny_model()), {"run": "none", "step": 0}, folder / "local")
    storage.publish(folder / "local", str(folder / "checkpoint"))
    return {"data": str(folder / "data"), "checkpoint": str(folder / "checkpoint")}


def s2s(stored: dict[str, str], verb: str, *arguments: str) -> int:
    name = ["--checkpoint", stored["checkpoint"]] if verb == "evaluate" else [stored["checkpoint"]]
    settings = [f"data.uri={stored['data']}", "evaluation.gallery_rows=2", "evaluation.batch=8"]
    options = [part for setting in settings for part in ("-s", setting)]
    try:
        cli.main([verb, *name, "-c", "tiny", *options, *arguments])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_protocols_are_one_table(stored: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--protocol", "aligned, heading", "--protocol", "fov=90+heading", "--seeds", "2"]
    assert s2s(stored, "evaluate", "--out", str(tmp_path), *given) == 0
    header, *rows, last = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["protocol", "R@1", "%", "R@5"]
    assert [row.split()[0] for row in rows] == ["aligned", "heading", "heading+fov=90"]
    assert last == f"{tmp_path}/metrics.json has every figure"
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert list(metrics["protocols"]) == ["aligned", "heading", "heading+fov=90"]
    model, dataset = load_checkpoint(stored["checkpoint"]), PairDataset(stored["data"], "test")
    for name, figures in metrics["protocols"].items():
        protocol = Protocol.parse(name)
        seeds = (0, 1) if protocol.heading else (0,)
        each = [measure(model, dataset, dataset.info.geometry, protocol, seed) for seed in seeds]
        assert [one["recall_at_5"] for one in figures["by_seed"]] == [one["recall_at_5"] for one in each]
    assert metrics["protocols"]["aligned"]["recall_at_5"] == metrics["street_to_satellite"]["recall_at_5"]
    queries = pq.read_table(tmp_path / "queries.parquet")
    assert queries["aligned.rank"].to_pylist() == queries["rank_street_to_satellite"].to_pylist()
    assert queries["aligned.heading_error"].null_count == PAIRS
    assert queries["heading.heading_error"].null_count == 0


def test_without_protocols_the_output_is_what_it_was(
    stored: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert s2s(stored, "evaluate", "--out", str(tmp_path)) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "metrics.json").read_text())
    assert not {"protocols", "calibration"} & set(printed)
    assert {path.name for path in tmp_path.iterdir()} == {
        "metrics.json",
        "queries.parquet",
        "retrieval.png",
        "synthesis.png",
    }


@pytest.fixture
def calibrated(stored: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Calibration:
    """Calibrate to some calibration, without the time that it takes."""
    expected = calibration(fingerprint(stored["checkpoint"]))

    def calibrated(embedder: Embedder, dataset: PairDataset, *, checkpoint: str, seed: int) -> Calibration:
        assert (dataset.uri, len(dataset), seed) == (stored["data"], PAIRS, 0)
        assert embedder.geometry == dataset.info.geometry
        assert checkpoint == expected.checkpoint
        return expected

    monkeypatch.setattr(calibrate, "calibrate", calibrated)
    return expected


def test_the_calibration_is_reported(
    stored: dict[str, str], tmp_path: Path, calibrated: Calibration, capsys: pytest.CaptureFixture[str]
) -> None:
    assert s2s(stored, "evaluate", "--out", str(tmp_path), "--calibration") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["pictures"][0] == f"{tmp_path}/reliability.png"
    with Image.open(tmp_path / "reliability.png") as image:
        assert image.width > image.height
    reported = json.loads((tmp_path / "metrics.json").read_text())["calibration"]
    assert reported == printed["calibration"]
    for kind, expected in zip(reported["kinds"], calibrated.kinds, strict=True):
        assert kind["heading"] == ("known" if expected.heading_known else "unknown")
        assert kind["risk_coverage"] == expected.reliability.risk_coverage
        assert kind["auroc_region"] == expected.reliability.auroc_region


def test_the_page_shows_both(stored: dict[str, str], tmp_path: Path, calibrated: Calibration) -> None:
    page = str(tmp_path / "page.html")
    given = ["--out", page, "--calibration", "-s", "evaluation.protocols=[heading+fov=90]"]
    assert s2s(stored, "report", *given) == 0
    text = Path(page).read_text()
    assert '<td class="text">heading+fov=90</td>' in text
    assert "<h2>Confidence of fixes</h2>" in text
    assert s2s(stored, "report", "--out", page) == 0
    text = Path(page).read_text()
    assert "fov=" not in text.split("<h2>Configuration")[0]
    assert "Confidence of fixes" not in text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            ["--protocol", "heading,north"],
            "evaluation.protocols=['heading', 'north']: protocol 'north': 'north' is unknown",
        ),
        (["--protocol", "fov=400"], "fov=400: expected a field of view above 0 and at most 360 degrees"),
        (["--protocol", ""], "protocol ''"),
        (["--protocol", "heading", "--seeds", "0"], "evaluation.seeds=0"),
        (["--protocol", "offcentre=16"], "offcentre=16 needs 32 m of imagery around each tile"),
    ],
)
def test_wrong_protocols_are_refused_before_anything_is_measured(
    stored: dict[str, str], tmp_path: Path, given: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert s2s(stored, "evaluate", "--out", str(tmp_path / "out"), *given) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()

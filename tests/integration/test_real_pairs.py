"""The six real sample pairs, with the same commands as any user's images."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from s2s_ray import registry
from s2s_ray.cli import app
from s2s_ray.client import Client
from s2s_ray.config import load_config
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.prepare import prepare
from s2s_ray.geo.images import decode
from s2s_ray.geo.prior import distances_m
from s2s_ray.geo.query import Query
from s2s_ray.index.build import build_index
from s2s_ray.model.checkpoint import load_checkpoint
from s2s_ray.service.settings import ServeArgs
from s2s_ray.training.loop import Trainer
from s2s_ray.training.run import find_checkpoint, run_uri
from tests.support.in_process_service import application, listening

pytestmark = [pytest.mark.integration, pytest.mark.shared]


PAIRS = 6


def write_manifest(shared: Path, folder: Path) -> Path:
    """Write a manifest with the same six pairs, a hundred metres apart, in each split; skip without them."""
    samples = shared / "samples" / "real_pairs"
    if not samples.is_dir():
        pytest.skip("the real sample pairs are not at hand")
    manifest = folder / "pairs.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("id", "satellite", "street", "split", "latitude", "longitude"))
        for split in ("train", "val", "test"):
            for number in range(PAIRS):
                images = (samples / f"{number:03d}_{view}.png" for view in ("satellite", "street"))
                rows.writerow((f"{split}-{number}", *images, split, *place(number)))
    return manifest


def place(number: int) -> tuple[float, float]:
    """Return a latitude and longitude for a pair; the images came without."""
    return -35.3 + number / 1000, 149.1


@pytest.mark.timeout(600)
def test_six_real_pairs_are_memorised(shared: Path, tmp_path: Path) -> None:
    manifest = write_manifest(shared, tmp_path)
    settings = (
        "source.kind=manifest",
        f"source.uri={manifest}",
        f"data.uri={tmp_path / 'data'}",
        f"train.storage={tmp_path / 'runs'}",
        "train.name=real",
        "train.workers=1",
        "train.batch=6",
        "train.epochs=45",
        "train.validate_every=15",
        "data.flip=0",
        "prepare.parallel=false",
    )
    options = ["--config", "tiny", *(part for setting in settings for part in ("--set", setting))]
    runner = CliRunner()

    def s2s(*arguments: str) -> str:
        done = runner.invoke(app, [*arguments, *options], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    s2s("prepare")
    s2s("train")
    run = str(tmp_path / "runs" / "real")
    s2s("evaluate", "--checkpoint", run, "--out", str(tmp_path / "evaluation"))
    metrics = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert metrics["gallery"] == 6
    assert metrics["street_to_satellite"]["recall_at_1"] == 1.0  # memorised: the six were trained on
    assert metrics["satellite_to_street"]["recall_at_1"] == 1.0
    history = json.loads((tmp_path / "runs" / "real" / "history.json").read_text())
    assert history[-1]["l1_weighted"] < 0.5 * history[0]["l1_weighted"]
    for name in ("retrieval.png", "synthesis.png"):
        assert (tmp_path / "evaluation" / name).stat().st_size > 10_000


@pytest.fixture(scope="module")
def client(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """The service with a small model for partial views that has memorised the six pairs."""
    folder = tmp_path_factory.mktemp("memorised")
    settings = (
        "source.kind=manifest",
        f"source.uri={write_manifest(shared, folder)}",
        f"data.uri={folder / 'data'}",
        "data.flip=0",
        "prepare.parallel=false",
        "model.width=88",
        "model.channels=4",
        "model.ablation=retrieval_only",
        "model.pooling=azimuth",
        "model.circular=true",
        "loss.retrieval=infonce",
        "loss.scale=20",
        "loss.turned=1",
        "augmentation.fov=[150, 240]",
        "augmentation.fov_probability=0.75",
        f"train.storage={folder / 'runs'}",
        f"train.batch={PAIRS}",
        "train.epochs=120",
        "train.validate_every=120",
        "train.lr_generator=3e-3",
        "train.lr_retrieval=3e-3",
    )
    config = load_config("tiny", settings)
    prepare(config)
    Trainer(config).fit()
    checkpoint = find_checkpoint(run_uri(config))
    dataset = PairDataset.open(config.data, "test")
    fingerprint = registry.fingerprint(checkpoint)
    index = build_index(load_checkpoint(checkpoint), dataset, checkpoint_fingerprint=fingerprint, split="test")
    index.save(str(folder / "index"))
    with (
        listening(application(ServeArgs(checkpoint=checkpoint, index=str(folder / "index")))) as url,
        Client(url) as opened,
    ):
        yield opened


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("fov", "query"),
    [
        (360, Query()),  # a panorama of which nothing is said
        (180, Query(heading="unknown", fov=180, projection="equirectangular")),
        (180, Query(fov=180, projection="equirectangular")),  # with its heading, below
    ],
    ids=["panorama", "half", "half with heading"],
)
def test_memorised_pairs_are_found_however_they_are_turned_and_cropped(
    shared: Path, client: Client, fov: int, query: Query, request: pytest.FixtureRequest
) -> None:
    random = np.random.default_rng(19)
    known = "with heading" in request.node.name
    errors: list[float] = []
    metres: list[float] = []
    for number in range(PAIRS):
        panorama = decode((shared / "samples" / "real_pairs" / f"{number:03d}_street.png").read_bytes())
        width = panorama.shape[1]
        for column in random.integers(0, width, 3).tolist():
            heading = 360 * column / width
            shown = round(width * fov / 360)
            first = (width - shown) // 2
            picture = np.roll(panorama, -column, axis=1)[:, first : first + shown]  # `column` is in the middle
            [found] = client.locate([picture], replace(query, heading=heading) if known else query)
            assert found.matches[0].id == f"test-{number}", f"pair {number} at {heading:.0f} degrees"
            assert found.query.heading is not None
            errors.append(abs((found.query.heading - heading + 180) % 360 - 180))
            assert (found.query.heading_origin, found.query.fov) == ("given" if known else "estimated", fov)
            assert found.fix is not None
            fix = np.array([found.fix.latitude]), np.array([found.fix.longitude])
            metres.append(float(distances_m(*place(number), *fix)[0]))
    assert max(errors) <= (1e-3 if known else 10)
    assert max(metres) < 25

"""`make demo`: from a procedural city to a service that says where a picture was taken.

Everything is written to one folder, ./demo, whose contents are replaced at each run.
"""

from __future__ import annotations

import json
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx2
import numpy as np
import torch
import typer
from pyproj import Geod
from rich.console import Console
from rich.table import Table

from s2s_ray import registry
from s2s_ray.cli import run
from s2s_ray.config import Config, EvaluationConfig, SyntheticSourceConfig, load_config, with_values
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.prepare import prepare
from s2s_ray.data.schema import Record, TileSize
from s2s_ray.data.sources import open_source
from s2s_ray.data.sources.synthetic import CityImagery, SyntheticSource, unseen_region
from s2s_ray.evaluation.evaluate import EvaluationReport, evaluate
from s2s_ray.evaluation.fix_map import Located, fix_map
from s2s_ray.evaluation.galleries import save, training_curves
from s2s_ray.geo.images import encode
from s2s_ray.geo.query import Query
from s2s_ray.geo.region import Region
from s2s_ray.geo.views import ViewGeometry
from s2s_ray.index.build import build, build_index
from s2s_ray.index.region import RegionTiles
from s2s_ray.inference import Localizer
from s2s_ray.model.checkpoint import load_checkpoint
from s2s_ray.model.checkpoint_meta import read_meta
from s2s_ray.model.s2s import S2S
from s2s_ray.publishing import publish_calibrated
from s2s_ray.runtime.cluster import ray_cluster

NAME = "demo"
REGION = "region"
FOLDERS = ("data", "sweeps", "runs", "registry", "index", "region", "pictures")
SWEEP = (
    "tune.trials=4",
    "tune.scheduler=none",
    "tune.calibrate=false",
    "tune.space={loss.lambda_ret: {low: 300, high: 3000, log: true}, loss.lambda_l1: {low: 30, high: 300, log: true}, "
    "loss.scale: {low: 10, high: 30, log: true}}",
)
SHORT = {"model.channels": 4, "model.discriminator_channels": 8, "train.epochs": 1, "train.workers": 1}
QUERIES = 60  # held-out panoramas sent to the service
PROTOCOLS = {
    "heading": "recall at 1, heading unknown",
    "fov=90": "recall at 1, 90 degrees seen",
    "heading+fov=90": "recall at 1, 90 degrees seen, heading unknown",
}
EVERY_M = 8.0  # between the tiles of a region that is indexed without a list of places
PICTURES = 60  # taken in it where the city places people
NEXT = """What to run next:
  make serve                                      serve the same release on http://127.0.0.1:8000, until Ctrl-C
  .venv/bin/s2s serve --registry demo/registry --name region      the same for the region: drop a picture on the page
  .venv/bin/s2s evaluate --checkpoint demo/runs/demo --out demo/again
  .venv/bin/s2s config -c small                   the next larger model; README.md has your own images and clusters"""


class Stages:
    """The stages of the demo: prints when each begins and ends, and keeps its seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str, description: str) -> Iterator[None]:
        """Time the block as the stage `name`."""
        print(f"\n== {name}: {description}", flush=True)
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)
        print(f"== {name}: {self.seconds[name]:.0f} s", flush=True)


def main(
    folder: Annotated[Path, typer.Option(help="Folder that everything is written to.")] = Path("demo"),
    side: Annotated[float, typer.Option(help="Metres that the region is wide in which pictures are located.")] = 300.0,
    overrides: Annotated[list[str] | None, typer.Option("--set", "-s", help="Change the preset: a.b=value.")] = None,
) -> None:
    """Run all stages and write `summary.json`."""
    config = settings(folder, overrides or [])
    for name in FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "summary.json").unlink(missing_ok=True)
    stage = Stages()
    with ray_cluster():
        with stage("prepare", "render a city, polar-transform its tiles and write Arrow shards"):
            prepare(config)
        with stage("sweep", f"search the loss weights in {config.tune.trials} short trials of a narrower model"):
            config = tuned(config)
        with stage("train", f"train synthesis and retrieval on {config.train.workers} Ray Train workers"):
            best = fit(config, folder)
        dataset = PairDataset.open(config.data, "test")
        with stage("evaluate", f"measure recall on {len(dataset)} held-out tiles, before and after training"):
            torch.manual_seed(config.train.seed)
            before = evaluate(S2S(config.model), dataset, config.evaluation)
            after = evaluate(load_checkpoint(best), dataset, asked(config), out=str(folder / "pictures"))
        with stage("publish", "calibrate the best checkpoint, and release it with an index of the held-out tiles"):
            publish(best, dataset, folder)
        with stage("region", f"index {side:.0f} m x {side:.0f} m every {EVERY_M:.0f} m, and find pictures in it"):
            fixes = locate(best, config, folder, side)
        with stage("serve", f"localise {min(QUERIES, len(dataset))} held-out panoramas over HTTP"):
            served = query(config, folder)
    summary = summarise(before, after, served, fixes, stage.seconds)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    show_table(summary)
    print("Pictures:", *sorted(str(path) for path in (folder / "pictures").iterdir()), sep="\n  ")
    print(NEXT)


def settings(folder: Path, overrides: list[str]) -> Config:
    """Return the `field-tiny` preset with everything in one folder."""
    places = [f"data.uri={folder}/data", f"train.storage={folder}/runs", f"train.name={NAME}"]
    sweeps = [f"tune.storage={folder}/sweeps", f"tune.registry={folder}/registry", *SWEEP]
    # Protocols are measured once, at the end; the margin is enough for training and for the calibration.
    return load_config("field-tiny", [*places, *sweeps, "evaluation.protocols=[]", "prepare.margin_m=8", *overrides])


def asked(config: Config) -> EvaluationConfig:
    """Return the settings of the evaluation, with panoramas of which less is known."""
    return config.evaluation.model_copy(update={"protocols": tuple(PROTOCOLS)})


def tuned(config: Config) -> Config:
    """Run a sweep of short trials and return the configuration with the best loss weights."""
    from s2s_ray.sweep.sweep import describe, sweep

    result = sweep(with_values(config, SHORT))
    print(describe(result))
    return config.model_copy(update={"loss": result.config.loss})


def fit(config: Config, folder: Path) -> str:
    """Train, draw the curves, and return the URI of the best checkpoint."""
    from s2s_ray.training.ray_train import train

    result = train(config)
    save(training_curves(result.history), str(folder / "pictures" / "curves.png"))
    return result.best


def publish(checkpoint: str, dataset: PairDataset, folder: Path) -> None:
    """Index the split, publish both as a release and promote it."""
    fingerprint = registry.fingerprint(checkpoint)
    index = build_index(load_checkpoint(checkpoint), dataset, checkpoint_fingerprint=fingerprint, split="test")
    index.save(str(folder / "index"))
    release = publish_calibrated(str(folder / "registry"), NAME, checkpoint, str(folder / "index"))
    registry.promote(str(folder / "registry"), NAME, release.id)


def locate(checkpoint: str, config: Config, folder: Path, side_m: float) -> dict[str, Any]:
    """Index a region that training never saw, from imagery alone, release it, and find pictures taken in it.

    Returns:
        The shares of pictures whose position is within 10 m and within the 68% circle, and the median error in metres,
        for panoramas of known and of unknown heading.
    """
    assert isinstance(config.source, SyntheticSourceConfig)
    model, meta = load_checkpoint(checkpoint), read_meta(checkpoint)
    geometry, region = ViewGeometry.of_checkpoint(model.config, meta, checkpoint), unseen_region(side_m)
    size = TileSize(config.source.tile_m, config.source.tile_px)
    tiles = RegionTiles(config.source, region, EVERY_M, size, geometry)
    index, _ = build(model, tiles, checkpoint_fingerprint=registry.fingerprint(checkpoint))
    index.save(str(folder / "region"))
    calibration = registry.read_calibration(registry.resolve(str(folder / "registry"), NAME))
    release = registry.publish(
        str(folder / "registry"), REGION, checkpoint, str(folder / "region"), calibration=calibration
    )
    registry.promote(str(folder / "registry"), REGION, release.id)
    count = min(PICTURES, config.source.test_pairs)
    pictures = list(SyntheticSource(config.source).pictures(region, count))
    localizer = Localizer(model, index, geometry, calibration)
    figures: dict[str, Any] = {"tiles": len(index), "pictures": count}
    for heading in ("known", "unknown"):
        located = []
        for record, panorama in pictures:
            query = Query(heading=record.bearing if heading == "known" else "unknown", fov=360.0)
            fix = localizer.locate([panorama], query, 1)[0].fix
            assert fix is not None
            assert record.latitude is not None
            assert record.longitude is not None
            located.append(Located(fix, record.latitude, record.longitude))
        figures[heading] = errors(located)
    draw(region, side_m, config.source, located[:24], folder)
    return figures


def errors(located: list[Located]) -> dict[str, float | None]:
    """Return how far fixes are from the truth; without a calibration there are no circles."""
    metres = np.array(
        [distance_m((one.latitude, one.longitude), (one.fix.latitude, one.fix.longitude)) for one in located]
    )
    radii = [one.fix.radius_m for one in located if one.fix.radius_m is not None]
    return {
        "within_10_m": float((metres <= 10).mean()),
        "within_radius": float((metres <= np.array(radii)).mean()) if len(radii) == len(metres) else None,
        "median_m": float(np.median(metres)),
    }


def draw(region: Region, side_m: float, source: SyntheticSourceConfig, located: list[Located], folder: Path) -> None:
    """Draw some fixes of unknown heading on imagery of the region."""
    box = region.bounds
    centre = ((box.south + box.north) / 2, (box.west + box.east) / 2)
    imagery = CityImagery(source).cut(*centre, side_m, 900)
    save(fix_map(imagery, centre, side_m, located), str(folder / "pictures" / "fixes.png"))


def distance_m(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Return the metres between two positions, latitude and longitude each."""
    return float(Geod(ellps="WGS84").inv(one[1], one[0], other[1], other[0])[2])


def query(config: Config, folder: Path) -> dict[str, int]:
    """Serve the release and send held-out panoramas and tiles to it over HTTP, as a user's program would."""
    from s2s_ray.service.local import serving
    from s2s_ray.service.settings import ServeArgs

    source = open_source(config.source)
    records = [record for record in source.records() if record.split == "test"][:QUERIES]
    hits = 0
    args = ServeArgs(registry=str(folder / "registry"), name=NAME, access_log=False)
    with serving(args, "127.0.0.1", free_port()) as url, httpx2.Client(base_url=url) as http:
        for record in records:
            match = localize(http, encode(source.read(record).street, "png"))
            hits += match["id"] == record.id
            if record in records[:3]:
                show(record, match)
        for record in records[:4]:
            tile = encode(source.read(record).satellite, "png")
            drawn = http.post("/v1/synthesize", content=tile, headers={"content-type": "image/png"}, timeout=60)
            drawn.raise_for_status()
            (folder / "pictures" / f"synthesised-{record.id}.png").write_bytes(drawn.content)
    print(f"the first match was correct for {hits} of {len(records)} panoramas")
    return {"asked": len(records), "hits": hits}


def localize(http: httpx2.Client, panorama: bytes) -> dict[str, Any]:
    """Return the first match of a panorama."""
    response = http.post(
        "/v1/localize",
        params={"k": 5, "heading": 0},
        content=panorama,
        headers={"content-type": "image/png"},
        timeout=60,
    )
    response.raise_for_status()
    best: dict[str, Any] = response.json()["matches"][0]
    return best


def show(record: Record, match: dict[str, Any]) -> None:
    """Print the first match of a panorama beside its true position."""
    assert record.latitude is not None
    assert record.longitude is not None
    true, found = (record.latitude, record.longitude), (match["latitude"], match["longitude"])
    metres = distance_m(true, found)
    print(
        f"{record.id} was taken at {true[0]:.6f}, {true[1]:.6f}; the service returned {found[0]:.6f}, {found[1]:.6f}, "
        f"{metres:.0f} m away (tile {match['id']}, descriptor distance {match['descriptor_distance']:.3f})"
    )


def summarise(
    before: EvaluationReport,
    after: EvaluationReport,
    served: dict[str, int],
    fixes: dict[str, Any],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Return the contents of `summary.json`; recall as fractions, L1 of pixels in [-1, 1]."""
    recall, untrained = after.street_to_satellite.recall, before.street_to_satellite.recall
    return {
        "gallery": after.gallery,
        "recall_at_1": recall["1"],
        "recall_at_5": recall["5"],
        "recall_at_10": recall["10"],
        "recall_at_1_untrained": untrained["1"],
        "chance": after.street_to_satellite.chance,
        "protocols": {name: after.protocols[name]["recall_at_1"] for name in PROTOCOLS},
        "region": fixes,
        "asked": served["asked"],
        "recall_at_1_served": served["hits"] / served["asked"],
        "l1_before": before.synthesis["l1"],
        "l1_after": after.synthesis["l1"],
        "seconds": {**seconds, "total": round(sum(seconds.values()), 1)},
    }


def show_table(summary: dict[str, Any]) -> None:
    """Print the summary."""
    table = Table("", "untrained", "trained", title=f"{summary['gallery']} held-out tiles")
    table.add_row("recall at 1 by chance", f"{summary['chance']:.2%}", f"{summary['chance']:.2%}")
    table.add_row("recall at 1", f"{summary['recall_at_1_untrained']:.1%}", f"{summary['recall_at_1']:.1%}")
    table.add_row("recall at 5", "", f"{summary['recall_at_5']:.1%}")
    table.add_row("recall at 10", "", f"{summary['recall_at_10']:.1%}")
    for name, title in PROTOCOLS.items():
        table.add_row(title, "", f"{summary['protocols'][name]:.1%}")
    table.add_row(f"recall at 1 over HTTP, {summary['asked']} queries", "", f"{summary['recall_at_1_served']:.1%}")
    for heading in ("known", "unknown"):
        fixes = summary["region"][heading]
        table.add_row(f"fix in a region within 10 m, heading {heading}", "", f"{fixes['within_10_m']:.1%}")
        table.add_row(f"its median error in metres, heading {heading}", "", f"{fixes['median_m']:.1f}")
        within = "-" if fixes["within_radius"] is None else f"{fixes['within_radius']:.1%}"
        table.add_row(f"within its 68% circle, heading {heading}", "", within)
    table.add_row("L1 of synthesis, pixels in [-1, 1]", f"{summary['l1_before']:.3f}", f"{summary['l1_after']:.3f}")
    for name, value in summary["seconds"].items():
        table.add_row(f"seconds: {name}", "", f"{value:.0f}")
    Console(file=sys.stdout).print(table)


def free_port() -> int:
    """Return a free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    run("demo", lambda: typer.run(main))

"""`make demo`: a procedural city, from nothing to a service that says where a panorama was taken, below ./demo."""

from __future__ import annotations

import json
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch
from rich.console import Console
from rich.table import Table

from s2s_ray import registry
from s2s_ray.checkpoint import load_checkpoint
from s2s_ray.cluster import log_plainly, ray_cluster
from s2s_ray.config import Config, load_config
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.images import encode
from s2s_ray.data.prepare import prepare
from s2s_ray.data.schema import Record
from s2s_ray.data.sources import open_source
from s2s_ray.evaluation.evaluate import EvaluationReport, evaluate
from s2s_ray.evaluation.galleries import save, training_curves
from s2s_ray.index import build_index
from s2s_ray.model.s2s import S2S

FOLDER = Path("demo")
NAME = "demo"
ASKED = 60  # held-out panoramas sent to the service
NEXT = f"""What to run next:
  make serve                                      the same service on http://127.0.0.1:8000, until Ctrl-C
  .venv/bin/s2s evaluate --checkpoint demo/runs/demo --out demo/again -c demo/runs/demo/config.yaml
  .venv/bin/s2s config -c small                   the next size; README.md has your own images, S3 and clusters
Pictures: {FOLDER}/pictures/"""


class Stages:
    """Seconds of each stage, told as they begin and end."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str, what: str) -> Iterator[None]:
        print(f"\n== {name}: {what}", flush=True)
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)
        print(f"== {name}: {self.seconds[name]:.0f} s", flush=True)


def main() -> None:
    """Run all stages and write `demo/summary.json`."""
    log_plainly()
    config = settings()
    for folder in ("data", "runs", "registry", "index", "pictures"):
        shutil.rmtree(FOLDER / folder, ignore_errors=True)
    (FOLDER / "summary.json").unlink(missing_ok=True)
    stage = Stages()
    with ray_cluster():
        with stage("prepare", "a city of pairs, polar-transformed, in Arrow shards"):
            prepare(config)
        with stage("train", f"the GAN and retrieval cycle on {config.train.workers} Ray Train workers"):
            best = fit(config)
        dataset = PairDataset(config.data.uri, "test")
        with stage("evaluate", f"{len(dataset)} held-out tiles, before and after training"):
            torch.manual_seed(config.train.seed)
            before = evaluate(S2S(config.model), dataset, config.evaluation)
            after = evaluate(load_checkpoint(best), dataset, config.evaluation, out=str(FOLDER / "pictures"))
        with stage("publish", "the best checkpoint and an index of the held-out region"):
            publish(best, dataset)
        with stage("serve", f"{ASKED} held-out panoramas over HTTP"):
            served = ask(config)
    report(before, after, served, stage.seconds)


def settings() -> Config:
    """The `tiny` preset, everything below ./demo."""
    places = (f"data.uri={FOLDER}/data", f"train.storage={FOLDER}/runs", f"train.name={NAME}")
    return load_config("tiny", places)


def fit(config: Config) -> str:
    """Train, draw the curves; the best checkpoint's URI."""
    from s2s_ray.training.ray_train import train

    result = train(config)
    save(training_curves(result.history), str(FOLDER / "pictures" / "curves.png"))
    return result.best


def publish(checkpoint: str, dataset: PairDataset) -> None:
    """Index the split, publish both as a release and promote it."""
    mark = registry.fingerprint(checkpoint)
    build_index(load_checkpoint(checkpoint), dataset, checkpoint_fingerprint=mark).save(str(FOLDER / "index"))
    release = registry.publish(str(FOLDER / "registry"), NAME, checkpoint, str(FOLDER / "index"))
    registry.promote(str(FOLDER / "registry"), NAME, release.id)


def ask(config: Config) -> dict[str, Any]:
    """Serve the release and send held-out panoramas and tiles to it, as a user's program would."""
    from serve.local import serving

    source = open_source(config.source)
    records = [record for record in source.records() if record.split == "test"][:ASKED]
    hits = 0
    with serving(str(FOLDER / "registry"), NAME, "127.0.0.1", free_port()) as url, httpx.Client(base_url=url) as http:
        for record in records:
            match = localize(http, encode(source.read(record).street, "png"))
            hits += match["id"] == record.id
        show(records[-1], match)
        for record in records[:4]:
            tile = encode(source.read(record).satellite, "png")
            drawn = http.post("/v1/synthesize", content=tile, headers={"content-type": "image/png"}, timeout=60)
            drawn.raise_for_status()
            (FOLDER / "pictures" / f"synthesised-{record.id}.png").write_bytes(drawn.content)
    print(f"localised {hits} of {len(records)} at the first place")
    return {"asked": len(records), "hits": hits}


def localize(http: httpx.Client, panorama: bytes) -> dict[str, Any]:
    """The first match of a panorama."""
    answer = http.post(
        "/v1/localize", params={"k": 5}, content=panorama, headers={"content-type": "image/png"}, timeout=60
    )
    answer.raise_for_status()
    best: dict[str, Any] = answer.json()["matches"][0]
    return best


def show(record: Record, match: dict[str, Any]) -> None:
    """One answer beside the truth."""
    print(
        f"taken at {record.latitude:.6f}, {record.longitude:.6f}; the service says {match['latitude']:.6f}, "
        f"{match['longitude']:.6f} (tile {match['id']}, descriptor distance {match['descriptor_distance']:.3f})"
    )


def report(
    before: EvaluationReport, after: EvaluationReport, served: dict[str, Any], seconds: dict[str, float]
) -> None:
    """Print the table, write `summary.json`."""
    recall = after.street_to_satellite
    summary = {
        "gallery": after.gallery,
        "recall_at_1": recall.recall["1"],
        "recall_at_5": recall.recall["5"],
        "recall_at_10": recall.recall["10"],
        "recall_at_1_untrained": before.street_to_satellite.recall["1"],
        "recall_at_1_served": served["hits"] / served["asked"],
        "asked": served["asked"],
        "chance": recall.chance,
        "l1_before": before.quality.l1,
        "l1_after": after.quality.l1,
        "seconds": {**seconds, "total": round(sum(seconds.values()), 1)},
    }
    (FOLDER / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    table = Table("", "untrained", "trained", title=f"{after.gallery} held-out tiles, chance {recall.chance:.2%}")
    for k in ("1", "5", "10"):
        table.add_row(f"recall at {k}", f"{before.street_to_satellite.recall[k]:.1%}", f"{recall.recall[k]:.1%}")
    table.add_row(f"recall at 1 over HTTP, {served['asked']} asked", "", f"{summary['recall_at_1_served']:.1%}")
    table.add_row("L1 of synthesis, on [-1, 1]", f"{before.quality.l1:.3f}", f"{after.quality.l1:.3f}")
    for name, value in summary["seconds"].items():
        table.add_row(f"seconds: {name}", "", f"{value:.0f}")
    Console(file=sys.stdout).print(table)
    print(NEXT)


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()

"""Photographs as people have them: the preset `field-tiny` against `tiny`, in one run.

    python benchmarks/field.py [--seed N] [--times 1 4] [--json]

Both are trained on the same pairs of the procedural city, of which the demo trains `tiny`: `tiny` for the epochs of the
demo, `field-tiny` for as many and for a multiple. Each model answers

- 300 held-out panoramas under each protocol of `s2s evaluate --protocol` (R@1 and more);
- pictures taken in a region that training never sees, off the grid of an index with a tile every 8 m: where the city
  places people, and anywhere that is not inside something. A fix is asked for with the heading known and unknown, by
  the service's own code, with a calibration made on the validation split. Pictures of another region are asked, too.

The minutes are CPU time of training on one core. Figures are fractions, metres and degrees; those of an arm are also
printed to standard error as soon as they are known.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pyproj import Geod

from s2s_ray.config import Config, SyntheticSourceConfig, load_config
from s2s_ray.config.protocol import Protocol
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.prepare import prepare
from s2s_ray.data.schema import TileSize
from s2s_ray.data.sources.synthetic import Picture, SyntheticSource, unseen_region
from s2s_ray.evaluation.protocols import measure
from s2s_ray.geo.prior import Box
from s2s_ray.geo.query import Query
from s2s_ray.geo.region import Region
from s2s_ray.index.build import build
from s2s_ray.index.region import RegionTiles
from s2s_ray.inference import Embedder, Localizer
from s2s_ray.localization import Fix
from s2s_ray.localization.calibrate import calibrate
from s2s_ray.localization.reliability import auroc
from s2s_ray.training.loop import Trainer
from s2s_ray.training.validation import validation_quality

PROTOCOLS = ("aligned", "heading", "fov=180", "heading+fov=180", "fov=90", "heading+fov=90", "fov=70", "offcentre=16")
SIDE_M = 500.0
EVERY_M = 8.0
FOUND_M = 10.0
_WGS84 = Geod(ellps="WGS84")


class Pictures(NamedTuple):
    """Pictures asked in the region, by where they were taken, and those of another region."""

    inside: dict[str, list[Picture]]
    outside: list[Picture]


def settings(preset: str, folder: Path, seed: int, times: int, overrides: Sequence[str]) -> Config:
    """Return the configuration of one arm; all arms read the same data set."""
    data = [f"data.uri={folder}/data", "prepare.margin_m=32", "prepare.parallel=false"]
    run = [f"train.storage={folder}/runs", f"train.name={preset}-{times}", "train.workers=1"]
    seeds = [f"source.seed={seed}", f"train.seed={seed}", "evaluation.protocols=[]"]
    config = load_config(preset, [*data, *run, *seeds, *overrides])
    return config.model_copy(update={"train": config.train.model_copy(update={"epochs": times * config.train.epochs})})


def elsewhere(region: Region) -> Region:
    """Return a region of the same size, three sides to the north."""
    box = region.bounds
    up = 3 * (box.north - box.south)
    return Region.of_box(Box(box.west, box.south + up, box.east, box.north + up))


def take(config: SyntheticSourceConfig, region: Region, count: int, seed: int) -> Pictures:
    """Take the pictures."""
    source, rng = SyntheticSource(config), np.random.default_rng(seed)

    def taken(area: Region, seed: int, *, anywhere: bool = False) -> list[Picture]:
        return [_turned(one, rng) for one in source.pictures(area, count, anywhere=anywhere, seed=seed)]

    inside = {"people": taken(region, seed), "anywhere": taken(region, seed, anywhere=True)}
    return Pictures(inside, taken(elsewhere(region), seed + 1))


def _turned(picture: Picture, rng: np.random.Generator) -> Picture:
    """Return the panorama with another direction in its middle column."""
    width = picture.panorama.shape[1]
    column = int(rng.integers(width))
    heading = (picture.record.bearing + column * 360 / width) % 360
    return Picture(dataclasses.replace(picture.record, heading=heading), np.roll(picture.panorama, -column, axis=1))


def train(config: Config) -> tuple[Trainer, float]:
    """Train; return the trainer and the minutes of CPU time."""
    started = time.process_time()
    trainer = Trainer(config)
    trainer.fit()
    trainer.model.eval()
    return trainer, (time.process_time() - started) / 60


def asked_by_protocol(trainer: Trainer, dataset: PairDataset, seed: int) -> dict[str, dict[str, float | None]]:
    """Return the figures of each protocol on a split."""
    geometry = dataset.info.geometry
    return {name: dict(measure(trainer.model, dataset, geometry, Protocol.parse(name), seed)) for name in PROTOCOLS}


def asked_in_region(trainer: Trainer, config: Config, region: Region, pictures: Pictures) -> dict[str, Any]:
    """Return the figures of fixes in an index of the region, by where pictures were taken and what is known of them."""
    assert isinstance(config.source, SyntheticSourceConfig)
    validation = PairDataset.open(config.data, "val")
    geometry = validation.info.geometry
    embedder = Embedder(trainer.model, geometry)
    calibration = calibrate(
        embedder, validation, checkpoint="benchmark", others=PairDataset.open(config.data, "train"), every_m=EVERY_M
    )
    size = TileSize(config.source.tile_m, config.source.tile_px)
    tiles = RegionTiles(config.source, region, EVERY_M, size, geometry)
    index, _ = build(trainer.model, tiles, checkpoint_fingerprint="benchmark")
    localizer = Localizer(trainer.model, index, geometry, calibration)
    figures: dict[str, Any] = {"tiles": len(index)}
    for name, known in (("known", True), ("unknown", False)):
        outside = _fixes(localizer, pictures.outside, known=known)
        for place, asked in pictures.inside.items():
            fixes = _fixes(localizer, asked, known=known)
            figures[f"{place}, heading {name}"] = _figures(fixes, asked, outside, headed=not known)
    return figures


def _fixes(localizer: Localizer, asked: Sequence[Picture], *, known: bool) -> list[Fix]:
    """Return the fix of each picture, with its heading given or to be found."""
    fixes = []
    for picture in asked:
        query = Query(heading="unknown", fov=360.0, projection="equirectangular")
        if known:
            query = dataclasses.replace(query, heading=picture.record.bearing)
        fix = localizer.locate([picture.panorama], query, 1)[0].fix
        assert fix is not None, "every tile has a position"
        fixes.append(fix)
    return fixes


def _figures(
    fixes: Sequence[Fix], asked: Sequence[Picture], outside: Sequence[Fix], *, headed: bool
) -> dict[str, float | None]:
    """Return how good fixes are, in metres, degrees and fractions."""
    metres = np.array([_metres(fix, picture) for fix, picture in zip(fixes, asked, strict=True)])
    confidence, region, radius = (
        np.array([getattr(fix, name) for fix in fixes], np.float64)
        for name in ("confidence", "in_region_probability", "radius_m")
    )
    right = metres <= np.array([fix.confidence_m for fix in fixes])
    figures: dict[str, float | None] = {
        "within_10_m": float((metres <= FOUND_M).mean()),
        "within_25_m": float((metres <= 25.0).mean()),
        "median_m": float(np.median(metres)),
        "within_radius": float((metres <= radius).mean()),
        "auroc_right": auroc(confidence[right], confidence[~right]),
        "auroc_region": auroc(region, np.array([fix.in_region_probability for fix in outside], np.float64)),
    }
    if headed:
        found = metres <= FOUND_M
        turns = np.array([fix.heading for fix in fixes], np.float64) - [picture.record.bearing for picture in asked]
        errors = np.abs((turns + 180) % 360 - 180)[found]
        figures["heading_within_10"] = float((errors <= 10).mean()) if len(errors) else None
    return figures


def _metres(fix: Fix, picture: Picture) -> float:
    record = picture.record
    return float(_WGS84.inv(fix.longitude, fix.latitude, record.longitude, record.latitude)[2])


def compare(seed: int, times: Sequence[int], count: int, overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """Return the figures of all arms for one seed."""
    arms = {"tiny": ("tiny", 1), **{f"field-tiny x{factor}": ("field-tiny", factor) for factor in times}}
    configs = {name: settings(preset, folder, seed, factor, overrides) for name, (preset, factor) in arms.items()}
    first = next(iter(configs.values()))
    assert isinstance(first.source, SyntheticSourceConfig)
    prepare(first)
    test = PairDataset.open(first.data, "test")
    region = unseen_region(SIDE_M)
    pictures = take(first.source, region, count, seed)
    result: dict[str, Any] = {}
    for name, config in configs.items():
        trainer, minutes = train(config)
        result[name] = {
            "epochs": config.train.epochs,
            "minutes": minutes,
            "l1": validation_quality(trainer.model, test, config.evaluation, torch.device("cpu"))["l1"],
            "protocols": asked_by_protocol(trainer, test, seed),
            "region": asked_in_region(trainer, config, region, pictures),
        }
        print(json.dumps({"seed": seed, name: result[name]}), file=sys.stderr, flush=True)
    return result


def lines(result: dict[str, Any]) -> list[str]:
    """Return the table: a row for each figure, a column for each arm."""
    rows: list[tuple[str, list[str]]] = []
    arms = list(result.values())
    rows.append(("epochs", [f"{arm['epochs']}" for arm in arms]))
    rows.append(("minutes of training", [f"{arm['minutes']:.1f}" for arm in arms]))
    rows.append(("L1 of synthesis", [f"{arm['l1']:.3f}" for arm in arms]))
    for protocol in PROTOCOLS:
        figures = [arm["protocols"][protocol] for arm in arms]
        rows.append((f"{protocol}: R@1", [f"{one['recall_at_1']:.1%}" for one in figures]))
        if "heading" in protocol:
            rows.append(
                (
                    f"{protocol}: heading within 10 degrees, of those found",
                    [_share(one["heading_within_10"]) for one in figures],
                )
            )
        if "offcentre" in protocol:
            rows.append(
                (f"{protocol}: metres, median of those found", [_number(one["found_metres_median"]) for one in figures])
            )
    for kind in (key for key in arms[0]["region"] if key != "tiles"):
        for name in arms[0]["region"][kind]:
            show = _number if name == "median_m" or name.startswith("auroc") else _share
            rows.append((f"region, {kind}: {name}", [show(arm["region"][kind][name]) for arm in arms]))
    width = max(len(title) for title, _ in rows)
    header = " " * width + "".join(f"{name:>16}" for name in result)
    return [header, *(title.ljust(width) + "".join(f"{cell:>16}" for cell in cells) for title, cells in rows)]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def main() -> None:
    """Print the table of one seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the city, the training and the pictures")
    parser.add_argument("--times", type=int, nargs="+", default=[1, 4], help="budgets of field-tiny, in the demo's")
    parser.add_argument("--pictures", type=int, default=300, help="pictures taken in the region, of each kind")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="change the presets: a.b=value")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="s2s-field-") as folder:
        result = compare(arguments.seed, arguments.times, arguments.pictures, arguments.overrides, Path(folder))
    print(json.dumps({"seed": arguments.seed, **result}, indent=2) if arguments.json else "\n".join(lines(result)))


if __name__ == "__main__":
    main()

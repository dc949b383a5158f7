"""The arms of an ablation study and their comparison: one table, and one figure as figure 8 of the supplement."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from s2s_ray import storage
from s2s_ray.config import Config, with_values
from s2s_ray.data.dataset import PairDataset
from s2s_ray.evaluation.evaluate import METRICS, satellite_tile, synthesised_views
from s2s_ray.evaluation.galleries import comparison_gallery, evenly_spaced, pixels, save
from s2s_ray.geo.images import Pixels
from s2s_ray.model.checkpoint import load_checkpoint

TITLES = {
    "retrieval_only": "i. retrieval only",
    "no_gan": "ii. without GAN",
    "separate_features": "iii. separate features",
    "full": "full",
}
_RECALLS = {"recall_at_1": "R@1", "recall_at_5": "R@5", "recall_at_10": "R@10", "recall_at_1_percent": "R@1%"}
_SYNTHESIS = {"l1": "L1", "psnr": "PSNR", "ssim": "SSIM", "sharpness": "SD"}


@dataclass(frozen=True, slots=True)
class Arm:
    """A variant of the configuration: a name, and values at dotted keys."""

    name: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation over seeds; the deviation of a single one is 0."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the mean and the standard deviation of some values."""
        return cls(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0)


def arms(config: Config) -> list[Arm]:
    """Return the configured arms.

    Raises:
        ConfigError: an arm is not a valid configuration.
    """
    configured = [Arm(name, {"model.ablation": name}) for name in config.ablate.arms]
    configured += [Arm(name, values) for name, values in config.ablate.differences.items()]
    for arm in configured:
        with_values(config, arm.values)
    return configured


def run_of(arm: str, seed: int) -> str:
    """Return the name of a run."""
    return f"{arm}-seed{seed}"


def summarise(config: Config, root: str, planned: Sequence[Arm], checkpoints: Mapping[str, str]) -> None:
    """Write `ablation.json`, `table.txt` and, for the arms that synthesise, `comparison.png` and `.pdf`.

    Args:
        config: the study's configuration.
        root: URI of the study, with `results/RUN/metrics.json` of every run.
        planned: the arms, in the order of the table.
        checkpoints: by arm, of the models whose views are compared.

    Raises:
        StorageError: a file cannot be read or written.
    """
    seeds = config.ablate.seeds
    measured = {
        arm.name: [
            flat(storage.read_json(storage.join(root, "results", run_of(arm.name, seed), METRICS))) for seed in seeds
        ]
        for arm in planned
    }
    tree = {
        "split": config.evaluation.split,
        "gallery": next(iter(measured.values()))[0]["gallery"],
        "seeds": list(seeds),
        "epochs": config.train.epochs,
        "arms": {
            name: {
                "values": dict(next(arm.values for arm in planned if arm.name == name)),
                "metrics": {
                    key: {"mean": spread.mean, "deviation": spread.deviation, "seeds": [one[key] for one in results]}
                    for key, spread in spreads(results).items()
                },
            }
            for name, results in measured.items()
        },
    }
    storage.write_json(storage.join(root, "ablation.json"), tree)
    storage.write_bytes(storage.join(root, "table.txt"), (table(measured, seeds) + "\n").encode())
    drawn = [arm.name for arm in planned if with_values(config, arm.values).model.synthesizes]
    if drawn:
        figure = comparison_gallery(*_comparison(config, {name: checkpoints[name] for name in drawn}))
        for suffix in ("png", "pdf"):
            save(figure, storage.join(root, f"comparison.{suffix}"))


def flat(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a `metrics.json`: recall from street to satellite, gallery size, synthesis."""
    numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
    return {**numbers, **{key: metrics["street_to_satellite"][key] for key in _RECALLS}}


def spreads(results: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    """Return the mean and spread of every number that all seeds have."""
    shared = [key for key in results[0] if all(key in one for one in results) and key not in ("gallery", "chance")]
    return {key: Spread.of([one[key] for one in results]) for key in shared}


def table(measured: Mapping[str, Sequence[Mapping[str, float]]], seeds: Sequence[int]) -> str:
    """Return a table with one row for each arm: mean and standard deviation of recall (in %) and synthesis metrics.

    Args:
        measured: by arm, the numbers of each seed.
        seeds: the seeds.
    """
    summary = {name: spreads(results) for name, results in measured.items()}
    extra = [key for key in next(iter(summary.values())) if key not in {**_RECALLS, **_SYNTHESIS}]
    columns = {**_RECALLS, **_SYNTHESIS, **{key: key for row in summary.values() for key in row if key in extra}}
    header = ["", *columns.values()]
    rows = [[TITLES.get(name, name), *(_cell(key, row.get(key)) for key in columns)] for name, row in summary.items()]
    widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]))
    gallery = int(next(iter(measured.values()))[0]["gallery"])
    lines.append(
        f"mean and standard deviation over {len(seeds)} seeds; recall in % of a gallery of {gallery:,}, ties against"
    )
    return "\n".join(lines)


def _cell(key: str, spread: Spread | None) -> str:
    if spread is None:
        return "-"
    scale, digits = (100.0, 2) if key in _RECALLS else (1.0, 4 if key in ("l1", "ssim") else 2)
    return f"{scale * spread.mean:.{digits}f} ± {scale * spread.deviation:.{digits}f}"


def _comparison(
    config: Config, checkpoints: Mapping[str, str]
) -> tuple[dict[str, Sequence[Pixels]], list[Pixels], list[Pixels]]:
    """Return the synthesised views by arm, and the satellite tiles and real views of the same pairs."""
    dataset = PairDataset.open(config.data, config.evaluation.split)
    shown = evenly_spaced(len(dataset), config.ablate.examples)
    views: dict[str, Sequence[Pixels]] = {
        TITLES.get(name, name): synthesised_views(load_checkpoint(uri), dataset, shown, config.evaluation.batch)
        for name, uri in checkpoints.items()
    }
    tiles = [satellite_tile(dataset, index) for index in shown]
    return views, tiles, [pixels(dataset[index].street) for index in shown]

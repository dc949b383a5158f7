"""The arms of an ablation study and what they amount to: one table, and one figure as the supplement's figure 8."""

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
    """A variant of the configuration: its name, and values at dotted keys."""

    name: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation over seeds (nought of a single one)."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0)


def arms(config: Config) -> list[Arm]:
    """The configured arms, each checked to be a valid configuration. Raises `ConfigError`."""
    found = [Arm(name, {"model.ablation": name}) for name in config.ablate.arms]
    found += [Arm(name, values) for name, values in config.ablate.differences.items()]
    for arm in found:
        with_values(config, arm.values)
    return found


def run_of(arm: str, seed: int) -> str:
    """The name of a run."""
    return f"{arm}-seed{seed}"


def summarise(config: Config, root: str, planned: Sequence[Arm], checkpoints: Mapping[str, str]) -> None:
    """Write `ablation.json`, `table.txt` and, of the arms that synthesise, `comparison.png` and `.pdf`.

    Args:
        root: the study's URI; `results/RUN/metrics.json` of every run is there.
        checkpoints: by arm, of the models whose views are compared.
    """
    seeds = config.ablate.seeds
    found = {
        arm.name: [
            flat(storage.read_json(storage.join(root, "results", run_of(arm.name, seed), METRICS))) for seed in seeds
        ]
        for arm in planned
    }
    tree = {
        "split": config.evaluation.split,
        "gallery": next(iter(found.values()))[0]["gallery"],
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
            for name, results in found.items()
        },
    }
    storage.write_json(storage.join(root, "ablation.json"), tree)
    storage.write_bytes(storage.join(root, "table.txt"), (table(found, seeds) + "\n").encode())
    drawn = [arm.name for arm in planned if with_values(config, arm.values).model.synthesizes]
    if drawn:
        figure = comparison_gallery(*_comparison(config, {name: checkpoints[name] for name in drawn}))
        for suffix in ("png", "pdf"):
            save(figure, storage.join(root, f"comparison.{suffix}"))


def flat(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a `metrics.json`: recall from street to satellite, gallery size, synthesis."""
    numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
    return {**numbers, **{key: metrics["street_to_satellite"][key] for key in _RECALLS}}


def spreads(results: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    """Mean and spread of every number that all seeds have."""
    shared = [key for key in results[0] if all(key in one for one in results) and key not in ("gallery", "chance")]
    return {key: Spread.of([one[key] for one in results]) for key in shared}


def table(found: Mapping[str, Sequence[Mapping[str, float]]], seeds: Sequence[int]) -> str:
    """A row an arm: recall in percent and synthesis metrics, mean and standard deviation over the seeds."""
    told = {name: spreads(results) for name, results in found.items()}
    extra = [key for key in next(iter(told.values())) if key not in {**_RECALLS, **_SYNTHESIS}]
    columns = {**_RECALLS, **_SYNTHESIS, **{key: key for row in told.values() for key in row if key in extra}}
    header = ["", *columns.values()]
    rows = [[TITLES.get(name, name), *(_cell(key, row.get(key)) for key in columns)] for name, row in told.items()]
    widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]))
    gallery = int(next(iter(found.values()))[0]["gallery"])
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
    """Synthesised views by arm, satellite tiles and real views of some pairs."""
    dataset = PairDataset(config.data.uri, config.evaluation.split, cache_dir=config.data.cache_dir)
    shown = evenly_spaced(len(dataset), config.ablate.examples)
    views: dict[str, Sequence[Pixels]] = {
        TITLES.get(name, name): synthesised_views(load_checkpoint(uri), dataset, shown, config.evaluation.batch)
        for name, uri in checkpoints.items()
    }
    tiles = [satellite_tile(dataset, index) for index in shown]
    return views, tiles, [pixels(dataset[index].street) for index in shown]

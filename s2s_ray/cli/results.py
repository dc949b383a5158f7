"""Verbs that measure and show trained models."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from s2s_ray.cli.options import (
    CheckpointOption,
    ConfigOption,
    RunConfigOption,
    SetOption,
    device_of,
    run_settings,
    split_of,
)
from s2s_ray.runtime.cluster import ray_cluster

if TYPE_CHECKING:
    from s2s_ray.data.dataset import PairDataset
    from s2s_ray.localization.calibration import Calibration
    from s2s_ray.model.s2s import S2S

app = typer.Typer()

CalibrationOption = Annotated[
    bool,
    typer.Option(
        "--calibration", help="Also calibrate on the split, and report how far the confidence of fixes can be trusted."
    ),
]


@app.command()
def evaluate(
    checkpoint: CheckpointOption,
    out: Annotated[str, typer.Option(help="Output URI of metrics.json and the pictures.")],
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            help="What is known of the panoramas: aligned, heading (it is unknown), fov=DEGREES, offcentre=METRES, or "
            "several joined by +. A list with commas; default: evaluation.protocols."
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Seeds that protocols are averaged over. Default: evaluation.seeds.")
    ] = None,
    calibration: CalibrationOption = False,
    config: RunConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Measure a checkpoint on a split (evaluation.split) of data.uri: recall, synthesis, galleries.

    Without protocols the figures are printed as JSON, with them as one table.
    """
    from s2s_ray import storage
    from s2s_ray.evaluation.evaluate import METRICS
    from s2s_ray.evaluation.evaluate import evaluate as run
    from s2s_ray.evaluation.outcome import table
    from s2s_ray.model.checkpoint import load_checkpoint
    from s2s_ray.training.run import find_checkpoint

    uri = find_checkpoint(checkpoint)
    given = [] if seeds is None else [f"evaluation.seeds={seeds}"]
    if protocol is not None:
        names = [name.strip() for text in protocol for name in text.split(",")]
        given.append(f"evaluation.protocols={json.dumps(names)}")
    settings = run_settings(checkpoint, config, [*(overrides or ()), *given])
    device = device_of(settings)
    model, dataset = load_checkpoint(uri, device), split_of(settings)
    calibrated = _calibrated(uri, model, dataset, settings.evaluation.seed) if calibration else None
    report = run(model, dataset, settings.evaluation, device=device, out=out, calibration=calibrated)
    if report.protocols:
        typer.echo(table(report.protocols))
        typer.echo(f"{storage.join(out, METRICS)} has every figure")
    else:
        typer.echo(json.dumps(report.as_dict(), indent=2))


def _calibrated(uri: str, model: S2S, dataset: PairDataset, seed: int) -> Calibration:
    """Return the calibration of the model at a URI on a split; its reliability is that of pictures left out."""
    from s2s_ray.geo.views import ViewGeometry
    from s2s_ray.inference import Embedder
    from s2s_ray.localization.calibrate import calibrate
    from s2s_ray.model.checkpoint_meta import fingerprint, read_meta

    geometry = ViewGeometry.of_checkpoint(model.config, read_meta(uri), uri)
    return calibrate(Embedder(model, geometry), dataset, checkpoint=fingerprint(uri), seed=seed)


@app.command("figures")
def draw(
    checkpoint: CheckpointOption,
    out: Annotated[str, typer.Option(help="Output URI of the figures, PNG and PDF of each.")],
    config: RunConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Draw the paper's figures for a checkpoint: retrieval, synthesis, errors on the map, and a run's curves.

    The comparison of ablations (figure 8) is drawn by `s2s ablate`.
    """
    from s2s_ray.evaluation.figures import draw_figures, save_figures
    from s2s_ray.model.checkpoint import load_checkpoint
    from s2s_ray.training.history import read_history
    from s2s_ray.training.run import find_checkpoint

    uri = find_checkpoint(checkpoint)
    settings = run_settings(checkpoint, config, overrides)
    device = device_of(settings)
    model = load_checkpoint(uri, device)
    history = read_history(checkpoint)
    figures = draw_figures(model, split_of(settings), settings.evaluation, device=device, history=history)
    typer.echo("\n".join(save_figures(figures, out)))


@app.command("report")
def write_report(
    run: Annotated[str, typer.Argument(help="A run, or a checkpoint.")],
    out: Annotated[str | None, typer.Option(help="Output URI of the page; default: report.html in the run.")] = None,
    calibration: CalibrationOption = False,
    config: RunConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Write one self-contained HTML page about a run: configuration, curves, tables, galleries."""
    from s2s_ray import storage
    from s2s_ray.evaluation.evaluate import evaluate as measure
    from s2s_ray.evaluation.figures import draw_figures
    from s2s_ray.evaluation.reliability import reliability_diagram
    from s2s_ray.evaluation.report import report_page
    from s2s_ray.model.checkpoint import load_checkpoint
    from s2s_ray.training.history import read_history
    from s2s_ray.training.run import find_checkpoint

    checkpoint = find_checkpoint(run)
    settings = run_settings(run, config, overrides)
    device = device_of(settings)
    model, dataset = load_checkpoint(checkpoint, device), split_of(settings)
    calibrated = _calibrated(checkpoint, model, dataset, settings.evaluation.seed) if calibration else None
    measured = measure(model, dataset, settings.evaluation, device=device, calibration=calibrated)
    history = read_history(run)
    figures = draw_figures(model, dataset, settings.evaluation, device=device, history=history)
    if calibrated is not None:
        figures["reliability"] = reliability_diagram(calibrated)
    uri = out or storage.join(run, "report.html")
    storage.write_bytes(uri, report_page(checkpoint, measured, figures, settings, history))
    typer.echo(uri)


@app.command("ablate")
def run_ablation(config: ConfigOption = "paper", overrides: SetOption = None) -> None:
    """Train and compare ablate.arms and ablate.differences with ablate.seeds; the same ablate.name resumes."""
    from s2s_ray import storage
    from s2s_ray.config import load_config

    settings = load_config(config, overrides or ())
    with ray_cluster():
        from s2s_ray.ablation.study import ablate

        uri = ablate(settings)
    typer.echo(storage.read_bytes(storage.join(uri, "table.txt")).decode(), nl=False)
    typer.echo(f"{uri}/ablation.json has every figure, comparison.png and .pdf show the synthesised views")

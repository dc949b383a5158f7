"""Verbs that measure and show what was trained."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from s2s_ray import storage
from s2s_ray.cli.options import CheckpointOption, ConfigOption, SetOption, device_of
from s2s_ray.config import load_config
from s2s_ray.model.checkpoint import load_checkpoint
from s2s_ray.runtime.cluster import ray_cluster

app = typer.Typer()


@app.command()
def evaluate(
    checkpoint: CheckpointOption,
    out: Annotated[str, typer.Option(help="Where metrics.json and the pictures go.")],
    config: ConfigOption = "paper",
    overrides: SetOption = None,
) -> None:
    """Measure a checkpoint on a split of data.uri (evaluation.split): recall, synthesis, galleries."""
    from s2s_ray.data.dataset import PairDataset
    from s2s_ray.evaluation.evaluate import evaluate as run
    from s2s_ray.training.run import find_checkpoint

    settings = load_config(config, overrides or ())
    model = load_checkpoint(find_checkpoint(checkpoint), device_of(settings))
    dataset = PairDataset(settings.data.uri, settings.evaluation.split, cache_dir=settings.data.cache_dir)
    report = run(model, dataset, settings.evaluation, device=device_of(settings), out=out)
    typer.echo(json.dumps(report.as_dict(), indent=2))


@app.command("figures")
def draw(
    checkpoint: CheckpointOption,
    out: Annotated[str, typer.Option(help="Where the figures go, each as PNG and PDF.")],
    config: ConfigOption = "paper",
    overrides: SetOption = None,
) -> None:
    """Draw the paper's figures of a checkpoint: retrieval, synthesis, errors on the map, and a run's curves.

    The comparison of ablations (figure 8) is drawn by `s2s ablate`.
    """
    from s2s_ray.data.dataset import PairDataset
    from s2s_ray.evaluation.figures import draw_figures, save_figures
    from s2s_ray.training.history import read_history
    from s2s_ray.training.run import find_checkpoint

    settings = load_config(config, overrides or ())
    model = load_checkpoint(find_checkpoint(checkpoint), device_of(settings))
    dataset = PairDataset(settings.data.uri, settings.evaluation.split, cache_dir=settings.data.cache_dir)
    figures = draw_figures(
        model, dataset, settings.evaluation, device=device_of(settings), history=read_history(checkpoint)
    )
    typer.echo("\n".join(save_figures(figures, out)))


@app.command("report")
def write_report(
    run: Annotated[str, typer.Argument(help="A run, or a checkpoint.")],
    out: Annotated[str | None, typer.Option(help="The page; default: report.html in the run.")] = None,
    config: Annotated[
        str | None, typer.Option("--config", "-c", help="A YAML file or a preset; default: the run's own.")
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Write one self-contained HTML page about a run: configuration, curves, tables, galleries."""
    import tempfile
    from pathlib import Path

    from s2s_ray.data.dataset import PairDataset
    from s2s_ray.evaluation.evaluate import evaluate as measure
    from s2s_ray.evaluation.figures import draw_figures
    from s2s_ray.evaluation.report import report_page
    from s2s_ray.training.history import read_history
    from s2s_ray.training.run import CONFIG_FILE, find_checkpoint

    checkpoint = find_checkpoint(run)
    with tempfile.TemporaryDirectory() as folder:
        if config is None and storage.exists(storage.join(run, CONFIG_FILE)):
            config = str(Path(folder) / CONFIG_FILE)
            storage.download(storage.join(run, CONFIG_FILE), Path(config))
        settings = load_config(config or "paper", overrides or ())
    device = device_of(settings)
    model = load_checkpoint(checkpoint, device)
    dataset = PairDataset(settings.data.uri, settings.evaluation.split, cache_dir=settings.data.cache_dir)
    measured = measure(model, dataset, settings.evaluation, device=device)
    history = read_history(run)
    figures = draw_figures(model, dataset, settings.evaluation, device=device, history=history)
    uri = out or storage.join(run, "report.html")
    storage.write_bytes(uri, report_page(checkpoint, measured, figures, settings, history))
    typer.echo(uri)


@app.command("ablate")
def run_ablation(config: ConfigOption = "paper", overrides: SetOption = None) -> None:
    """Train and compare ablate.arms and ablate.differences with ablate.seeds; the same ablate.name goes on."""
    settings = load_config(config, overrides or ())
    with ray_cluster():
        from s2s_ray.ablation.study import ablate

        uri = ablate(settings)
    typer.echo(storage.read_bytes(storage.join(uri, "table.txt")).decode(), nl=False)
    typer.echo(f"{uri}/ablation.json has every figure, comparison.png and .pdf the synthesised views")

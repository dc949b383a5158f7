"""Verbs of the pipeline: from a source to a trained model."""

from __future__ import annotations

from typing import Annotated

import typer

from s2s_ray.cli.options import ConfigOption, SetOption
from s2s_ray.errors import DivergedError
from s2s_ray.runtime.cluster import ray_cluster

app = typer.Typer()


@app.command("config")
def show_config(config: ConfigOption = "paper", overrides: SetOption = None) -> None:
    """Print the resolved configuration as YAML."""
    from s2s_ray.config import load_config

    typer.echo(load_config(config, overrides or ()).to_yaml(), nl=False)


@app.command()
def prepare(config: ConfigOption = "paper", overrides: SetOption = None) -> None:
    """Make the data set at data.uri from the source: polar-transformed, resized, in Arrow shards."""
    from s2s_ray.config import load_config
    from s2s_ray.data.prepare import prepare as run

    settings = load_config(config, overrides or ())
    if settings.prepare.parallel:
        with ray_cluster():
            run(settings)
    else:
        run(settings)


@app.command()
def verify(
    uri: Annotated[str, typer.Argument(help="URI of the data set.")],
    quick: Annotated[bool, typer.Option(help="Check sums and counts only; decode no image.")] = False,
    complete: Annotated[bool, typer.Option(help="Count a missing pair of CVUSA or CVACT as a fault.")] = False,
) -> None:
    """Check a data set: counts, checksums, unreadable images. Exit code 1 if anything is wrong.

    The counts of CVUSA and CVACT are compared with the published ones.
    """
    from s2s_ray.data.verify import verify as run

    report = run(uri, quick=quick)
    typer.echo("\n".join(report.lines()))
    if not report.ok or (complete and not report.complete):
        raise typer.Exit(1)


@app.command()
def train(config: ConfigOption = "paper", overrides: SetOption = None) -> None:
    """Train on Ray Train workers; the same train.name resumes where it stopped."""
    from s2s_ray.config import load_config
    from s2s_ray.config.protocol import RECALL

    settings = load_config(config, overrides or ())
    with ray_cluster():
        from s2s_ray.model.checkpoint_meta import read_meta
        from s2s_ray.training.ray_train import train as run

        try:
            result = run(settings)
        except DivergedError as error:
            raise DivergedError(f"training diverged at {error}") from error
    metrics, chosen = read_meta(result.best)["metrics"], settings.train.best_metric
    figures = f"validation R@1 {100 * metrics[RECALL]:.1f}%"
    if chosen != RECALL:
        figures += f", {chosen} {metrics[chosen]:.4g}"
    typer.echo(f"best checkpoint {result.best}: {figures}")


@app.command("tune")
def run_sweep(config: ConfigOption = "paper", overrides: SetOption = None) -> None:
    """Search tune.space for better settings; the same tune.name resumes, and a higher tune.trials extends it."""
    from s2s_ray.config import load_config

    settings = load_config(config, overrides or ())
    with ray_cluster():
        from s2s_ray.sweep.sweep import describe, sweep

        result = sweep(settings)
    typer.echo(describe(result))
    typer.echo(f"{result.uri}/best.yaml is its configuration; release {result.release.id} of {result.release.name}")

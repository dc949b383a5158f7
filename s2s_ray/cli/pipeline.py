"""Verbs of the pipeline: from a source to a trained model and its index."""

from __future__ import annotations

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
from s2s_ray.errors import ConfigError, DivergedError
from s2s_ray.runtime.cluster import ray_cluster

if TYPE_CHECKING:
    from s2s_ray.config import Config
    from s2s_ray.index.tiles import TileSource

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

    settings = load_config(config, overrides or ())
    with ray_cluster():
        from s2s_ray.model.checkpoint_meta import read_meta
        from s2s_ray.training.ray_train import train as run

        try:
            result = run(settings)
        except DivergedError as error:
            raise DivergedError(f"training diverged at {error}") from error
    recall = read_meta(result.best)["metrics"]["recall_at_1"]
    typer.echo(f"best checkpoint {result.best}: validation R@1 {100 * recall:.1f}%")


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


@app.command("build-index")
def build_index(
    checkpoint: CheckpointOption,
    out: Annotated[str, typer.Option(help="Output URI of the index.")],
    tiles: Annotated[
        bool,
        typer.Option("--tiles", help="Index the tiles of the manifest `source`, without panoramas and a data set."),
    ] = False,
    parallel: Annotated[
        bool,
        typer.Option("--parallel", help="Embed with Ray Data, in parts; the same command resumes after a stop."),
    ] = False,
    extends: Annotated[
        str | None,
        typer.Option(
            "--extends",
            help="Start from this index of the same checkpoint and embed only new tiles; pictures are left out.",
        ),
    ] = None,
    config: RunConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Embed the satellite tiles of a split (evaluation.split) of data.uri into a reference index."""
    from s2s_ray import registry, storage
    from s2s_ray.index import ReferenceIndex, read_info
    from s2s_ray.index.build import build
    from s2s_ray.index.index import require_place
    from s2s_ray.index.parts import Build, build_in_parts
    from s2s_ray.model.checkpoint import load_checkpoint
    from s2s_ray.training.run import find_checkpoint

    uri = storage.absolute(find_checkpoint(checkpoint))
    require_place(out)
    settings = run_settings(checkpoint, config, overrides).located()
    source = _tiles(settings, uri, manifest=tiles)
    known = 0 if extends is None else read_info(extends).count
    if parallel:
        base = None if extends is None else storage.absolute(extends)
        device = "cuda" if settings.train.use_gpu else "cpu"  # of the workers; this process needs none
        planned = Build(uri, source, storage.absolute(out), settings.evaluation.batch, device, extends=base)
        index, left_out = build_in_parts(planned, parallel=True)
    else:
        device = device_of(settings)
        index, left_out = build(
            load_checkpoint(uri, device),
            source,
            checkpoint_fingerprint=registry.fingerprint(uri),
            batch=settings.evaluation.batch,
            device=device,
            extends=None if extends is None else ReferenceIndex.load(extends),
        )
        index.save(out, replace=True)
    for line in left_out:
        typer.echo(f"left out: {line}", err=True)
    added = "" if extends is None else f", {len(index) - known} of them new"
    typer.echo(f"{len(index)} tiles indexed in {out}{added}" + (f"; {len(left_out)} left out" if left_out else ""))


def _tiles(settings: Config, checkpoint: str, *, manifest: bool) -> TileSource:
    """Return the tiles of the manifest, or those of the data set."""
    from s2s_ray.config import ManifestSourceConfig
    from s2s_ray.data.sources.manifest import ManifestSource
    from s2s_ray.geo.views import ViewGeometry
    from s2s_ray.index.tiles import DatasetTiles, ManifestTiles
    from s2s_ray.model.checkpoint_meta import model_config, read_meta

    if not manifest:
        return DatasetTiles(split_of(settings), settings.evaluation.split)
    if not isinstance(settings.source, ManifestSourceConfig):
        raise ConfigError(f"source.kind={settings.source.kind!r}: --tiles needs a source of the kind 'manifest'")
    meta = read_meta(checkpoint)
    views = ViewGeometry.of_checkpoint(model_config(meta, checkpoint), meta, checkpoint)
    return ManifestTiles(ManifestSource(settings.source, panoramas=False), views)

"""Verbs of the pipeline: from a source to a trained model and its index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from s2s_ray import registry, storage
from s2s_ray.cli.options import CheckpointOption, ConfigOption, SetOption, device_of
from s2s_ray.config import (
    Config,
    load_config,
)
from s2s_ray.errors import ConfigError, DivergedError
from s2s_ray.model.checkpoint import load_checkpoint
from s2s_ray.model.checkpoint_meta import read_meta
from s2s_ray.runtime.cluster import ray_cluster

if TYPE_CHECKING:
    from s2s_ray.index import ReferenceIndex
    from s2s_ray.model.s2s import S2S

app = typer.Typer()


@app.command("config")
def show_config(config: ConfigOption = "paper", overrides: SetOption = None) -> None:
    """Print the resolved configuration as YAML."""
    typer.echo(load_config(config, overrides or ()).to_yaml(), nl=False)


@app.command()
def prepare(config: ConfigOption = "paper", overrides: SetOption = None) -> None:
    """Make the data set at data.uri from the source: polar-transformed, resized, in Arrow shards."""
    from s2s_ray.data.prepare import prepare as run

    settings = load_config(config, overrides or ())
    if settings.prepare.parallel:
        with ray_cluster():
            run(settings)
    else:
        run(settings)


@app.command()
def verify(
    uri: Annotated[str, typer.Argument(help="The data set.")],
    quick: Annotated[bool, typer.Option(help="Checksums and counts only, no image is decoded.")] = False,
    complete: Annotated[bool, typer.Option(help="Of CVUSA or CVACT: a missing pair is a fault too.")] = False,
) -> None:
    """Check a data set: counts, checksums, unreadable images. Exit code 1 if anything is wrong.

    Of CVUSA and CVACT the counts are compared with the published ones.
    """
    from s2s_ray.data.verify import verify as run

    report = run(uri, quick=quick)
    typer.echo("\n".join(report.lines()))
    if not report.ok or (complete and not report.complete):
        raise typer.Exit(1)


@app.command()
def train(config: ConfigOption = "paper", overrides: SetOption = None) -> None:
    """Train on Ray Train's workers; the same train.name goes on where it stopped."""

    settings = load_config(config, overrides or ())
    with ray_cluster():
        from s2s_ray.training.ray_train import train as run

        try:
            result = run(settings)
        except DivergedError as error:
            typer.echo(f"s2s: training diverged at {error}", err=True)
            raise typer.Exit(1) from None
    figures = read_meta(result.best)["metrics"]
    typer.echo(f"best checkpoint {result.best}: validation R@1 {100 * figures['recall_at_1']:.1f}%")


@app.command("tune")
def run_sweep(config: ConfigOption = "paper", overrides: SetOption = None) -> None:
    """Search tune.space for better settings; the same tune.name goes on, more tune.trials extend it."""
    settings = load_config(config, overrides or ())
    with ray_cluster():
        from s2s_ray.sweep.sweep import describe, sweep

        result = sweep(settings)
    typer.echo(describe(result))
    typer.echo(f"{result.uri}/best.yaml is its configuration; release {result.release.id} of {result.release.name}")


@app.command("build-index")
def build_index(
    checkpoint: CheckpointOption,
    out: Annotated[str, typer.Option(help="Where the index goes.")],
    tiles: Annotated[
        bool,
        typer.Option("--tiles", help="Index the tiles of the manifest `source` itself: no panoramas, no data set."),
    ] = False,
    parallel: Annotated[
        bool,
        typer.Option(
            "--parallel",
            help="Embed the whole of a data set with Ray Data, in parts; the same command goes on after a stop. "
            "What --tiles and --extends add is embedded in this process.",
        ),
    ] = False,
    extends: Annotated[
        str | None,
        typer.Option(
            "--extends",
            help="An index of the same checkpoint: the tiles that are not in it are added, without pictures.",
        ),
    ] = None,
    config: ConfigOption = "paper",
    overrides: SetOption = None,
) -> None:
    """Embed the satellite tiles of a split (evaluation.split) of data.uri into a reference index."""
    from s2s_ray.data.dataset import PairDataset
    from s2s_ray.index import ReferenceIndex
    from s2s_ray.index.build import build_index as run
    from s2s_ray.training.run import find_checkpoint

    settings = load_config(config, overrides or ())
    uri = find_checkpoint(checkpoint)
    if parallel and not tiles and extends is None:
        _build_in_parts(settings, uri, out)
        return
    model = load_checkpoint(uri, device_of(settings))
    known = None if extends is None else ReferenceIndex.load(extends)
    if tiles:
        _index_tiles(settings, uri, model, out, known)
        return
    dataset = PairDataset(settings.data.uri, settings.evaluation.split, cache_dir=settings.data.cache_dir)
    index = run(
        model,
        dataset,
        checkpoint_fingerprint=registry.fingerprint(uri),
        batch=settings.evaluation.batch,
        device=device_of(settings),
        split=settings.evaluation.split,
        extends=known,
    )
    index.save(out)
    typer.echo(_indexed(index, known, out))


def _indexed(index: ReferenceIndex, known: ReferenceIndex | None, out: str) -> str:
    added = "" if known is None else f", {len(index) - len(known)} of them new"
    return f"{len(index)} tiles indexed in {out}{added}"


def _build_in_parts(settings: Config, checkpoint: str, out: str) -> None:
    from s2s_ray.index.parts import Build, build_in_parts

    build = Build(
        storage.absolute(checkpoint),
        storage.absolute(settings.data.uri),
        settings.evaluation.split,
        storage.absolute(out),
        None if settings.data.cache_dir is None else str(settings.data.cache_dir),
        settings.evaluation.batch,
        device_of(settings),
    )
    typer.echo(f"{build_in_parts(build, parallel=True)} tiles indexed in {out}")


def _index_tiles(settings: Config, checkpoint: str, model: S2S, out: str, known: ReferenceIndex | None) -> None:
    from s2s_ray.config import ManifestSourceConfig
    from s2s_ray.data.sources.manifest import ManifestSource
    from s2s_ray.geo.views import ViewGeometry
    from s2s_ray.index.build import index_tiles

    if not isinstance(settings.source, ManifestSourceConfig):
        raise ConfigError(f"source.kind={settings.source.kind!r}: --tiles indexes those of a manifest")
    index, faults = index_tiles(
        model,
        ViewGeometry.of_checkpoint(model.config, read_meta(checkpoint)),
        ManifestSource(settings.source, panoramas=False),
        checkpoint_fingerprint=registry.fingerprint(checkpoint),
        batch=settings.evaluation.batch,
        device=device_of(settings),
        extends=known,
    )
    index.save(out)
    for fault in faults:
        typer.echo(f"left out: {fault}", err=True)
    typer.echo(_indexed(index, known, out) + (f"; {len(faults)} left out" if faults else ""))

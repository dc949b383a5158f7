"""The `s2s` command: each verb calls one function of the library.

User errors are printed as one line and end with exit code 2; training or a sweep stopped with Ctrl-C with 130.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from s2s_ray import registry, storage
from s2s_ray.checkpoint import load_checkpoint, read_meta, save_model
from s2s_ray.cluster import StoppedError, log_plainly, ray_cluster
from s2s_ray.config import Config, ConfigError, load_config, preset_names
from s2s_ray.inference_cli import app as inference_app
from s2s_ray.version import code_version

if TYPE_CHECKING:
    from s2s_ray.model.s2s import S2S

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
checkpoint_app = typer.Typer(no_args_is_help=True, help="Checkpoints and the registry of releases.")
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(inference_app)

INTERRUPTED = 130  # exit code of work that Ctrl-C stopped, as a shell gives it

ConfigOption = Annotated[str, typer.Option("--config", "-c", help="A YAML file or a preset: see `s2s --version`.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", "-s", help="Change a value: a.b=value. Repeatable.")]
RegistryOption = Annotated[str, typer.Option(help="Root of the registry: a directory or an object-store URI.")]
NameOption = Annotated[str, typer.Option(help="Name of the model in the registry.")]
CheckpointOption = Annotated[str, typer.Option("--checkpoint", help="A checkpoint, or a run: its best one is taken.")]


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
        from s2s_ray.training.loop import DivergedError
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
        from s2s_ray.tuning.sweep import describe, sweep

        result = sweep(settings)
    typer.echo(describe(result))
    typer.echo(f"{result.uri}/best.yaml is its configuration; release {result.release.id} of {result.release.name}")


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
    model = load_checkpoint(find_checkpoint(checkpoint), _device(settings))
    dataset = PairDataset(settings.data.uri, settings.evaluation.split, cache_dir=settings.data.cache_dir)
    report = run(model, dataset, settings.evaluation, device=_device(settings), out=out)
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
    from s2s_ray.evaluation.report import read_history
    from s2s_ray.training.run import find_checkpoint

    settings = load_config(config, overrides or ())
    model = load_checkpoint(find_checkpoint(checkpoint), _device(settings))
    dataset = PairDataset(settings.data.uri, settings.evaluation.split, cache_dir=settings.data.cache_dir)
    figures = draw_figures(
        model, dataset, settings.evaluation, device=_device(settings), history=read_history(checkpoint)
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
    from s2s_ray.evaluation.report import read_history, report_page
    from s2s_ray.training.run import CONFIG_FILE, find_checkpoint

    checkpoint = find_checkpoint(run)
    with tempfile.TemporaryDirectory() as folder:
        if config is None and storage.exists(storage.join(run, CONFIG_FILE)):
            config = str(Path(folder) / CONFIG_FILE)
            storage.download(storage.join(run, CONFIG_FILE), Path(config))
        settings = load_config(config or "paper", overrides or ())
    device = _device(settings)
    model = load_checkpoint(checkpoint, device)
    dataset = PairDataset(settings.data.uri, settings.evaluation.split, cache_dir=settings.data.cache_dir)
    measured = measure(model, dataset, settings.evaluation, device=device)
    figures = draw_figures(model, dataset, settings.evaluation, device=device, history=read_history(run))
    uri = out or storage.join(run, "report.html")
    storage.write_bytes(uri, report_page(run, checkpoint, measured, figures, settings))
    typer.echo(uri)


@app.command("ablate")
def run_ablation(config: ConfigOption = "paper", overrides: SetOption = None) -> None:
    """Train and compare ablate.arms and ablate.differences with ablate.seeds; the same ablate.name goes on."""
    settings = load_config(config, overrides or ())
    with ray_cluster():
        from s2s_ray.tuning.ablate import ablate

        uri = ablate(settings)
    typer.echo(storage.read_bytes(storage.join(uri, "table.txt")).decode(), nl=False)
    typer.echo(f"{uri}/ablation.json has every figure, comparison.png and .pdf the synthesised views")


@app.command("build-index")
def build_index(
    checkpoint: CheckpointOption,
    out: Annotated[str, typer.Option(help="Where the index goes.")],
    tiles: Annotated[
        bool,
        typer.Option("--tiles", help="Index the tiles of the manifest `source` itself: no panoramas, no data set."),
    ] = False,
    parallel: Annotated[
        bool, typer.Option("--parallel", help="Embed with Ray Data, in parts; the same command goes on after a stop.")
    ] = False,
    config: ConfigOption = "paper",
    overrides: SetOption = None,
) -> None:
    """Embed the satellite tiles of a split (evaluation.split) of data.uri into a reference index."""
    from s2s_ray.data.dataset import PairDataset
    from s2s_ray.index import build_index as run
    from s2s_ray.training.run import find_checkpoint

    settings = load_config(config, overrides or ())
    uri = find_checkpoint(checkpoint)
    if parallel and not tiles:
        _build_in_parts(settings, uri, out)
        return
    model = load_checkpoint(uri, _device(settings))
    if tiles:
        _index_tiles(settings, uri, model, out)
        return
    dataset = PairDataset(settings.data.uri, settings.evaluation.split, cache_dir=settings.data.cache_dir)
    index = run(
        model,
        dataset,
        checkpoint_fingerprint=registry.fingerprint(uri),
        batch=settings.evaluation.batch,
        device=_device(settings),
        split=settings.evaluation.split,
    )
    index.save(out)
    typer.echo(f"{len(index)} tiles indexed in {out}")


def _build_in_parts(settings: Config, checkpoint: str, out: str) -> None:
    from s2s_ray.index_build import Build, build_in_parts

    build = Build(
        storage.absolute(checkpoint),
        storage.absolute(settings.data.uri),
        settings.evaluation.split,
        storage.absolute(out),
        None if settings.data.cache_dir is None else str(settings.data.cache_dir),
        settings.evaluation.batch,
        _device(settings),
    )
    typer.echo(f"{build_in_parts(build, parallel=True)} tiles indexed in {out}")


def _index_tiles(settings: Config, checkpoint: str, model: S2S, out: str) -> None:
    from s2s_ray.config import ManifestSourceConfig
    from s2s_ray.data.sources.manifest import ManifestSource
    from s2s_ray.data.views import ViewGeometry
    from s2s_ray.index import index_tiles

    if not isinstance(settings.source, ManifestSourceConfig):
        raise ConfigError(f"source.kind={settings.source.kind!r}: --tiles indexes those of a manifest")
    index, faults = index_tiles(
        model,
        ViewGeometry.of_checkpoint(model.config, read_meta(checkpoint)),
        ManifestSource(settings.source, panoramas=False),
        checkpoint_fingerprint=registry.fingerprint(checkpoint),
        batch=settings.evaluation.batch,
        device=_device(settings),
    )
    index.save(out)
    for fault in faults:
        typer.echo(f"left out: {fault}", err=True)
    typer.echo(f"{len(index)} tiles indexed in {out}" + (f"; {len(faults)} left out" if faults else ""))


@app.command()
def status(
    roots: Annotated[list[str] | None, typer.Argument(help="Places of runs, sweeps and registries; default: .")] = None,
    address: Annotated[
        str | None, typer.Option(help="A cluster's dashboard, to list what it serves; default: RAY_DASHBOARD_ADDRESS.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show the runs, sweeps, releases and deployments that there are."""
    from dataclasses import asdict

    from rich.console import Console

    from s2s_ray.monitoring.inventory import take_inventory
    from s2s_ray.monitoring.status import dashboard_address, deployments, show

    found = [take_inventory(root) for root in roots or ["."]]
    asked = dashboard_address(address)
    served = deployments(asked) if asked else None
    if as_json:
        rows = None if served is None else [asdict(item) for item in served]
        typer.echo(json.dumps({"roots": [item.as_dict() for item in found], "deployments": rows}, indent=2))
    else:
        show(found, served, Console())


@app.command()
def exporter(
    roots: Annotated[list[str], typer.Argument(help="Places of runs, sweeps and registries.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; the port has no protection of its own.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 9105,
    every_s: Annotated[float, typer.Option(help="Seconds between two looks at the storage.", min=1.0)] = 30.0,
) -> None:
    """Tell Prometheus of the runs, sweeps, releases and checkpoints at some places, until Ctrl-C."""
    import signal
    import threading

    from s2s_ray.monitoring.exporter import exporting

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        with exporting(roots, host, port) as collector:
            typer.echo(f"http://{host}:{port}/metrics tells of {', '.join(roots)}; Ctrl-C ends it")
            while not stop.wait(every_s):
                collector.scan()
    except OSError as error:
        raise typer.BadParameter(f"{host}:{port} cannot be listened on: {error}") from None


@checkpoint_app.command("import")
def import_released(
    file: Annotated[str, typer.Argument(help="One of the authors' published checkpoints.")],
    out: Annotated[str, typer.Option(help="Where the checkpoint goes.")],
    strict: Annotated[bool, typer.Option(help="Refuse generator keys that the model has no place for.")] = False,
    trained_on: Annotated[
        str | None, typer.Option(help="cvusa or cvact: its treatment of images goes into the checkpoint, for serving.")
    ] = None,
) -> None:
    """Turn one of the authors' published files into a checkpoint."""
    import tempfile
    from pathlib import Path

    from s2s_ray.data.sources import published_geometry
    from s2s_ray.model.released import ReleasedCheckpointError, read_released

    meta = {"run": "released", "step": 0, "source": storage.name(file)}
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "released"
        storage.download(file, local)
        model, unused = read_released(local)
        if unused and strict:
            raise ReleasedCheckpointError(f"{file}: keys without a place: {', '.join(unused)}")
        if trained_on is not None:
            geometry = published_geometry(trained_on, model.config.height, model.config.width)
            meta["dataset"] = {"uri": trained_on, "digest": "", "geometry": geometry.model_dump(mode="json")}
        save_model(model, meta, Path(folder) / "checkpoint")
        storage.publish(Path(folder) / "checkpoint", out)
    typer.echo(f"{out} written" + (f"; not used: {', '.join(unused)}" if unused else ""))


@checkpoint_app.command("verify")
def verify_checkpoint(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint, or a run: its best one is taken.")],
    data: Annotated[str, typer.Option(help="The data set to measure on.")],
    expect: Annotated[list[str] | None, typer.Option(help="A recall in percent: r1=92.5, r5, r10 or r1%.")] = None,
    tolerance: Annotated[float, typer.Option(help="Points that the measured recall may lie below.")] = 0.5,
    overrides: SetOption = None,
) -> None:
    """Measure a checkpoint's recall on a data set again. Exit code 1 if it is lower than expected.

    The protocol is that of evaluation.split and evaluation.radius_m, as `--set` gives them.
    """
    import torch

    from s2s_ray.data.dataset import PairDataset
    from s2s_ray.evaluation.expectation import Expectation, check_geometry, measure_recall
    from s2s_ray.training.run import find_checkpoint

    expected = [Expectation.parse(text) for text in expect or ()]
    settings = load_config("paper", [*(overrides or ()), f"data.uri={json.dumps(data)}"])
    uri, device = find_checkpoint(checkpoint), "cuda" if torch.cuda.is_available() else "cpu"
    model = load_checkpoint(uri, device)
    dataset = PairDataset(data, settings.evaluation.split, cache_dir=settings.data.cache_dir)
    check_geometry(uri, read_meta(uri), dataset.manifest.geometry)
    result = measure_recall(model, dataset, settings.evaluation, device)
    for key, value in result.recall.items():
        typer.echo(f"R@{key} {100 * value:.2f}% of {result.gallery:,} tiles")
    missed = [line for each in expected if (line := each.missed(result, tolerance)) is not None]
    for line in missed:
        typer.echo(line, err=True)
    if missed:
        raise typer.Exit(1)


@checkpoint_app.command()
def publish(
    checkpoint: CheckpointOption,
    index: Annotated[str, typer.Option(help="The index built with this checkpoint.")],
    registry_uri: Annotated[str, typer.Option("--registry", help="Root of the registry.")],
    name: NameOption,
) -> None:
    """Put a checkpoint and its index into the registry as a release; `promote` puts it in service."""
    from s2s_ray.training.run import find_checkpoint

    release = registry.publish(registry_uri, name, find_checkpoint(checkpoint), index)
    typer.echo(f"release {release.id} of {name}")


@checkpoint_app.command()
def promote(
    release: Annotated[str, typer.Argument(help="The release's id.")],
    registry_uri: Annotated[str, typer.Option("--registry", help="Root of the registry.")],
    name: NameOption,
) -> None:
    """Make a release the current one."""
    typer.echo(f"{name} is now {registry.promote(registry_uri, name, release).id}")


@checkpoint_app.command()
def rollback(
    registry_uri: Annotated[str, typer.Option("--registry", help="Root of the registry.")], name: NameOption
) -> None:
    """Go back to the release that was current before."""
    typer.echo(f"{name} is now {registry.rollback(registry_uri, name).id}")


@checkpoint_app.command("list")
def list_releases(
    registry_uri: Annotated[str, typer.Option("--registry", help="Root of the registry.")], name: NameOption
) -> None:
    """List the releases of a name; the current one is marked."""
    releases = registry.list_releases(registry_uri, name)
    current = registry.current(registry_uri, name) if releases else None
    for release in releases:
        typer.echo(f"{'*' if release.id == current else ' '} {release.id}  step {release.step}  {release.source}")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and the presets.")] = False,
) -> None:
    if version:
        typer.echo(f"s2s-ray {code_version()}; presets: {', '.join(preset_names())}")
        raise typer.Exit


def _device(config: Config) -> str:
    """Where a checkpoint is measured. Raises ConfigError where the configuration asks for a GPU that there is not."""
    import torch

    if config.train.use_gpu and not torch.cuda.is_available():
        raise ConfigError("train.use_gpu=True, but this machine has no CUDA device: add `-s train.use_gpu=false`")
    return "cuda" if config.train.use_gpu else "cpu"


def run(name: str, command: Callable[[], object]) -> None:
    """Run a command line to the end of the process: user errors are one line and exit code 2, Ctrl-C is 130."""
    log_plainly()
    try:
        command()
    except ValueError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
    except StoppedError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(INTERRUPTED)


def main(arguments: list[str] | None = None) -> None:
    """The `s2s` command."""
    run("s2s", lambda: app(args=arguments, prog_name="s2s"))


if __name__ == "__main__":
    main()

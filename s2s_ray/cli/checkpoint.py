"""`s2s checkpoint ...`: checkpoints and the registry of releases."""

from __future__ import annotations

from typing import Annotated

import typer

from s2s_ray.cli.options import CheckpointOption, NameOption, RegistryOption, SetOption
from s2s_ray.errors import OptionError, RegistryError, WeightsError

DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; default: a GPU if there is one.")]

app = typer.Typer(no_args_is_help=True, help="Checkpoints and the registry of releases.")


@app.command("import")
def import_released(
    file: Annotated[str, typer.Argument(help="One of the authors' published checkpoints.")],
    out: Annotated[str, typer.Option(help="Output URI of the checkpoint.")],
    strict: Annotated[bool, typer.Option(help="Refuse generator keys that the model does not use.")] = False,
    trained_on: Annotated[
        str | None,
        typer.Option(help="cvusa or cvact: store how its images are treated in the checkpoint, for serving."),
    ] = None,
) -> None:
    """Convert one of the authors' published files to a checkpoint."""
    import tempfile
    from pathlib import Path
    from typing import Any

    from s2s_ray import storage
    from s2s_ray.data.sources import published_geometry
    from s2s_ray.model.checkpoint import save_model
    from s2s_ray.model.released import read_released

    if trained_on not in (None, "cvusa", "cvact"):
        raise OptionError(f"--trained-on {trained_on}: expected cvusa or cvact")
    meta: dict[str, Any] = {"run": "released", "step": 0, "source": storage.name(file)}
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "released"
        storage.download(file, local)
        try:
            model, unused = read_released(local)
        except WeightsError as error:
            raise WeightsError(str(error).replace(str(local), file)) from None
        if unused and strict:
            raise WeightsError(f"{file}: keys that the model does not use: {', '.join(unused)}")
        if trained_on is not None:
            geometry = published_geometry(trained_on, model.config.height, model.config.width)
            meta["dataset"] = {"uri": trained_on, "digest": "", "geometry": geometry.tree()}
        save_model(model, meta, Path(folder) / "checkpoint")
        storage.publish(Path(folder) / "checkpoint", out)
    typer.echo(f"{out} written" + (f"; unused keys: {', '.join(unused)}" if unused else ""))


@app.command("verify")
def verify_checkpoint(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint, or a run, whose best checkpoint is used.")],
    data: Annotated[str, typer.Option(help="URI of the data set to measure on.")],
    expect: Annotated[list[str] | None, typer.Option(help="A recall in percent: r1=92.5, r5, r10 or r1%.")] = None,
    tolerance: Annotated[float, typer.Option(help="Points by which the measured recall may fall short.")] = 0.5,
    overrides: SetOption = None,
) -> None:
    """Measure a checkpoint's recall on a data set again. Exit code 1 if it is lower than expected.

    The protocol is set by evaluation.split and evaluation.radius_m (`--set`).
    """
    import math

    import torch

    from s2s_ray.config import load_config
    from s2s_ray.data.dataset import PairDataset
    from s2s_ray.evaluation.expectation import Expectation, check_geometry, measure_recall
    from s2s_ray.model.checkpoint import load_checkpoint
    from s2s_ray.model.checkpoint_meta import read_meta
    from s2s_ray.training.run import find_checkpoint

    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise OptionError(f"--tolerance {tolerance}: expected percentage points, at least 0")
    expected = [Expectation.parse(text) for text in expect or ()]
    settings = load_config("paper", [*(overrides or ()), f"data.uri={data}"])
    uri, device = find_checkpoint(checkpoint), "cuda" if torch.cuda.is_available() else "cpu"
    model = load_checkpoint(uri, device)
    dataset = PairDataset.open(settings.data, settings.evaluation.split)
    check_geometry(uri, read_meta(uri), dataset.info.geometry)
    result = measure_recall(model, dataset, settings.evaluation, device)
    for key, value in result.recall.items():
        typer.echo(f"R@{key} {100 * value:.2f}% of {result.gallery:,} tiles")
    missed = [line for each in expected if (line := each.missed(result, tolerance)) is not None]
    for line in missed:
        typer.echo(line, err=True)
    if missed:
        raise typer.Exit(1)


@app.command()
def calibrate(
    checkpoint: CheckpointOption,
    out: Annotated[str, typer.Option(help="URI of the calibration, a JSON file, for `publish --calibration`.")],
    data: Annotated[
        str | None, typer.Option(help="URI of the data set; default: the one that the checkpoint was trained on.")
    ] = None,
    pictures: Annotated[int, typer.Option(help="Pictures of its validation split to ask.")] = 200,
    every: Annotated[float, typer.Option(help="Metres between tiles, where the data set has a margin.")] = 8.0,
    seed: Annotated[int, typer.Option(help="Seed of the headings that are drawn.")] = 0,
    device: DeviceOption = None,
) -> None:
    """Fit what turns similarities into positions with a radius and a confidence, on validation data."""
    from s2s_ray.cli.options import default_device, local_device
    from s2s_ray.inference import Embedder
    from s2s_ray.localization.calibrate import calibrate_checkpoint
    from s2s_ray.training.run import find_checkpoint

    uri = find_checkpoint(checkpoint)
    embedder = Embedder.load(uri, local_device(device or default_device()))
    calibration = calibrate_checkpoint(embedder, uri, data, pictures=pictures, every_m=every, seed=seed)
    calibration.write(out)
    for line in calibration.lines():
        typer.echo(line)
    typer.echo(f"{out} written")


@app.command()
def publish(
    checkpoint: CheckpointOption,
    index: Annotated[str, typer.Option(help="URI of the index built with this checkpoint.")],
    registry_uri: RegistryOption,
    name: NameOption,
    calibration: Annotated[
        str | None,
        typer.Option(help="URI of a calibration of this checkpoint; default: one is made on its own data set."),
    ] = None,
    no_calibration: Annotated[
        bool, typer.Option("--no-calibration", help="Publish without: fixes have neither a radius nor a confidence.")
    ] = False,
    device: DeviceOption = None,
) -> None:
    """Publish a checkpoint and its index as a release in the registry; `promote` makes it current."""
    from s2s_ray import registry
    from s2s_ray.training.run import find_checkpoint

    if calibration is not None and no_calibration:
        raise OptionError("give either --calibration or --no-calibration")
    uri = find_checkpoint(checkpoint)
    if calibration is not None:
        from s2s_ray.localization import Calibration

        release = registry.publish(registry_uri, name, uri, index, calibration=Calibration.read(calibration))
    elif no_calibration:
        release = registry.publish(registry_uri, name, uri, index)
    else:
        from s2s_ray.cli.options import default_device, local_device
        from s2s_ray.publishing import publish_calibrated

        chosen = local_device(device or default_device())
        release = publish_calibrated(registry_uri, name, uri, index, device=chosen)
    calibrated = registry.read_calibration(release) is not None
    typer.echo(f"release {release.id} of {name}" + ("" if calibrated else ", without a calibration"))


@app.command()
def promote(
    release: Annotated[str, typer.Argument(help="Id of the release.")],
    registry_uri: RegistryOption,
    name: NameOption,
    force: Annotated[bool, typer.Option("--force", help="Although it does not reach the floor of the name.")] = False,
) -> None:
    """Make a release the current one."""
    from s2s_ray import registry

    typer.echo(f"{name} is now {registry.promote(registry_uri, name, release, force=force).id}")


@app.command()
def floor(
    registry_uri: RegistryOption,
    name: NameOption,
    recall: Annotated[float | None, typer.Option(help="Smallest validation R@1 of a release, 0 to 1.")] = None,
    calibration_error: Annotated[
        float | None, typer.Option(help="Largest expected calibration error of a release, 0 to 1.")
    ] = None,
    none: Annotated[bool, typer.Option("--none", help="Ask for nothing.")] = False,
) -> None:
    """Set what a release must reach to be promoted, one figure or both; without options, show it."""
    from s2s_ray import registry

    values = {"recall": recall, "calibration_error": calibration_error}
    given = {field: value for field, value in values.items() if value is not None}
    if none and given:
        raise OptionError("--none asks for nothing: give it without --recall and --calibration-error")
    stored = registry.read_floor(registry_uri, name)
    former = {} if none else {field: getattr(stored, field) for field in values}
    if none or given:
        if not registry.list_releases(registry_uri, name):
            raise RegistryError(f"registry {registry_uri} has no releases of {name!r}")
        stored = registry.set_floor(registry_uri, name, **(former | given))
    shown = [
        f"{field.replace('_', ' ')} {value:g}" for field in values if (value := getattr(stored, field)) is not None
    ]
    typer.echo(f"floor of {name}: " + (", ".join(shown) or "none"))


@app.command()
def rollback(registry_uri: RegistryOption, name: NameOption) -> None:
    """Return to the release that was current before."""
    from s2s_ray import registry

    typer.echo(f"{name} is now {registry.rollback(registry_uri, name).id}")


@app.command("list")
def list_releases(registry_uri: RegistryOption, name: NameOption) -> None:
    """List the releases of a name; an asterisk marks the current one."""
    from s2s_ray import registry

    releases = registry.list_releases(registry_uri, name)
    if not releases:
        raise RegistryError(f"registry {registry_uri} has no releases of {name!r}")
    current = registry.current(registry_uri, name)
    for release in releases:
        typer.echo(f"{'*' if release.id == current else ' '} {release.id}  step {release.step}  {release.source}")

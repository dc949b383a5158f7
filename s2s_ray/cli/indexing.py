"""The verb `build-index`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from s2s_ray.cli.options import CheckpointOption, RunConfigOption, SetOption, device_of, run_settings, split_of
from s2s_ray.errors import ConfigError, OptionError

if TYPE_CHECKING:
    from s2s_ray.config import Config
    from s2s_ray.index import ReferenceIndex
    from s2s_ray.index.region import RegionTiles
    from s2s_ray.index.tiles import TileSource

app = typer.Typer()
log = logging.getLogger(__name__)

CONFIRM_FROM = 1_000_000
"""Points of a region from which `--yes` is needed."""


@app.command("build-index")
def build_index(
    checkpoint: CheckpointOption,
    out: Annotated[str, typer.Option(help="Output URI of the index.")],
    tiles: Annotated[
        bool,
        typer.Option("--tiles", help="Index the tiles of the manifest `source`, without panoramas and a data set."),
    ] = False,
    region: Annotated[
        str | None,
        typer.Option(
            "--region",
            help="Index a region of the imagery `source` (geotiff, tiles, or the procedural city) without a list of "
            "places: WEST,SOUTH,EAST,NORTH in degrees, or a GeoJSON file with polygons.",
        ),
    ] = None,
    every: Annotated[
        float | None, typer.Option("--every", help="Metres between neighbouring tiles of the region.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Index a region of more than a million tiles.")] = False,
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
    """Embed the satellite tiles of a split (evaluation.split) of data.uri, or of a region, into a reference index.

    A region is indexed in parts, so the same command resumes after a stop, and extended by another region with
    --extends.
    """
    from s2s_ray import storage
    from s2s_ray.index import read_info
    from s2s_ray.index.index import require_place
    from s2s_ray.training.run import find_checkpoint

    _require_one_kind(tiles=tiles, region=region, every=every, yes=yes)
    uri = storage.absolute(find_checkpoint(checkpoint))
    require_place(out)
    settings = run_settings(checkpoint, config, overrides)
    known = 0 if extends is None else read_info(extends).count
    if region is not None and every is not None:
        chosen = _region_tiles(settings, uri, region, every, yes=yes)
        index, left_out = _index_region(chosen, settings, uri, out, parallel=parallel, extends=extends)
        if left_out:
            typer.echo(f"left out: {len(left_out):,} tiles, the first {left_out[0]}", err=True)
    else:
        source = _tiles(settings.located(), uri, manifest=tiles)
        index, left_out = _index(source, settings, uri, out, parallel=parallel, extends=extends)
        for line in left_out:
            typer.echo(f"left out: {line}", err=True)
    added = "" if extends is None else f", {len(index) - known} of them new"
    typer.echo(f"{len(index)} tiles indexed in {out}{added}" + (f"; {len(left_out)} left out" if left_out else ""))


def _require_one_kind(*, tiles: bool, region: str | None, every: float | None, yes: bool) -> None:
    if region is not None and tiles:
        raise OptionError(f"--region {region}, --tiles: give one of them, a region or a list of tiles")
    if region is not None and every is None:
        raise OptionError(f"--region {region}: give --every METRES, the distance between neighbouring tiles, as well")
    if region is None and (every is not None or yes):
        given = "--yes" if every is None else f"--every {every:g}"
        raise OptionError(f"{given}: goes with --region")


def _index(
    source: TileSource, settings: Config, uri: str, out: str, *, parallel: bool, extends: str | None
) -> tuple[ReferenceIndex, Sequence[str]]:
    """Build an index at once, or in parts with Ray, and publish it."""
    from s2s_ray import registry
    from s2s_ray.index import ReferenceIndex
    from s2s_ray.index.build import build
    from s2s_ray.model.checkpoint import load_checkpoint

    if parallel:
        return _in_parts(source, settings, uri, out, parallel=True, extends=extends)
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
    return index, left_out


def _index_region(
    source: RegionTiles, settings: Config, uri: str, out: str, *, parallel: bool, extends: str | None
) -> tuple[ReferenceIndex, Sequence[str]]:
    """Say what building the index takes, and build it in parts."""
    import torch

    from s2s_ray import registry
    from s2s_ray.index import ReferenceIndex
    from s2s_ray.index.build import rows_to_embed
    from s2s_ray.index.forecast import forecast
    from s2s_ray.model.checkpoint import load_checkpoint

    here = torch.cuda.is_available() or not settings.train.use_gpu  # else only the workers have a GPU
    device = device_of(settings) if here or not parallel else "cpu"
    model = load_checkpoint(uri, device)
    base = None if extends is None else ReferenceIndex.load(extends)
    rows = rows_to_embed(source, model.config.descriptor_size, registry.fingerprint(uri), base)
    expected = forecast(
        model, source, rows, known=0 if base is None else len(base), batch=settings.evaluation.batch, device=device
    )
    size = source.region
    new = "" if base is None else f", {len(rows):,} of them new"
    typer.echo(f"{len(source.ids):,} tiles of {size.tile_m:g} m, every {size.every_m:g} m{new}", err=True)
    if source.outside:
        typer.echo(f"left out: about {source.outside:,} points of the region, outside {source.uri}", err=True)
    typer.echo(f"{expected} ({device})", err=True)
    del model, base
    return _in_parts(source, settings, uri, out, parallel=parallel, extends=extends)


def _in_parts(
    source: TileSource, settings: Config, uri: str, out: str, *, parallel: bool, extends: str | None
) -> tuple[ReferenceIndex, Sequence[str]]:
    from s2s_ray import storage
    from s2s_ray.index.parts import Build, build_in_parts

    base = None if extends is None else storage.absolute(extends)
    # With Ray it is the device of the workers; this process needs none.
    device = ("cuda" if settings.train.use_gpu else "cpu") if parallel else device_of(settings)
    planned = Build(uri, source, storage.absolute(out), settings.evaluation.batch, device, extends=base)
    return build_in_parts(planned, parallel=parallel)


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


def _region_tiles(settings: Config, checkpoint: str, region: str, every: float, *, yes: bool) -> RegionTiles:
    """Return the tiles of a region of the source's imagery.

    Raises:
        OptionError: so many points that they are probably a mistake, without `--yes`.
        ConfigError: a source without imagery.
        PriorError: a region that cannot be used.
    """
    from s2s_ray.data.sources import open_imagery
    from s2s_ray.geo.views import ViewGeometry
    from s2s_ray.index.region import RegionTiles, expected_tiles, read_region, tile_size
    from s2s_ray.model.checkpoint_meta import model_config, read_meta

    meta, imagery, area = read_meta(checkpoint), settings.located().source, read_region(region)
    opened = open_imagery(imagery)  # a source without any is refused before a missing size of tiles
    size = tile_size(settings.source, meta)
    if not yes and every > 0 and (points := expected_tiles(opened, area, every)) >= CONFIRM_FROM:
        raise OptionError(
            f"--region {region} --every {every:g}: about {points:,.0f} tiles; add --yes if that is right, or choose a "
            "larger distance or a smaller region"
        )
    views = ViewGeometry.of_checkpoint(model_config(meta, checkpoint), meta, checkpoint)
    return RegionTiles(imagery, area, every, size, views)

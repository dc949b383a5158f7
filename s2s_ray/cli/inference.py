"""`s2s localize`, `embed` and `synthesize`: with a service by its URL, or with a checkpoint on this machine."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from s2s_ray.cli.engine import Engine, Search, open_engine
from s2s_ray.errors import InputError, OptionError

if TYPE_CHECKING:
    from s2s_ray.geo.images import Layout
    from s2s_ray.geo.prior import FileCircle, Prior
    from s2s_ray.geo.query import Query

app = typer.Typer()

DEFAULT_K = 5
Images = Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files, by path or URI.")]
Url = Annotated[str | None, typer.Option("--url", help="URL of the service; its token is read from S2S_TOKEN.")]
Checkpoint = Annotated[str | None, typer.Option("--checkpoint", help="A checkpoint or a run, instead of a service.")]
Index = Annotated[str | None, typer.Option("--index", help="URI of the index built with that checkpoint.")]
Device = Annotated[str, typer.Option(help="Device of a local model: cpu, cuda or cuda:N.")]
Heading = Annotated[
    str,
    typer.Option(
        metavar="DEG|auto|unknown",
        help="Compass bearing of the pictures' middle column; auto: by the file, else, for the whole horizon, the "
        "release's default.",
    ),
]
Fov = Annotated[
    str | None,
    typer.Option(
        metavar="DEG|auto",
        help="Horizontal field of view; auto: by the file, else by the shape. Default: auto, but a heading given alone "
        "means a level panorama of the whole horizon if the shape allows it.",
    ),
]
ProjectionOption = Annotated[
    str, typer.Option("--projection", help="auto, equirectangular, rectilinear or cylindrical.")
]
Pitch = Annotated[float | None, typer.Option(help="Degrees that the camera looks up; default: by the file, else 0.")]
Roll = Annotated[float | None, typer.Option(help="Degrees that the camera is turned clockwise; default: likewise.")]
RowsOption = Annotated[
    str | None, typer.Option("--rows", metavar="FIRST,LAST", help="Part of the height to keep, as fractions.")
]
LayoutOption = Annotated[str, typer.Option("--layout", help="auto, north-up or polar.")]


@app.command()
def localize(
    images: Annotated[list[str] | None, typer.Argument(metavar="IMAGE...", help="Image files, by path or URI.")] = None,
    manifest: Annotated[
        str | None,
        typer.Option(
            help="A CSV or Parquet table of images instead, as for `s2s prepare`, of which only the column street is "
            "required: prints one JSON line for each picture or place; options hold where a row says nothing."
        ),
    ] = None,
    url: Url = None,
    checkpoint: Checkpoint = None,
    index: Index = None,
    calibration: Annotated[
        str | None, typer.Option("--calibration", help="URI of that checkpoint's calibration; without it, no radius.")
    ] = None,
    k: Annotated[
        int | None,
        typer.Option("-k", min=1, help=f"Number of tiles per picture; default: {DEFAULT_K}, or all if fewer."),
    ] = None,
    heading: Heading = "auto",
    fov: Fov = None,
    projection: ProjectionOption = "auto",
    pitch: Pitch = None,
    roll: Roll = None,
    rows: RowsOption = None,
    together: Annotated[bool, typer.Option("--together", help="All pictures were taken at one place.")] = False,
    near: Annotated[str | None, typer.Option(metavar="LAT,LON,METRES", help="Search only within a circle.")] = None,
    bbox: Annotated[str | None, typer.Option(metavar="W,S,E,N", help="Search only within a box.")] = None,
    prior: Annotated[
        str | None,
        typer.Option(metavar="file[,METRES]", help="Search only around the file's position, by default within 2 km."),
    ] = None,
    true: Annotated[str | None, typer.Option(metavar="LAT,LON", help="True position, to print the error.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per picture or place.")] = False,
    as_geojson: Annotated[bool, typer.Option("--geojson", help="Print one GeoJSON FeatureCollection.")] = False,
    device: Device = "cpu",
) -> None:
    """Find where photographs and panoramas were taken: print the position, and the nearest tiles of an index."""
    from s2s_ray.cli.locations import as_features, as_tree, in_words

    if as_json and as_geojson:
        raise OptionError("--json and --geojson exclude each other")
    if bool(images) == (manifest is not None):
        raise OptionError("give either images or --manifest")
    query = _query(heading, fov, projection, pitch, roll, rows)
    search = Search(k, _prior(near, bbox, prior), _position(true), together)
    with open_engine(url, checkpoint, index, device, calibration) as engine:
        if not images:
            assert manifest is not None
            _localize_listed(engine, manifest, query, search)
            return
        found = engine.locate(images, [query] * len(images), search)
    places = [images] if together else [[image] for image in images]
    shown = [location._replace(matches=location.matches[: k or DEFAULT_K]) for location in found]
    if as_geojson:
        typer.echo(json.dumps(as_features(images, shown, together=together)))
        return
    for place, location in zip(places, shown, strict=True):
        typer.echo(json.dumps(as_tree(place, location)) if as_json else in_words(place, location))


def _localize_listed(engine: Engine, manifest: str, query: Query, search: Search) -> None:
    """Print a JSON line for each picture or place of a manifest. Exit code 1 if a row has no answer."""
    from s2s_ray.cli.listed import Fault, answers, read_rows

    if search.true is not None or search.together:
        raise OptionError("--true, --together: with --manifest the columns latitude, longitude and place say it")
    rows, faults = read_rows(manifest, query)
    for fault in faults:
        typer.echo(fault, err=True)
    for answer in answers(engine, rows, search, search.k or DEFAULT_K):
        typer.echo(answer, err=isinstance(answer, Fault))
        if isinstance(answer, Fault):
            faults.append(answer)
    if faults:
        raise typer.Exit(1)


@app.command()
def embed(
    view: Annotated[Literal["street", "satellite"], typer.Argument(help="Content of the images: street or satellite.")],
    images: Images,
    out: Annotated[str, typer.Option(help="Output file of the descriptors, path or URI, .npy, float32 images x D.")],
    url: Url = None,
    checkpoint: Checkpoint = None,
    heading: Heading = "auto",
    fov: Fov = None,
    projection: ProjectionOption = "auto",
    pitch: Pitch = None,
    roll: Roll = None,
    rows: RowsOption = None,
    layout: LayoutOption = "auto",
    device: Device = "cpu",
) -> None:
    """Write unit descriptors of street views, each at its heading, or of satellite images."""
    import numpy as np

    from s2s_ray import storage

    query, checked = _query(heading, fov, projection, pitch, roll, rows), _layout(layout)
    with open_engine(url, checkpoint, None, device) as engine:
        if view == "street":
            descriptors = engine.embed_street(images, query)
        else:
            descriptors = engine.embed_satellite(images, checked)
    if storage.is_local(out):  # written in place: it may be a device, such as /dev/stdout
        with storage.local_faults(out), storage.local_path(out).open("wb") as file:
            np.save(file, descriptors, allow_pickle=False)
    else:
        content = io.BytesIO()
        np.save(content, descriptors, allow_pickle=False)
        storage.write_bytes(out, content.getvalue())
    typer.echo(f"{descriptors.shape[0]} descriptors of {descriptors.shape[1]} numbers in {out}")


@app.command()
def synthesize(
    images: Images,
    out: Annotated[str, typer.Option(help="Output folder of the street views, path or URI, NAME.png each.")],
    url: Url = None,
    checkpoint: Checkpoint = None,
    layout: LayoutOption = "auto",
    device: Device = "cpu",
) -> None:
    """Write the street views that the model expects at the centre of satellite images."""
    from s2s_ray import storage
    from s2s_ray.geo.images import encode

    targets = [storage.join(out, f"{Path(storage.name(image)).stem}.png") for image in images]
    if len(set(targets)) < len(targets):
        raise OptionError(
            "two of the images have the same file name, so their outputs would collide: run them separately"
        )
    checked = _layout(layout)
    with open_engine(url, checkpoint, None, device) as engine:
        views = engine.synthesize(images, checked)
    for target, view in zip(targets, views, strict=True):
        storage.write_bytes(target, encode(view, "png"))
        typer.echo(target)


@app.command()
def token(
    name: Annotated[str, typer.Argument(help="Name of the caller, as it appears in the service's log.")],
    admin: Annotated[bool, typer.Option("--admin", help="Allow it to change releases.")] = False,
) -> None:
    """Create a bearer token; print the secret and its entry for the service's configuration."""
    import hashlib
    import re
    import secrets

    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
        raise OptionError(f"NAME {name!r}: expected 1 to 64 letters, digits, dots, hyphens or underscores")
    secret = secrets.token_urlsafe(32)
    entry = {"name": name, "sha256": hashlib.sha256(secret.encode()).hexdigest()} | ({"admin": True} if admin else {})
    typer.echo(f"token (shown once): {secret}\ntokens:\n  - {json.dumps(entry)}")


def _numbers(text: str, option: str, count: int) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise OptionError(f"{option} {text}: expected {count} numbers, separated by commas")
    return numbers


def _query(
    heading: str, fov: str | None, projection: str, pitch: float | None, roll: float | None, rows: str | None
) -> Query:
    """Return what the options say of the pictures. Raises OptionError."""
    from s2s_ray.geo.query import Query

    bearing = _degrees(heading, "--heading", "auto", "unknown")
    angle = None if fov is None else _degrees(fov, "--fov", "auto")
    kept = _rows(rows)
    options = {"heading": bearing, "fov": angle, "projection": projection, "pitch": pitch, "roll": roll}
    for option, value in options.items():  # alone, so that the error names one option
        if value is not None:
            text = value if isinstance(value, str) else f"{value:g}"
            try:
                Query(**{option: value})
            except InputError as error:
                raise OptionError(f"--{option} {text}: {str(error).partition(': ')[2]}") from None
    return Query(**options, rows=kept)


def _degrees(text: str, option: str, *words: str) -> Any:
    if text in words:
        return text
    try:
        return float(text)
    except ValueError:
        raise OptionError(f"{option} {text}: expected degrees, {' or '.join(words)}") from None


def _rows(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    first, last = _numbers(text, "--rows", 2)
    if not 0 <= first < last <= 1:
        raise OptionError(f"--rows {text}: expected two increasing fractions from 0 to 1")
    return first, last


def _position(text: str | None) -> tuple[float, float] | None:
    from s2s_ray.geo.prior import check_position

    if text is None:
        return None
    latitude, longitude = _numbers(text, "--true", 2)
    with _named("--true", text):
        check_position(latitude, longitude)
    return latitude, longitude


def _prior(near: str | None, bbox: str | None, own: str | None) -> Prior | FileCircle | None:
    from s2s_ray.geo.prior import Box, Circle, FileCircle

    given = [option for option, text in (("--near", near), ("--bbox", bbox), ("--prior", own)) if text is not None]
    if len(given) > 1:
        raise OptionError(f"{' and '.join(given)} exclude each other")
    if near is not None:
        with _named("--near", near):
            return Circle(*_numbers(near, "--near", 3))
    if bbox is not None:
        with _named("--bbox", bbox):
            return Box(*_numbers(bbox, "--bbox", 4))
    if own is not None:
        with _named("--prior", own):
            return FileCircle.parse(own)
    return None


@contextmanager
def _named(option: str, text: str) -> Iterator[None]:
    """Name the option in an error about its value."""
    try:
        yield
    except OptionError:
        raise
    except InputError as error:
        raise OptionError(f"{option} {text}: {error}") from None


def _layout(text: str) -> Layout:
    from s2s_ray.geo.images import LAYOUTS

    for layout in LAYOUTS:
        if layout == text:
            return layout
    raise OptionError(f"--layout {text}: expected {', '.join(LAYOUTS[:-1])} or {LAYOUTS[-1]}")

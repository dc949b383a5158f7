"""`s2s localize`, `embed` and `synthesize`: with a service by its URL, or with a checkpoint on this machine."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from s2s_ray.cli.engine import Rows, open_engine
from s2s_ray.errors import InputError, OptionError

if TYPE_CHECKING:
    from s2s_ray.geo.images import Layout
    from s2s_ray.geo.prior import Prior

app = typer.Typer()

DEFAULT_K = 5
Images = Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files, by path or URI.")]
Url = Annotated[str | None, typer.Option("--url", help="URL of the service; its token is read from S2S_TOKEN.")]
Checkpoint = Annotated[str | None, typer.Option("--checkpoint", help="A checkpoint or a run, instead of a service.")]
Index = Annotated[str | None, typer.Option("--index", help="URI of the index built with that checkpoint.")]
Device = Annotated[str, typer.Option(help="Device of a local model: cpu, cuda or cuda:N.")]
Heading = Annotated[float, typer.Option(help="Compass bearing of the panoramas' middle column, in degrees.")]
RowsOption = Annotated[
    str | None, typer.Option("--rows", metavar="FIRST,LAST", help="Part of the height to keep, as fractions.")
]
LayoutOption = Annotated[str, typer.Option("--layout", help="auto, north-up or polar.")]


@app.command()
def localize(
    images: Images,
    url: Url = None,
    checkpoint: Checkpoint = None,
    index: Index = None,
    k: Annotated[
        int | None,
        typer.Option("-k", min=1, help=f"Number of tiles per panorama; default: {DEFAULT_K}, or all if fewer."),
    ] = None,
    heading: Heading = 0.0,
    rows: RowsOption = None,
    near: Annotated[str | None, typer.Option(metavar="LAT,LON,METRES", help="Search only within a circle.")] = None,
    bbox: Annotated[str | None, typer.Option(metavar="W,S,E,N", help="Search only within a box.")] = None,
    true: Annotated[str | None, typer.Option(metavar="LAT,LON", help="True position, to print the error.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per panorama.")] = False,
    device: Device = "cpu",
) -> None:
    """Localise panoramas: print the nearest tiles of an index."""
    position = _position(true)
    prior, kept = _prior(near, bbox), _rows(rows)
    with open_engine(url, checkpoint, index, device) as engine:
        found = engine.localize(images, k, _heading(heading), kept, prior, position)
    for image, matches in zip(images, found, strict=True):
        shown = matches[: k or DEFAULT_K]
        if as_json:
            typer.echo(json.dumps({"image": image, "matches": [match._asdict() for match in shown]}))
            continue
        typer.echo(image)
        for match in shown:
            place = "position unknown"
            if match.latitude is not None and match.longitude is not None:
                place = f"{match.latitude:.6f}, {match.longitude:.6f}"
            away = "" if match.distance_m is None else f"  {match.distance_m:,.0f} m away"
            typer.echo(
                f"  {match.rank:>3}  {match.id}  {place}  descriptor distance {match.descriptor_distance:.3f}{away}"
            )


@app.command()
def embed(
    view: Annotated[Literal["street", "satellite"], typer.Argument(help="Content of the images: street or satellite.")],
    images: Images,
    out: Annotated[str, typer.Option(help="Output file of the descriptors, path or URI, .npy, float32 images x D.")],
    url: Url = None,
    checkpoint: Checkpoint = None,
    heading: Heading = 0.0,
    rows: RowsOption = None,
    layout: LayoutOption = "auto",
    device: Device = "cpu",
) -> None:
    """Write unit descriptors of panoramas or satellite images."""
    import numpy as np

    from s2s_ray import storage

    kept, checked = _rows(rows), _layout(layout)
    with open_engine(url, checkpoint, None, device) as engine:
        if view == "street":
            descriptors = engine.embed_street(images, _heading(heading), kept)
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


def _heading(degrees: float) -> float:
    if not -360 <= degrees <= 360:
        raise OptionError(f"--heading {degrees:g}: expected a compass bearing in degrees, from -360 to 360")
    return degrees


def _rows(text: str | None) -> Rows | None:
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


def _prior(near: str | None, bbox: str | None) -> Prior | None:
    from s2s_ray.geo.prior import Box, Circle

    if near is not None and bbox is not None:
        raise OptionError("--near and --bbox exclude each other")
    if near is not None:
        with _named("--near", near):
            return Circle(*_numbers(near, "--near", 3))
    if bbox is not None:
        with _named("--bbox", bbox):
            return Box(*_numbers(bbox, "--bbox", 4))
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

"""`s2s localize`, `embed` and `synthesize`: of a service by its URL, or of a checkpoint on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, cast

import numpy as np
import typer

from s2s_ray import storage
from s2s_ray.errors import OptionError, UnreadableImageError
from s2s_ray.geo.images import (
    Layout,
    Pixels,
    decode,
    encode,
)
from s2s_ray.geo.prior import Box, Circle, Prior, check_position, distances_m
from s2s_ray.index import Descriptors

if TYPE_CHECKING:  # httpx2 costs every other verb its import
    from s2s_ray.client import ServedMatch

app = typer.Typer()

Rows = tuple[float, float]
Images = Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files, by path or URI.")]
Url = Annotated[str | None, typer.Option("--url", help="The service to ask; its token is taken from S2S_TOKEN.")]
Checkpoint = Annotated[str | None, typer.Option("--checkpoint", help="A checkpoint or a run, instead of a service.")]
Index = Annotated[str | None, typer.Option("--index", help="The index built with that checkpoint.")]
Device = Annotated[str, typer.Option(help="Where a local model runs: cpu, cuda.")]
Heading = Annotated[float, typer.Option(help="Compass bearing of the panoramas' middle column, in degrees.")]
RowsOption = Annotated[
    str | None, typer.Option("--rows", metavar="FIRST,LAST", help="Part of the height that is kept, as fractions.")
]
LayoutOption = Annotated[str, typer.Option("--layout", help="auto, north-up or polar.")]


class Engine(Protocol):
    """What answers: `Client`, or a checkpoint on this machine."""

    def embed_street(self, images: list[str], heading: float, rows: Rows | None) -> Descriptors: ...
    def embed_satellite(self, images: list[str], layout: Layout) -> Descriptors: ...
    def synthesize(self, images: list[str], layout: Layout) -> list[Pixels]: ...
    def localize(
        self, images: list[str], k: int, heading: float, rows: Rows | None, prior: Prior | None, true: Any
    ) -> list[list[ServedMatch]]: ...


class Local:
    """A checkpoint, and for localisation its index, in this process."""

    def __init__(self, checkpoint: str, index: str | None, device: str) -> None:
        from s2s_ray.training.run import find_checkpoint

        self._checkpoint, self._index, self._device = find_checkpoint(checkpoint), index, device

    def embed_street(self, images: list[str], heading: float, rows: Rows | None) -> Descriptors:
        from s2s_ray.inference import Embedder

        return Embedder.load(self._checkpoint, self._device).street(_read(images), heading, rows)

    def embed_satellite(self, images: list[str], layout: Layout) -> Descriptors:
        from s2s_ray.inference import Embedder

        return Embedder.load(self._checkpoint, self._device).satellite(_read(images), layout)

    def synthesize(self, images: list[str], layout: Layout) -> list[Pixels]:
        from s2s_ray.inference import Synthesizer

        return list(Synthesizer.load(self._checkpoint, self._device).street(_read(images), layout))

    def localize(
        self,
        images: list[str],
        k: int,
        heading: float,
        rows: Rows | None,
        prior: Prior | None,
        true: tuple[float, float] | None,
    ) -> list[list[ServedMatch]]:
        from s2s_ray.client import ServedMatch
        from s2s_ray.inference import Localizer

        if self._index is None:
            raise OptionError("--checkpoint alone cannot localise: give --index with it")
        found = Localizer.load(self._checkpoint, self._index, self._device).street(
            _read(images), k, heading, rows, prior
        )
        return [
            [
                ServedMatch(
                    one.rank, one.id, one.latitude, one.longitude, one.descriptor_distance,
                    _metres(true, one.latitude, one.longitude),
                )
                for one in matches
            ]
            for matches in found
        ]  # fmt: skip


@app.command()
def localize(
    images: Images,
    url: Url = None,
    checkpoint: Checkpoint = None,
    index: Index = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Tiles to name for each panorama.")] = 5,
    heading: Heading = 0.0,
    rows: RowsOption = None,
    near: Annotated[str | None, typer.Option(metavar="LAT,LON,METRES", help="Only tiles within a circle.")] = None,
    bbox: Annotated[str | None, typer.Option(metavar="W,S,E,N", help="Only tiles within a box.")] = None,
    true: Annotated[str | None, typer.Option(metavar="LAT,LON", help="True position, to say how far off.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per panorama.")] = False,
    device: Device = "cpu",
) -> None:
    """Where panoramas were taken: the nearest tiles of an index."""
    position = _position(true)
    area, kept = _prior(near, bbox), _rows(rows)
    with _engine(url, checkpoint, index, device) as engine:
        found = engine.localize(images, k, heading, kept, area, position)
    for image, matches in zip(images, found, strict=True):
        if as_json:
            typer.echo(json.dumps({"image": image, "matches": [match._asdict() for match in matches]}))
            continue
        typer.echo(image)
        for match in matches:
            where = "position not known"
            if match.latitude is not None and match.longitude is not None:
                where = f"{match.latitude:.6f}, {match.longitude:.6f}"
            far = "" if match.distance_m is None else f"  {match.distance_m:,.0f} m away"
            typer.echo(
                f"  {match.rank:>3}  {match.id}  {where}  descriptor distance {match.descriptor_distance:.3f}{far}"
            )


@app.command()
def embed(
    view: Annotated[Literal["street", "satellite"], typer.Argument(help="What the images show: street or satellite.")],
    images: Images,
    out: Annotated[Path, typer.Option(help="Where the descriptors go, .npy, float32 images x D.")],
    url: Url = None,
    checkpoint: Checkpoint = None,
    heading: Heading = 0.0,
    rows: RowsOption = None,
    layout: LayoutOption = "auto",
    device: Device = "cpu",
) -> None:
    """Unit descriptors of panoramas or satellite images."""
    kept, unrolled = _rows(rows), _layout(layout)
    with _engine(url, checkpoint, None, device) as engine:
        if view == "street":
            descriptors = engine.embed_street(images, heading, kept)
        else:
            descriptors = engine.embed_satellite(images, unrolled)
    with storage.local_faults(str(out)), out.open("wb") as file:
        np.save(file, descriptors, allow_pickle=False)
    typer.echo(f"{descriptors.shape[0]} descriptors of {descriptors.shape[1]} numbers in {out}")


@app.command()
def synthesize(
    images: Images,
    out: Annotated[Path, typer.Option(help="Folder for the street views, NAME.png each.")],
    url: Url = None,
    checkpoint: Checkpoint = None,
    layout: LayoutOption = "auto",
    device: Device = "cpu",
) -> None:
    """The street views that the model expects at the middle of satellite images."""
    targets = [out / f"{Path(storage.name(image)).stem}.png" for image in images]
    if len(set(targets)) < len(targets):
        raise OptionError("two of the images have the same name, and their views would too: draw them apart")
    unrolled = _layout(layout)
    with _engine(url, checkpoint, None, device) as engine:
        views = engine.synthesize(images, unrolled)
    for target, view in zip(targets, views, strict=True):
        storage.write_bytes(str(target), encode(view, "png"))
        typer.echo(str(target))


@app.command()
def token(
    name: Annotated[str, typer.Argument(help="Who it is for; the name stands in the service's log.")],
    admin: Annotated[bool, typer.Option("--admin", help="May change releases.")] = False,
) -> None:
    """Make a bearer token: the secret, and what goes into the service's configuration."""
    secret = secrets.token_urlsafe(32)
    entry = {"name": name, "sha256": hashlib.sha256(secret.encode()).hexdigest()} | ({"admin": True} if admin else {})
    typer.echo(f"token (shown once): {secret}\ntokens:\n  - {json.dumps(entry)}")


@contextmanager
def _engine(url: str | None, checkpoint: str | None, index: str | None, device: str) -> Iterator[Engine]:
    if (url is None) == (checkpoint is None):
        raise OptionError("give --url of a service or --checkpoint, one of them")
    if url is not None:
        from s2s_ray.client import Client

        with Client(url, os.environ.get("S2S_TOKEN")) as client:
            yield cast(Engine, client)
    else:
        assert checkpoint is not None
        yield Local(checkpoint, index, device)


def _read(images: list[str]) -> list[Pixels]:
    pixels = []
    for image in images:
        try:
            pixels.append(decode(storage.read_bytes(image)))
        except UnreadableImageError as error:
            raise UnreadableImageError(f"the image {image} {error}") from None
    return pixels


def _metres(true: tuple[float, float] | None, latitude: float | None, longitude: float | None) -> float | None:
    if true is None or latitude is None or longitude is None:
        return None
    return float(distances_m(*true, np.array([latitude]), np.array([longitude]))[0])


def _numbers(text: str, option: str, count: int) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise OptionError(f"{option} {text}: expected {count} numbers, separated by commas")
    return numbers


def _rows(text: str | None) -> Rows | None:
    if text is None:
        return None
    first, last = _numbers(text, "--rows", 2)
    return first, last


def _position(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    latitude, longitude = _numbers(text, "--true", 2)
    check_position(latitude, longitude)
    return latitude, longitude


def _prior(near: str | None, bbox: str | None) -> Prior | None:
    if near is not None and bbox is not None:
        raise OptionError("--near and --bbox exclude each other")
    if near is not None:
        return Circle(*_numbers(near, "--near", 3))
    return None if bbox is None else Box(*_numbers(bbox, "--bbox", 4))


def _layout(text: str) -> Layout:
    if text not in ("auto", "north-up", "polar"):
        raise OptionError(f"--layout {text}: expected auto, north-up or polar")
    return cast(Layout, text)

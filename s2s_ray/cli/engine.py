"""The models that `s2s localize`, `embed` and `synthesize` use: a service, or a checkpoint on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol

from s2s_ray.errors import OptionError, UnreadableImageError, ViewError

if TYPE_CHECKING:  # NumPy, Pillow, PyTorch and httpx2 would delay every other verb
    from s2s_ray.client import ServedLocation
    from s2s_ray.geo.images import Descriptors, Layout, Pixels, Seen
    from s2s_ray.geo.prior import FileCircle, Prior
    from s2s_ray.geo.query import Known, Query
    from s2s_ray.geo.views import View
    from s2s_ray.inference import Embedder, Localizer

Position = tuple[float, float]


class Search(NamedTuple):
    """What to search for, besides the pictures: see `Client.locate`."""

    k: int | None = None
    prior: Prior | FileCircle | None = None
    true: Position | None = None
    together: bool = False


class Engine(Protocol):
    """A model to use."""

    def embed_street(self, images: list[str], query: Query) -> Descriptors: ...
    def embed_satellite(self, images: list[str], layout: Layout) -> Descriptors: ...
    def synthesize(self, images: list[str], layout: Layout) -> list[Pixels]: ...
    def locate(self, images: list[str], queries: list[Query], search: Search) -> list[ServedLocation]: ...


class Remote:
    """A service."""

    def __init__(self, url: str, token: str | None) -> None:
        """Open no connection yet. Raises InputError."""
        from s2s_ray.client import Client

        self.client = Client(url, token)

    def embed_street(self, images: list[str], query: Query) -> Descriptors:
        """Return descriptors of pictures, N x D."""
        return self.client.embed_street(
            images, query.heading, query.rows,
            fov=query.fov, projection=query.projection, pitch=query.pitch, roll=query.roll,
        )  # fmt: skip

    def embed_satellite(self, images: list[str], layout: Layout) -> Descriptors:
        """Return descriptors of satellite images, N x D."""
        return self.client.embed_satellite(images, layout)

    def synthesize(self, images: list[str], layout: Layout) -> list[Pixels]:
        """Return the street view of each satellite image, H W 3."""
        return self.client.synthesize(images, layout)

    def locate(self, images: list[str], queries: list[Query], search: Search) -> list[ServedLocation]:
        """Return where each picture, or all of them together, were taken.

        Raises:
            ViewError: pictures of which different things are known; one request says the same of all.
        """
        if any(query != queries[0] for query in queries):
            raise ViewError(
                f"{', '.join(images)}: one request to a service says the same of all its pictures, but these differ in "
                "heading, fov, projection, pitch or roll: store that in their files, or use --checkpoint"
            )
        return self.client.locate(
            images, queries[0], k=search.k, prior=search.prior, true=search.true, together=search.together
        )


class Local:
    """A checkpoint, and for localisation its index and calibration, in this process."""

    def __init__(self, checkpoint: str, index: str | None, calibration: str | None, device: str) -> None:
        """Find the checkpoint. Raises RunError, StorageError, OptionError."""
        from s2s_ray.cli.options import local_device
        from s2s_ray.training.run import find_checkpoint

        self._checkpoint, self._index, self._calibration = find_checkpoint(checkpoint), index, calibration
        self._device = local_device(device)

    def embed_street(self, images: list[str], query: Query) -> Descriptors:
        """Return descriptors of pictures, N x D. Raises ViewError for a picture of unknown heading."""
        import numpy as np

        from s2s_ray.inference import Embedder

        embedder = Embedder.load(self._checkpoint, self._device)
        pictures = _street_views(embedder, images, [query] * len(images))
        for image, (known, _) in zip(images, pictures, strict=True):
            if known.heading is None:
                raise ViewError(
                    f"the heading of {image} is unknown, and one descriptor has one heading: give --heading DEGREES"
                )
        nothing = np.empty((0, embedder.model.config.descriptor_size), np.float32)
        return np.concatenate([nothing, *(_embedded(embedder, view) for _, view in pictures)])

    def embed_satellite(self, images: list[str], layout: Layout) -> Descriptors:
        """Return descriptors of satellite images, N x D."""
        from s2s_ray.inference import Embedder

        return Embedder.load(self._checkpoint, self._device).satellite(_read(images), layout)

    def synthesize(self, images: list[str], layout: Layout) -> list[Pixels]:
        """Return the street view of each satellite image, H W 3."""
        from s2s_ray.inference import Synthesizer

        return list(Synthesizer.load(self._checkpoint, self._device).street(_read(images), layout))

    @cached_property
    def _localizer(self) -> Localizer:
        from s2s_ray.inference import Localizer

        if self._index is None:
            raise OptionError("--checkpoint alone cannot localise: give --index with it")
        return Localizer.load(self._checkpoint, self._index, self._device, calibration=self._calibration)

    def locate(self, images: list[str], queries: list[Query], search: Search) -> list[ServedLocation]:
        """Return where each picture, or all of them together, were taken. Raises S2SError."""
        from s2s_ray.client import ServedLocation
        from s2s_ray.localization.area import area
        from s2s_ray.service import answers

        localizer = self._localizer
        pictures = _street_views(localizer.embedder, images, queries)
        locations = []
        for found in localizer.locate_views(pictures, search.k, search.prior, together=search.together):
            tree = answers.found_tree(localizer.index, found, surface=False)
            _, position, _ = area(search.prior, found.pictures)
            understood = [
                {"query": answers.query(known, estimated=estimated)}
                for known, estimated in zip(found.pictures, tree["headings"], strict=True)
            ]
            located = {"images": understood, **answers.localization(tree, search.true or position)}
            locations.append(ServedLocation.parse(located))
        return locations


@contextmanager
def open_engine(
    url: str | None, checkpoint: str | None, index: str | None, device: str, calibration: str | None = None
) -> Iterator[Engine]:
    """Connect to the service, or open the local checkpoint, that the options name. Raises OptionError, S2SError."""
    if (url is None) == (checkpoint is None):
        raise OptionError("give either --url of a service or --checkpoint")
    if url is not None:
        import os

        for option, value in (("--index", index), ("--calibration", calibration)):
            if value is not None:
                raise OptionError(f"{option}: a service has its own; give it with --checkpoint only")
        remote = Remote(url, os.environ.get("S2S_TOKEN"))
        with remote.client:
            yield remote
    else:
        assert checkpoint is not None
        yield Local(checkpoint, index, calibration, device)


def _street_views(embedder: Embedder, images: list[str], queries: list[Query]) -> list[tuple[Known, View]]:
    """Return what is known of each picture, and the model's view of it."""
    from s2s_ray.geo.metadata import read_metadata

    geometry = embedder.geometry
    pictures = []
    for image, query in zip(images, queries, strict=True):
        content, pixels, shown = _decoded(image)
        try:
            known = geometry.settle(query, pixels, read_metadata(content))
            pictures.append((known, geometry.of_query(pixels, known, shown)))
        except ViewError as error:
            raise ViewError(f"{image}: {error}") from None
    return pictures


def _embedded(embedder: Embedder, view: View) -> Descriptors:
    return embedder.embed_street(view.pixels[None], None if view.seen is None else view.seen[None])


def require_readable(image: str) -> None:
    """Refuse an image file that cannot be read or decoded. Raises StorageError, UnreadableImageError."""
    _decoded(image)


def _read(images: Sequence[str]) -> list[Pixels]:
    return [_decoded(image)[1] for image in images]


def _decoded(image: str) -> tuple[bytes, Pixels, Seen | None]:
    """Return an image file's content, its pixels, and which of them are not transparent (`decode_seen`).

    Raises:
        StorageError, UnreadableImageError: it cannot be read.
    """
    from s2s_ray import storage
    from s2s_ray.geo.images import decode_seen

    content = storage.read_bytes(image)
    try:
        return content, *decode_seen(content)
    except UnreadableImageError as error:
        raise UnreadableImageError(f"the image {image} {error}") from None

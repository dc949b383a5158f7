"""The models that `s2s localize`, `embed` and `synthesize` use: a service, or a checkpoint on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, cast

from s2s_ray.errors import OptionError, UnreadableImageError

if TYPE_CHECKING:  # NumPy, Pillow and httpx2 would delay every other verb
    from s2s_ray.client import ServedMatch
    from s2s_ray.geo.images import Descriptors, Layout, Pixels
    from s2s_ray.geo.prior import Prior

Rows = tuple[float, float]


class Engine(Protocol):
    """A model to use: `Client`, or a checkpoint on this machine."""

    def embed_street(self, images: list[str], heading: float, rows: Rows | None) -> Descriptors: ...
    def embed_satellite(self, images: list[str], layout: Layout) -> Descriptors: ...
    def synthesize(self, images: list[str], layout: Layout) -> list[Pixels]: ...
    def localize(
        self, images: list[str], k: int | None, heading: float, rows: Rows | None, prior: Prior | None, true: Any
    ) -> list[list[ServedMatch]]: ...


class Local:
    """A checkpoint, and for localisation its index, in this process."""

    def __init__(self, checkpoint: str, index: str | None, device: str) -> None:
        """Find the checkpoint. Raises RunError, StorageError, OptionError."""
        from s2s_ray.cli.options import local_device
        from s2s_ray.training.run import find_checkpoint

        self._checkpoint, self._index, self._device = find_checkpoint(checkpoint), index, local_device(device)

    def embed_street(self, images: list[str], heading: float, rows: Rows | None) -> Descriptors:
        """Return descriptors of panoramas, N x D."""
        from s2s_ray.inference import Embedder

        return Embedder.load(self._checkpoint, self._device).street(_read(images), heading, rows)

    def embed_satellite(self, images: list[str], layout: Layout) -> Descriptors:
        """Return descriptors of satellite images, N x D."""
        from s2s_ray.inference import Embedder

        return Embedder.load(self._checkpoint, self._device).satellite(_read(images), layout)

    def synthesize(self, images: list[str], layout: Layout) -> list[Pixels]:
        """Return the street view of each satellite image, H W 3."""
        from s2s_ray.inference import Synthesizer

        return list(Synthesizer.load(self._checkpoint, self._device).street(_read(images), layout))

    def localize(
        self,
        images: list[str],
        k: int | None,
        heading: float,
        rows: Rows | None,
        prior: Prior | None,
        true: tuple[float, float] | None,
    ) -> list[list[ServedMatch]]:
        """Return the nearest tiles of each panorama, best first."""
        from s2s_ray.client import ServedMatch
        from s2s_ray.inference import Localizer

        if self._index is None:
            raise OptionError("--checkpoint alone cannot localise: give --index with it")
        localizer = Localizer.load(self._checkpoint, self._index, self._device)
        found = localizer.street(_read(images), k, heading, rows, prior)
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


@contextmanager
def open_engine(url: str | None, checkpoint: str | None, index: str | None, device: str) -> Iterator[Engine]:
    """Connect to the service, or open the local checkpoint, that the options name. Raises OptionError, S2SError."""
    if (url is None) == (checkpoint is None):
        raise OptionError("give either --url of a service or --checkpoint")
    if url is not None:
        import os

        from s2s_ray.client import Client

        if index is not None:
            raise OptionError("--index: a service has its own; give it with --checkpoint only")
        with Client(url, os.environ.get("S2S_TOKEN")) as client:
            yield cast(Engine, client)
    else:
        assert checkpoint is not None
        yield Local(checkpoint, index, device)


def _read(images: list[str]) -> list[Pixels]:
    from s2s_ray import storage
    from s2s_ray.geo.images import decode

    pixels = []
    for image in images:
        try:
            pixels.append(decode(storage.read_bytes(image)))
        except UnreadableImageError as error:
            raise UnreadableImageError(f"the image {image} {error}") from None
    return pixels


def _metres(true: tuple[float, float] | None, latitude: float | None, longitude: float | None) -> float | None:
    import numpy as np

    from s2s_ray.geo.prior import distances_m

    if true is None or latitude is None or longitude is None:
        return None
    return float(distances_m(*true, np.array([latitude]), np.array([longitude]))[0])

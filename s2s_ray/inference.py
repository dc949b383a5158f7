"""Inference with a trained model: embed, synthesise, localise. Plain classes, without Ray or HTTP.

Each accepts images of any size (uint8 RGB, h w 3) and converts them to the model's views. Callers that convert
elsewhere, such as the service, pass views (uint8 B 3 H W) to `embed_street`, `embed_satellite` and `synthesize`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2s_ray.errors import InputError, ViewError
from s2s_ray.geo.images import Descriptors, Layout, Pixels
from s2s_ray.geo.metadata import PhotoMetadata
from s2s_ray.geo.numbers import elements, finite, whole
from s2s_ray.geo.prepare import BEARING
from s2s_ray.geo.prior import FileCircle, Prior
from s2s_ray.geo.query import Known, Query
from s2s_ray.geo.views import View, ViewGeometry, to_pixels
from s2s_ray.index import Match, ReferenceIndex
from s2s_ray.localization import Calibration, Found, Turned, locate
from s2s_ray.localization.area import area
from s2s_ray.localization.turned import searched, turns
from s2s_ray.model.checkpoint import load_checkpoint
from s2s_ray.model.checkpoint_meta import fingerprint, read_meta
from s2s_ray.model.folding import fold
from s2s_ray.model.headings import at_all_headings
from s2s_ray.model.s2s import S2S

Rows = tuple[float, float]
Use = Literal["street", "satellite", "synthesis"]
Headings: TypeAlias = NDArray[np.float64]
DEFAULT_K = 10
# Modules that a use does not need, by dotted name.
_UNUSED: dict[Use, tuple[str, ...]] = {
    "street": ("discriminator", "generator"),
    "satellite": ("discriminator", "generator.decoder", "retrieval.street_encoder"),
    "synthesis": ("discriminator", "retrieval.street_encoder"),
}


class _Inference:
    """A model in evaluation mode, its views and the size of its batches."""

    def __init__(self, model: S2S, geometry: ViewGeometry | None = None, *, batch: int = 32) -> None:
        """Default geometry: the model's resolution, with panoramas cropped according to their shape.

        Raises:
            InputError: a batch that is not a whole number from 1 on.
        """
        self.model = model.eval()
        self.geometry = geometry or ViewGeometry.of_checkpoint(model.config, {}, "in memory")
        self._batch = whole("batch", batch)
        if self._batch < 1:
            raise InputError(f"batch={batch}: expected at least 1")
        self._half = False

    @classmethod
    def load(cls, checkpoint: str, device: str | torch.device = "cpu") -> Self:
        """Load a checkpoint from its URI. Raises StorageError, CheckpointError."""
        model = load_checkpoint(checkpoint, device)
        return cls(model, ViewGeometry.of_checkpoint(model.config, read_meta(checkpoint), checkpoint))

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def specialise(
        self, use: Use, precision: Literal["float32", "bfloat16"] = "float32", *, compile: bool = False
    ) -> None:
        """Keep only the networks that one use needs, prepared for fast inference; any other use raises afterwards.

        Args:
            precision: of the arithmetic; results are float32 in either case.
            compile: compile the convolutional networks with torch.compile, now, for any number of images. This needs
                minutes, and on CPUs a C++ compiler.
        """
        for name in _UNUSED[use]:
            owner, _, part = name.rpartition(".")
            delattr(self.model.get_submodule(owner), part)
        fold(self.model)
        self._half = precision == "bfloat16"
        if compile:
            self._compile(use)

    def _compile(self, use: Use) -> None:
        """Compile all but the attention, whose einsum PyTorch 2.12 compiles to code that crashes (one image, CPU)."""
        model = self.model
        networks: dict[Use, Callable[[], torch.nn.Module]] = {
            "street": lambda: model.retrieval.street_encoder,
            "satellite": lambda: model.retrieval.satellite_encoder or model.generator.encoder,
            "synthesis": lambda: model.generator,
        }
        calls: dict[Use, Callable[..., Tensor]] = {
            "street": model.embed_street,
            "satellite": model.embed_satellite,
            "synthesis": model.synthesize,
        }
        if use == "synthesis" and not model.config.synthesizes:
            return
        networks[use]().compile(options={"force_layout_optimization": model.channels_last})
        for count in (1, 2):  # the compiler specialises for one image; from two on it leaves the number open
            self._run(calls[use], torch.zeros(count, 3, model.config.height, model.config.width, dtype=torch.uint8))

    @torch.inference_mode()
    def _run(self, call: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._half):
            moved = (None if one is None else one.to(self.device, non_blocking=True) for one in inputs)
            return call(*moved).float().cpu()

    def _chunks(self, count: int) -> Iterator[range]:
        return (range(start, min(start + self._batch, count)) for start in range(0, count, self._batch))

    def _prepare_street(
        self, panoramas: Sequence[Pixels], heading: float | Sequence[float], rows: Rows | None
    ) -> Iterator[Tensor]:
        headings = _headings(heading, len(panoramas))
        if len(headings) != len(panoramas):
            raise InputError(f"{len(headings)} headings for {len(panoramas)} panoramas: give one, or one for each")
        for chunk in self._chunks(len(panoramas)):
            yield torch.stack([self.geometry.street(panoramas[i], headings[i], rows) for i in chunk])

    def _prepare_satellite(self, images: Sequence[Pixels], layout: Layout) -> Iterator[Tensor]:
        for chunk in self._chunks(len(images)):
            yield torch.stack([self.geometry.satellite(images[i], layout) for i in chunk])


def _headings(heading: float | Sequence[float], count: int) -> list[float]:
    """Return the heading of each of `count` panoramas. Raises ViewError."""
    several = elements(heading)
    if several is not None:
        return [finite("heading", one, ViewError, BEARING) for one in several]
    return [finite("heading", heading, ViewError, BEARING)] * count


class Embedder(_Inference):
    """Unit descriptors of street panoramas and satellite tiles, float32 B x D, in one space."""

    def street(
        self, panoramas: Sequence[Pixels], heading: float | Sequence[float] = 0.0, rows: Rows | None = None
    ) -> Descriptors:
        """Return descriptors of panoramas of any size.

        Args:
            heading: compass bearing of the middle column in degrees, one for all or one for each.
            rows: part of the height to keep (fractions from the top); default: that of the data set.

        Raises:
            ViewError: an image or parameter that cannot become a view.
            InputError: the wrong number of headings.
        """
        prepared = self._prepare_street(panoramas, heading, rows)
        return self._joined(self.embed_street(views) for views in prepared)

    def satellite(self, images: Sequence[Pixels], layout: Layout = "auto") -> Descriptors:
        """Return descriptors of north-up tiles or polar images (`ViewGeometry.satellite`). Raises ViewError."""
        prepared = self._prepare_satellite(images, layout)
        return self._joined(self.embed_satellite(views) for views in prepared)

    def embed_street(self, views: Tensor, seen: Tensor | None = None) -> Descriptors:
        """Return descriptors of street views, uint8 B 3 H W, of which `seen` (bool B H W; None: all) was seen."""
        return self._run(self.model.embed_street, views, seen).numpy()

    def embed_turned(self, views: Tensor, seen: Tensor | None = None) -> tuple[Descriptors, Headings]:
        """Return descriptors of street views of unknown heading, one for each heading at equal steps.

        A step is at most `headings.MAX_STEP` degrees. The encoder runs once for each view, and again for views rolled
        by a part of a feature column where a whole one is a longer step; everything else is computed from its features.
        On one CPU core a view costs 1.1 times as much as by `embed_street` with `paper` (77 headings, one encoding),
        and 1.6 times with `tiny` (44 headings, two encodings): `benchmarks/headings.py`.

        Args:
            views: as they would be prepared for heading 0, uint8 N 3 H W.
            seen: as in `embed_street`.

        Returns: descriptors N T D, and the T headings in degrees, from 0 on. The descriptor of a heading is that of
        the view if this is the compass bearing of its middle column.
        """
        turned, headings = at_all_headings(partial(self._run, self.model.embed_street_turned), views, seen)
        return turned.numpy(), headings

    def searched(self, known: Known, view: View) -> Turned:
        """Return one picture as it is searched: a descriptor for each heading that it may have.

        Args:
            known: what is known of the picture.
            view: the model's view of it (`ViewGeometry.of_query`).
        """
        views, seen = view.pixels[None], None if view.seen is None else view.seen[None]
        if not turns(known):
            return searched(known, self.embed_street(views, seen))
        [descriptors], turned_by = self.embed_turned(views, seen)
        return searched(known, descriptors, turned_by)

    def embed_satellite(self, views: Tensor) -> Descriptors:
        """Return descriptors of polar views, uint8 B 3 H W. Only the encoder runs."""
        return self._run(self.model.embed_satellite, views).numpy()

    def _joined(self, parts: Iterator[Descriptors]) -> Descriptors:
        return np.concatenate([np.empty((0, self.model.config.descriptor_size), np.float32), *parts])


class Synthesizer(_Inference):
    """Street views generated from satellite images."""

    def street(self, images: Sequence[Pixels], layout: Layout = "auto") -> NDArray[np.uint8]:
        """Return the street views of tiles or polar images, uint8 B H W 3. Raises ViewError."""
        parts = [self.synthesize(views) for views in self._prepare_satellite(images, layout)]
        return np.concatenate([np.empty((0, self.geometry.height, self.geometry.width, 3), np.uint8), *parts])

    def synthesize(self, views: Tensor) -> NDArray[np.uint8]:
        """Return the street views, uint8 B H W 3, of polar views, uint8 B 3 H W."""
        generated = to_pixels(self._run(self.model.synthesize, views))
        return np.ascontiguousarray(generated.permute(0, 2, 3, 1).numpy())


class Localizer:
    """Localisation of pictures: where each was taken, and the tiles of a region with the nearest descriptors."""

    def __init__(
        self,
        model: S2S,
        index: ReferenceIndex,
        geometry: ViewGeometry | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        """Combine a model and an index. Raises ReferenceIndexError if the index has another descriptor size."""
        index.info.require(model.config.descriptor_size)
        self.embedder = Embedder(model, geometry)
        self.index = index
        self.calibration = calibration

    @classmethod
    def load(
        cls, checkpoint: str, index: str, device: str | torch.device = "cpu", *, calibration: str | None = None
    ) -> Self:
        """Load a checkpoint, the index built with it and its calibration, if there is one, from their URIs.

        Raises:
            StorageError, CheckpointError: they cannot be read.
            ReferenceIndexError: an index of another checkpoint.
            RegistryError: a calibration of another checkpoint.
        """
        embedder, references = Embedder.load(checkpoint, device), ReferenceIndex.load(index)
        digest = fingerprint(checkpoint)
        references.info.require(embedder.model.config.descriptor_size, digest)
        calibrated = None if calibration is None else Calibration.read(calibration)
        if calibrated is not None:
            calibrated.require(digest, f"calibration {calibration}")
        return cls(embedder.model, references, embedder.geometry, calibrated)

    def locate(
        self,
        images: Sequence[Pixels],
        query: Query | None = None,
        k: int | None = None,
        prior: Prior | FileCircle | None = None,
        *,
        together: bool = False,
        photos: Sequence[PhotoMetadata | None] | None = None,
    ) -> list[Found]:
        """Return the fix and the most likely tiles of each picture, or of all together.

        Args:
            images: pictures of any size, uint8 h w 3.
            query: what is known of each of them; default: nothing but what `photos` and their shapes say.
            k: as in `street`.
            prior: as in `ReferenceIndex.search`, or the circle around the position that `photos` name.
            together: all pictures were taken at one place: the result has one element.
            photos: what the file of each image says of it (`s2s_ray.geo.metadata.read_metadata`).

        Returns: what was found; `Found.pictures` says how each picture was understood.

        Raises:
            ViewError: a picture that cannot become a view, or whose field of view is unknown.
            InputError: `k` is out of range, no picture to locate together, the wrong number of `photos`, or a query or
                prior of another type.
        """
        said = [None] * len(images) if photos is None else list(photos)
        if len(said) != len(images):
            raise InputError(f"{len(said)} photos for {len(images)} images: give the metadata of each, or none")
        if not isinstance(query, Query | None):
            raise InputError(f"query={query!r}: expected a Query")
        geometry, pictures = self.embedder.geometry, []
        for pixels, photo in zip(images, said, strict=True):
            known = geometry.settle(query or Query(), pixels, photo)
            pictures.append((known, geometry.of_query(pixels, known)))
        return self.locate_views(pictures, k, prior, together=together)

    def locate_views(
        self,
        pictures: Sequence[tuple[Known, View]],
        k: int | None = None,
        prior: Prior | FileCircle | None = None,
        *,
        together: bool = False,
    ) -> list[Found]:
        """Return the same for pictures that are views already (`ViewGeometry.of_query`). Raises InputError."""
        if together and not pictures:
            raise InputError("images=[]: expected at least one picture of the place")
        turned = [(known, self.embedder.searched(known, view)) for known, view in pictures]
        most = min(DEFAULT_K, len(self.index)) if k is None else k
        return [self._locate(place, most, prior) for place in ([turned] if together else [[one] for one in turned])]

    def _locate(self, place: Sequence[tuple[Known, Turned]], k: int, prior: Prior | FileCircle | None) -> Found:
        known = [one for one, _ in place]
        within, _, warnings = area(prior, known)
        found = locate(self.index, [one for _, one in place], k=k, prior=within, calibration=self.calibration)
        return found._replace(pictures=tuple(replace(one, warnings=(*one.warnings, *warnings)) for one in known))

    def street(
        self,
        panoramas: Sequence[Pixels],
        k: int | None = None,
        heading: float | Sequence[float] = 0.0,
        rows: Rows | None = None,
        prior: Prior | None = None,
    ) -> list[list[Match]]:
        """Return the k most likely tiles of each panorama, best first.

        Args:
            k: default: 10, or all tiles of the index if there are fewer.
            heading, rows: as in `Embedder.street`.
            prior: as in `ReferenceIndex.search`.

        Raises:
            ViewError, InputError: as `Embedder.street` and `ReferenceIndex.search`.
        """
        most = min(DEFAULT_K, len(self.index)) if k is None else k
        return self.index.search(self.embedder.street(panoramas, heading, rows), most, prior)

"""The model: `S2S` combines the three networks and has the methods that users call."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from s2s_ray.config import ModelConfig
from s2s_ray.errors import NoSynthesisError, ViewError
from s2s_ray.model.discriminator import Discriminator
from s2s_ray.model.generator import Generator
from s2s_ray.model.retrieval import Retrieval, visible


class S2S(nn.Module):
    """The generator, discriminator and retrieval networks of one configuration.

    An ablation has all three as well; networks that it does not train keep their starting weights and are unused.

    Images are B 3 H W, either uint8 in [0, 255] or floating point in [-1, 1], at the configured resolution. In
    evaluation mode a result does not depend on the other images of its batch. The methods keep gradients; wrap them in
    `torch.inference_mode()` to avoid that.
    """

    channels_last = True
    """True to store images, and therefore all activations, as B H W 3: convolutions are faster in this layout."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.generator = Generator(config)
        self.discriminator = Discriminator(config)
        self.retrieval = Retrieval(config)

    def embed_satellite(self, polar: Tensor) -> Tensor:
        """Embed polar satellite images as unit descriptors B x D, with the encoder alone and never the decoder."""
        encoder = self.retrieval.satellite_encoder or self.generator.encoder
        return self.retrieval.embed_satellite(encoder(self.normalise(polar)).features)

    def embed_street(self, street: Tensor, seen: Tensor | None = None) -> Tensor:
        """Embed street views, north in the middle column, as unit descriptors B x D.

        Args:
            street: the whole horizon.
            seen: bool B H W, what of it was seen; None: all. What was not seen has no influence.

        Raises:
            ViewError: as `normalise`.
        """
        return self.retrieval.embed_street(self.normalise(street, seen), seen)

    def embed_street_turned(self, street: Tensor, seen: Tensor | None = None) -> Tensor:
        """Embed street views of unknown heading, once for each heading at steps of a feature column.

        The encoder runs once; its features are rolled. With `circular` convolutions the result is that of rolled
        images, up to rounding. Otherwise it is an approximation: the features at the ends of the image are those of a
        seam, wherever the roll takes them.

        Args:
            street, seen: as in `embed_street`.

        Returns: unit descriptors B T D, T = W/8. Entry t is that of the view rolled right by 8 t pixels, as it has to
        be if the compass bearing of the middle column is t * 360 / T degrees (`polar.roll_to_north`).

        Raises:
            ViewError: as `normalise`.
        """
        return self.retrieval.embed_street_turned(self.normalise(street, seen), seen)

    def synthesize(self, polar: Tensor) -> Tensor:
        """Synthesise street views B 3 H W in [-1, 1] from polar satellite images. Raises NoSynthesisError."""
        self._require_synthesis()
        views: Tensor = self.generator(self.normalise(polar))[0]
        return views

    def synthesize_and_embed(self, polar: Tensor) -> tuple[Tensor, Tensor]:
        """Return the results of `synthesize` and `embed_satellite`, running a shared encoder only once."""
        self._require_synthesis()
        images = self.normalise(polar)
        views, features = self.generator(images)
        if self.retrieval.satellite_encoder is not None:
            features = self.retrieval.satellite_encoder(images).features
        return views, self.retrieval.embed_satellite(features)

    def _require_synthesis(self) -> None:
        if not self.config.synthesizes:
            raise NoSynthesisError(
                f"the model was trained with model.ablation={self.config.ablation!r} and synthesises no street views"
            )

    def normalise(self, images: Tensor, seen: Tensor | None = None) -> Tensor:
        """Convert uint8 pixels to [-1, 1] (uint8 / 127.5 - 1); return floating-point images in the model's layout.

        Args:
            seen: bool B H W; pixels that were not seen become 0, the middle of the range and what convolutions pad
                with, and not -1 as black ones do. None: all seen.

        Raises:
            ViewError: another shape than B 3 H W at the model's resolution, or another dtype.
        """
        expected = (3, self.config.height, self.config.width)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ViewError(f"images have shape {tuple(images.shape)}, this model expects B x {expected}")
        if images.dtype == torch.uint8:
            images = images.to(next(self.parameters()).dtype) / 127.5 - 1
        if not images.is_floating_point():
            raise ViewError(f"images have dtype {images.dtype}, expected uint8 or floating point")
        if seen is not None:
            wanted = (len(images), *expected[1:])
            if seen.dtype != torch.bool or tuple(seen.shape) != wanted:
                raise ViewError(f"seen is {seen.dtype} of shape {tuple(seen.shape)}, expected bool of shape {wanted}")
            images = visible(images, seen)
        return images.contiguous(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)

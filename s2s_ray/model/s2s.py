"""The model: `S2S` combines the three networks and has the methods that users call."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from s2s_ray.config import ModelConfig
from s2s_ray.errors import NoSynthesisError, ViewError
from s2s_ray.model.discriminator import Discriminator
from s2s_ray.model.generator import Generator
from s2s_ray.model.retrieval import Retrieval


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

    def embed_street(self, street: Tensor) -> Tensor:
        """Embed street panoramas, north in the middle column, as unit descriptors B x D."""
        return self.retrieval.embed_street(self.normalise(street))

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

    def normalise(self, images: Tensor) -> Tensor:
        """Convert uint8 pixels to [-1, 1] (uint8 / 127.5 - 1); return floating-point images in the model's layout.

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
        return images.contiguous(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)

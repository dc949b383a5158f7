"""`S2S`: the three networks as one bundle, with the calls that users make."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from s2s_ray.config import ModelConfig
from s2s_ray.model.discriminator import Discriminator
from s2s_ray.model.generator import Generator
from s2s_ray.model.retrieval import Retrieval


class S2S(nn.Module):
    """Generator, discriminator and retrieval of one configuration.

    Images are B 3 H W, either uint8 in [0, 255] or floating point in [-1, 1], at the configuration's resolution.
    In evaluation mode results do not depend on the batch they are in. The calls keep gradients; wrap them in
    `torch.inference_mode()` to go without.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.generator = Generator(config)
        self.discriminator = Discriminator(config)
        self.retrieval = Retrieval(config)

    def embed_satellite(self, polar: Tensor) -> Tensor:
        """Polar satellite images -> unit descriptors B x D. Runs the encoder only, never the decoder."""
        return self.retrieval.embed_satellite(self.generator.encoder(self.normalise(polar)).features)

    def embed_street(self, street: Tensor) -> Tensor:
        """Street panoramas, north in the middle column -> unit descriptors B x D."""
        return self.retrieval.embed_street(self.normalise(street))

    def synthesize(self, polar: Tensor) -> Tensor:
        """Polar satellite images -> street views B 3 H W in [-1, 1]."""
        street: Tensor = self.generator(self.normalise(polar))[0]
        return street

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 pixels to [-1, 1] (uint8 / 127.5 - 1); floating point is taken as it is.

        Raises:
            ValueError: another shape than B 3 H W at the model's resolution, or another dtype.
        """
        expected = (3, self.config.height, self.config.width)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(f"images have shape {tuple(images.shape)}: this model takes B x {expected}")
        if images.dtype == torch.uint8:
            return images.to(next(self.parameters()).dtype) / 127.5 - 1
        if not images.is_floating_point():
            raise ValueError(f"images have dtype {images.dtype}: expected uint8 or floating point")
        return images

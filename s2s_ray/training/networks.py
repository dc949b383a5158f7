"""The networks as a training cycle calls them: the model's modules, plain or compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from s2s_ray.model.generator import Encoded
from s2s_ray.model.s2s import S2S
from s2s_ray.runtime.collectives import world_size


@dataclass(frozen=True)
class Networks:
    """Callables with the shapes of the modules of the same names; `satellite_encoder` is None if R has none.

    `encoder` is that of the generator, for satellite images from which nothing is synthesised.
    """

    generator: Callable[[Tensor], tuple[Tensor, Tensor]]
    encoder: Callable[[Tensor], Encoded]
    discriminator: Callable[[Tensor], Tensor]
    street_encoder: Callable[[Tensor], Tensor]
    satellite_encoder: Callable[[Tensor], Encoded] | None

    @classmethod
    def of(cls, model: S2S) -> Networks:
        """Return the modules themselves."""
        retrieval = model.retrieval
        return cls(
            model.generator,
            model.generator.encoder,
            model.discriminator,
            retrieval.street_encoder,
            retrieval.satellite_encoder,
        )

    @classmethod
    def compiled(cls, model: S2S) -> Networks:
        """Return compiled networks; the model itself is unchanged.

        They are compiled on their first call for each batch size, on a GPU to CUDA graphs. Two parts stay eager: the
        spatial attentions, because the gradient of their channel-wise maximum compares values with the maximum, and a
        compiler that recomputes the values without the earlier rounding to bfloat16 finds none equal; and a street
        encoder whose batch norm synchronises across workers. With channels-last images all convolutions are forced to
        that layout; the compiler's own choice would transpose many of them back and forth.
        """
        networks = cls.of(model)
        options = {"triton.cudagraphs": True, "force_layout_optimization": model.channels_last}
        fast = partial(torch.compile, dynamic=False, options=options)
        synchronised = world_size() > 1 and model.config.street_batchnorm == "live"
        return cls(
            fast(networks.generator),
            fast(networks.encoder),
            fast(networks.discriminator),
            networks.street_encoder if synchronised else fast(networks.street_encoder),
            None if networks.satellite_encoder is None else fast(networks.satellite_encoder),
        )

"""The networks as a training cycle calls them: the model's modules, or what torch.compile makes of them."""

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
    """Shapes are those of the modules of the same names; without an encoder of R's own, `satellite_encoder` is None."""

    generator: Callable[[Tensor], tuple[Tensor, Tensor]]
    discriminator: Callable[[Tensor], Tensor]
    street_encoder: Callable[[Tensor], Tensor]
    satellite_encoder: Callable[[Tensor], Encoded] | None

    @classmethod
    def of(cls, model: S2S) -> Networks:
        """The modules as they are."""
        retrieval = model.retrieval
        return cls(model.generator, model.discriminator, retrieval.street_encoder, retrieval.satellite_encoder)

    @classmethod
    def compiled(cls, model: S2S) -> Networks:
        """Compiled on their first calls, for each size of batch, on a GPU to CUDA graphs; the model stays as it is.

        The spatial attentions are left as they are. The gradient of their channel-wise maximum asks which values are
        equal to it, and a compiler that makes the values again, without rounding them to bfloat16 as before, finds
        none. So is a street encoder whose batch norms talk to other workers. Where images lie channels last in memory,
        all convolutions take and give them so; the compiler's own choice turns many of them round and back.
        """
        networks = cls.of(model)
        options = {"triton.cudagraphs": True, "force_layout_optimization": model.channels_last}
        fast = partial(torch.compile, dynamic=False, options=options)
        talks = world_size() > 1 and model.config.street_batchnorm == "live"
        return cls(
            fast(networks.generator),
            fast(networks.discriminator),
            networks.street_encoder if talks else fast(networks.street_encoder),
            None if networks.satellite_encoder is None else fast(networks.satellite_encoder),
        )

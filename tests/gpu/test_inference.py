"""Inference through compiled networks, on a GPU if there is one and on the CPU."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from s2s_ray.config import ModelConfig
from s2s_ray.inference import Embedder, Synthesizer, Use
from s2s_ray.model.s2s import S2S
from tests.support.models import tiny_model

SMALLEST = tiny_model(width=48, discriminator_channels=8)
FIELD = SMALLEST.model_copy(update={"circular": True, "pooling": "azimuth"})


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings(r"ignore::DeprecationWarning:torch\..*", r"ignore::UserWarning:torch\..*")
@pytest.mark.parametrize(("use", "config"), [("street", FIELD), ("satellite", FIELD), ("synthesis", SMALLEST)])
def test_compiled_inference_equals_the_plain_one_for_any_number_of_images(
    device: str, use: Use, config: ModelConfig
) -> None:
    """Other numbers of images, other threads and another release of the same shape do not compile again."""
    torch.manual_seed(0)
    model = S2S(config).double().eval()
    views = torch.randint(0, 256, (5, 3, 32, 48), dtype=torch.uint8)
    seen = torch.rand(5, 32, 48) < 0.5

    def a_process(weights: S2S) -> Any:
        return (Synthesizer if use == "synthesis" else Embedder)(copy.deepcopy(weights).to(device))

    def answers(process: Any, count: int) -> np.ndarray:
        if use == "street":  # known and unknown heading, all and a part seen
            some = (views[:count], seen[:count])
            return np.concatenate([process.embed_street(*some)[:, None], process.embed_turned(some[0])[0]], 1)
        call = process.synthesize if use == "synthesis" else process.embed_satellite
        return call(views[:count])

    with ThreadPoolExecutor(1) as loader, ThreadPoolExecutor(1) as caller:
        compiled = a_process(model)
        loader.submit(compiled.specialise, use, compile=True).result()
        torch.manual_seed(1)
        later = S2S(config).double().eval()
        with torch.compiler.set_stance("fail_on_recompile"):
            successor = a_process(later)
            loader.submit(successor.specialise, use, compile=True).result()
            for one, weights in ((compiled, model), (successor, later)):
                for count in (1, 2, 5):
                    found = caller.submit(answers, one, count).result()
                    expected = answers(a_process(weights), count)
                    tolerance = 1 if use == "synthesis" else 1e-6  # grey levels; parts of a unit descriptor
                    assert np.abs(found.astype(float) - expected).max() <= tolerance

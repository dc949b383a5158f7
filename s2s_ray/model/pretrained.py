"""Starting weights of the street encoder: ImageNet's through torchvision, or a ResNet34 state dict at a URI."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path
from urllib.error import URLError

import torch
from safetensors.torch import load_file
from torch import Tensor

from s2s_ray import storage
from s2s_ray.errors import WeightsError
from s2s_ray.model.retrieval import StreetEncoder


def initialise_street_encoder(encoder: StreetEncoder, weights: str) -> None:
    """Fill the street encoder as `model.street_weights` says; 'random' leaves it as it was made.

    A state dict may be a safetensors file or a `torch.save` of tensors (read with `weights_only`), with the names
    of torchvision's ResNet34; layer4 and fc are not used.
    """
    if weights == "random":
        return
    state = _imagenet() if weights == "imagenet" else _read(weights)
    own = encoder.state_dict()
    if missing := [name for name in own if name not in state]:
        raise WeightsError(f"model.street_weights={weights!r} lacks {', '.join(missing[:3])}: not a ResNet34")
    if wrong := [name for name in own if state[name].shape != own[name].shape]:
        raise WeightsError(f"model.street_weights={weights!r} does not fit: {wrong[0]} has another shape")
    encoder.load_state_dict({name: state[name] for name in own})


def _imagenet() -> dict[str, Tensor]:
    from torchvision.models import ResNet34_Weights  # seconds to import, and only needed here

    try:
        return dict(ResNet34_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True))
    except (URLError, OSError) as error:
        raise WeightsError(
            f"model.street_weights='imagenet' cannot be fetched here ({error}): give the URI of a ResNet34 state dict, "
            "or choose 'random'"
        ) from None


def _read(uri: str) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights"
        storage.download(uri, path)
        if uri.endswith(".safetensors"):
            return load_file(path)
        try:
            return dict(torch.load(path, map_location="cpu", weights_only=True))
        except (pickle.UnpicklingError, RuntimeError, EOFError, TypeError) as error:
            raise WeightsError(f"model.street_weights={uri!r} is not a state dict of plain tensors: {error}") from None

"""Starting weights of the street encoder: ImageNet weights from torchvision, or a ResNet34 state dict at a URI."""

from __future__ import annotations

import tempfile
from pathlib import Path
from urllib.error import URLError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from s2s_ray import storage
from s2s_ray.errors import WeightsError
from s2s_ray.model.released import DAMAGED_PICKLE
from s2s_ray.model.retrieval import StreetEncoder


def initialise_street_encoder(encoder: StreetEncoder, weights: str) -> None:
    """Load the weights named by `model.street_weights` into the street encoder; 'random' leaves it unchanged.

    A state dict is a safetensors file or a `torch.save` of tensors (read with `weights_only`), with the names of
    torchvision's ResNet34; layer4 and fc are not used.

    Raises:
        WeightsError: weights that cannot be fetched or read, or do not fit.
        StorageError: the file cannot be downloaded.
    """
    if weights == "random":
        return
    state = _imagenet() if weights == "imagenet" else _read(weights)
    own = encoder.state_dict()
    if missing := [name for name in own if name not in state]:
        raise WeightsError(f"model.street_weights={weights!r} is not a ResNet34: it lacks {', '.join(missing[:3])}")
    if wrong := [name for name in own if state[name].shape != own[name].shape]:
        raise WeightsError(
            f"model.street_weights={weights!r} does not fit: {wrong[0]} is {[*state[wrong[0]].shape]}, "
            f"expected {[*own[wrong[0]].shape]}"
        )
    encoder.load_state_dict({name: state[name] for name in own})


def _imagenet() -> dict[str, Tensor]:
    from torchvision.models import ResNet34_Weights  # takes seconds to import

    try:
        return dict(ResNet34_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True))
    except (URLError, OSError) as error:
        raise WeightsError(
            f"model.street_weights='imagenet' cannot be downloaded ({error}): set it to the URI of a ResNet34 state "
            "dict, or to 'random'"
        ) from None


def _read(uri: str) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights"
        storage.download(uri, path)
        try:
            state = (
                load_file(path)
                if uri.endswith(".safetensors")
                else torch.load(path, map_location="cpu", weights_only=True)
            )
        except (SafetensorError, *DAMAGED_PICKLE) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise WeightsError(f"model.street_weights={uri!r} is not a state dict of plain tensors: {reason}") from None
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise WeightsError(f"model.street_weights={uri!r} is not a state dict of plain tensors")
    return state

"""Where half precision has to end."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision as float32; what is more precise stays as it is."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x

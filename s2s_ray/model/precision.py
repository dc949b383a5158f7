"""Leaving half precision where it is not precise enough."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32; return other tensors unchanged."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x

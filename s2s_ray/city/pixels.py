"""Supersampling: pixels as means of samples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def shrink(samples: NDArray[np.float32], fine: int) -> NDArray[np.float32]:
    """Average `fine` x `fine` samples: (H * fine) (W * fine) 3 to H W 3."""
    if fine == 1:
        return samples
    total = samples[::fine].copy()
    for k in range(1, fine):
        total += samples[k::fine]
    small = total[:, ::fine].copy()
    for k in range(1, fine):
        small += total[:, k::fine]
    small *= np.float32(1 / fine**2)
    return small

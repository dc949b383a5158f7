"""Floating-point operations of one training cycle per pair, for each preset: `python benchmarks/flops.py`.

PyTorch counts them over the real cycle (forward and backward passes of convolutions and matrix products, a multiply-add
as two), so that times on a GPU can be calculated from its speed.
"""

from __future__ import annotations

import torch
from train_step import counted

from s2s_ray.config import load_config
from s2s_ray.model.s2s import S2S
from s2s_ray.training.step import TrainingStep

PRESETS = ("paper", "small", "tiny")  # the others are `paper` on other data
PAIRS = 2
CVUSA = 35_532  # training pairs


def flops_a_pair(preset: str) -> float:
    """Return the operations of one cycle per pair."""
    config = load_config(preset, ["model.street_weights=random"])
    cycle = TrainingStep(S2S(config.model), config.loss, config.train)
    satellite, street = torch.rand(2, PAIRS, 3, config.model.height, config.model.width) * 2 - 1
    _, total = counted(lambda: cycle(satellite, street))
    return total / PAIRS


def main() -> None:
    print("preset   GFLOP a pair   PFLOP an epoch of CVUSA")
    for preset in PRESETS:
        cost = flops_a_pair(preset)
        print(f"{preset:<7} {cost / 1e9:>13.1f} {cost * CVUSA / 1e15:>25.2f}")


if __name__ == "__main__":
    main()

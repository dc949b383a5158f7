"""The objectives of a sweep: their names, the directions in which they improve, and how they are shown."""

from __future__ import annotations

from typing import Literal

from s2s_ray.config import TuneConfig, protocol
from s2s_ray.config.protocol import RECALL, SHARES

_HIGHER_IS_BETTER = ("psnr", "ssim")
_LABELS = {RECALL: "validation R@1", "l1": "L1", "psnr": "PSNR, dB", "ssim": "SSIM"}


def objectives(config: TuneConfig) -> list[str]:
    """Return the names of the objectives, `tune.metric` first."""
    return [config.metric, *([config.synthesis] if config.synthesis else [])]


def direction(objective: str) -> Literal["maximize", "minimize"]:
    """Return the direction in which an objective improves, as Optuna names it."""
    if objective in (*_HIGHER_IS_BETTER, "l1"):
        return "maximize" if objective in _HIGHER_IS_BETTER else "minimize"
    return protocol.direction(objective)


def label(objective: str) -> str:
    """Return the name of an objective in words."""
    return _LABELS.get(objective, objective)


def shown(objective: str, value: float) -> str:
    """Return a value of an objective as text, shares in percent."""
    return f"{label(objective)} {100 * value:.1f}%" if is_share(objective) else f"{label(objective)} {value:.4g}"


def is_share(objective: str) -> bool:
    """Return whether an objective is a fraction, which is shown in percent."""
    return objective.rpartition(".")[2] in SHARES

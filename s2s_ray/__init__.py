"""Satellite-to-street geo-localisation and view synthesis (Toker et al., CVPR 2021) on Ray.

`S2S` and `load_checkpoint` are the way in. They are imported when first used: PyTorch takes seconds, and processes
that only read configuration or storage go without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s2s_ray.model.checkpoint import load_checkpoint
    from s2s_ray.model.s2s import S2S

__all__ = ["S2S", "load_checkpoint"]


def __getattr__(name: str) -> Any:
    if name == "S2S":
        from s2s_ray.model.s2s import S2S

        return S2S
    if name == "load_checkpoint":
        from s2s_ray.model.checkpoint import load_checkpoint

        return load_checkpoint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

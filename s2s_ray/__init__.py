"""Satellite-to-street geo-localisation and view synthesis (Toker et al., CVPR 2021) on Ray."""

from __future__ import annotations

from s2s_ray.checkpoint import load_checkpoint
from s2s_ray.model.s2s import S2S

__all__ = ["S2S", "load_checkpoint"]

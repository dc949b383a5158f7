"""The procedural city: one seeded scene, seen from above and from the street."""

from __future__ import annotations

from s2s_ray.data.sources.synthetic.source import SyntheticSource

__all__ = ["SyntheticSource"]

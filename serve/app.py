"""Application builder for `serve run serve.app:build registry=URI name=NAME` from a checkout."""

from s2s_ray.service.app import build

__all__ = ["build"]

"""`serve run serve.app:build registry=URI name=NAME` from a checkout; a wheel has `s2s_ray.service.app:build`."""

from s2s_ray.service.app import build

__all__ = ["build"]

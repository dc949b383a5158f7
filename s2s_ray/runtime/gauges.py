"""Gauges of a training worker or a sweep, which Ray's agent on the node exports."""

from __future__ import annotations

from ray.util.metrics import Gauge

from s2s_ray.runtime.metrics import TRAINING


class RayGauges:
    """The gauges of `metrics.TRAINING` with some labels fixed: `RayGauges(run="first")`."""

    def __init__(self, **labels: str) -> None:
        self._labels = labels
        self._gauges: dict[str, Gauge] = {}

    def __call__(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge. Raises KeyError for a name that is not in `metrics.TRAINING`."""
        gauge = self._gauges.get(name)
        if gauge is None:
            metric = TRAINING[name]
            gauge = self._gauges[name] = Gauge(name, metric.description, tag_keys=metric.labels)
        gauge.set(value, tags={**self._labels, **labels})

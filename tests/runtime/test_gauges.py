"""Gauges take every figure there is; without a cluster."""

from __future__ import annotations

import pytest

from s2s_ray.runtime.gauges import RayGauges
from s2s_ray.runtime.metrics import TRAINING


@pytest.mark.parametrize("name", TRAINING)
def test_ray_takes_every_gauge_with_its_labels(name: str) -> None:
    own = "sweep" if "sweep" in TRAINING[name].labels else "run"
    others = {label: "x" for label in TRAINING[name].labels if label != own}
    gauges = RayGauges(**{own: "first"})
    for value in (1, 0.5):
        gauges(name, value, **others)


def test_a_gauge_that_is_not_listed_is_refused() -> None:
    with pytest.raises(KeyError):
        RayGauges(run="first")("s2s_train_mood", 1.0)

"""Ray accepts every listed gauge; without a cluster."""

from __future__ import annotations

import pytest

from s2s_ray.runtime.gauges import RayGauges
from s2s_ray.runtime.metrics import TRAINING


@pytest.mark.parametrize("name", TRAINING)
def test_ray_accepts_every_gauge_with_its_labels(name: str) -> None:
    fixed = "sweep" if "sweep" in TRAINING[name].labels else "run"
    labels = {label: "x" for label in TRAINING[name].labels if label != fixed}
    gauges = RayGauges(**{fixed: "first"})
    for value in (1, 0.5):
        gauges(name, value, **labels)


def test_a_gauge_that_is_not_listed_is_refused() -> None:
    with pytest.raises(KeyError):
        RayGauges(run="first")("s2s_train_mood", 1.0)

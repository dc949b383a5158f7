"""What the service counts of its answers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from s2s_ray.service import telemetry


class Fake:
    """A metric that keeps what it was given."""

    def __init__(self, name: str, _description: str, *options: Any) -> None:
        self.name, self.options = name, options
        self.counts: Counter[tuple[tuple[str, str], ...]] = Counter()
        self.values: list[float] = []

    def inc(self, value: float, labels: dict[str, str]) -> None:
        assert value == 1
        assert set(labels) == set(self.options[-1])
        self.counts[tuple(labels.items())] += 1

    def observe(self, value: float) -> None:
        self.values.append(value)


def test_fixes_are_counted_by_confidence_and_region(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(telemetry, kind, Fake)
    metrics = telemetry.IngressMetrics()
    for origin in ("given", "file", None, "file"):
        metrics.picture(origin)
    for in_region, confidence in ((True, 0.75), (False, 0.01), (None, None), (True, 1.0)):
        metrics.located({"in_region": in_region, "confidence": confidence})
    metrics.located(None)
    pictures: Any = metrics._pictures
    assert pictures.counts == {(("heading", "given"),): 1, (("heading", "file"),): 2, (("heading", "unknown"),): 1}
    fixes: Any = metrics._fixes
    expected = {"yes": 2, "no": 1, "unknown": 1, "none": 1}
    assert fixes.counts == {(("in_region", answer),): count for answer, count in expected.items()}
    confidence: Any = metrics._confidence
    assert confidence.values == [0.75, 0.01, 1.0], "an answer without calibration has no confidence"
    assert list(confidence.options[0]) == sorted(confidence.options[0])

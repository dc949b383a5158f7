"""The report of a calibration: its figures by kind of picture, and the reliability diagram."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from matplotlib.colors import to_hex

from s2s_ray.evaluation.reliability import reliability_diagram, reliability_figures
from s2s_ray.localization.calibration import Calibration, Kind
from tests.support import calibrations
from tests.support.calibrations import reliability

BINS = ((0.1, 0.2, 30), (0.5, 0.45, 20), (0.9, 0.8, 50))


def kind(fov: float, known: bool, **figures: Any) -> Kind:
    return calibrations.kind(fov, known).model_copy(
        update={"reliability": reliability(pictures=100, bins=BINS, **figures)}
    )


def calibration(*kinds: Kind) -> Calibration:
    return Calibration(checkpoint="a" * 64, tiles=300, spacing_m=8.0, kinds=kinds)


def test_the_figures_of_each_kind() -> None:
    figures = reliability_figures(calibration(kind(360, True), kind(90, False, auroc_right=None)))
    assert json.loads(json.dumps(figures)) == figures | {
        "kinds": [one | {"bins": [list(part) for part in one["bins"]]} for one in figures["kinds"]]
    }
    assert (figures["tiles"], figures["spacing_m"]) == (300, 8.0)
    assert [(one["fov"], one["heading"]) for one in figures["kinds"]] == [(360, "known"), (90, "unknown")]
    assert figures["kinds"][0]["risk_coverage"] == 0.2
    assert figures["kinds"][1]["auroc_right"] is None


def test_the_diagram_has_a_panel_for_each_knowledge_of_the_heading() -> None:
    figure = reliability_diagram(
        calibration(kind(90, True), kind(360, True, risk_coverage=0.125), kind(360, False, auroc_right=None))
    )
    known, unknown = figure.axes
    assert [known.get_title(), unknown.get_title()] == ["Heading known", "Heading unknown"]
    legend = known.get_legend()
    assert legend is not None
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == [
        "360°: AURC 0.12, AUROC right 0.80, region 0.75",
        "90°: AURC 0.20, AUROC right 0.80, region 0.75",
    ]
    diagonal, whole, part = known.get_lines()
    assert np.array_equal(diagonal.get_xydata(), [[0, 0], [1, 1]])
    for line in (whole, part):
        assert np.allclose(line.get_xydata(), [[0.1, 0.2], [0.5, 0.45], [0.9, 0.8]])
    assert to_hex(whole.get_color()) != to_hex(part.get_color())
    [points] = unknown.collections
    sizes = points.get_sizes()
    assert list(np.argsort(sizes)) == list(np.argsort([30, 20, 50]))
    [text] = unknown.get_legend().get_texts()
    assert "AUROC right -" in text.get_text()


def test_a_calibration_for_known_headings_alone_has_one_panel() -> None:
    assert len(reliability_diagram(calibration(kind(360, True))).axes) == 1

"""How far the confidence of fixes can be trusted: a diagram, and the figures of a calibration by kind of picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

if TYPE_CHECKING:
    from s2s_ray.localization.calibration import Calibration, Kind

_COLOURS = ("#0b5fa5", "#d1701a", "#6a8f2a", "#8a5aa8")
_FAINT, _INK, _GRID = "#6b6b6b", "#222222", "#ececec"
_FONT = 7.5


def reliability_figures(calibration: Calibration) -> dict[str, Any]:
    """Return the figures of a calibration for JSON: of the gallery, and of each kind of picture as `kinds`.

    They are those of `Reliability`: of pictures that the calibration was not fitted on.
    """
    kinds = [
        {"fov": kind.fov, "heading": "known" if kind.heading_known else "unknown", **kind.reliability.model_dump()}
        for kind in calibration.kinds
    ]
    return {"tiles": calibration.tiles, "spacing_m": calibration.spacing_m, "kinds": kinds}


def reliability_diagram(calibration: Calibration) -> Figure:
    """Draw the share of right fixes over their confidence, one panel for known and one for unknown headings.

    Points are as large as their number of pictures; on the diagonal, the confidence is what it says. The legend has the
    area under the curve of risk and coverage (AURC, smaller is better), and the areas under the ROC curves (AUROC) of
    right against wrong fixes and of pictures from the region against others.
    """
    panels = [
        (title, kinds)
        for title, kinds in (
            ("Heading known", [kind for kind in calibration.kinds if kind.heading_known]),
            ("Heading unknown", [kind for kind in calibration.kinds if not kind.heading_known]),
        )
        if kinds
    ]
    figure = Figure(figsize=(3.75 * len(panels), 4.3), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    for number, (title, kinds) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        axes.plot([0, 1], [0, 1], color=_FAINT, linewidth=0.8, linestyle=(0, (4, 3)))
        for colour, kind in zip(_COLOURS, sorted(kinds, key=lambda kind: -kind.fov), strict=False):
            _curve(axes, kind, colour)
        axes.set_title(title, fontsize=_FONT + 1, color=_INK)
        axes.set_xlabel("Confidence", fontsize=_FONT, color=_FAINT)
        if number == 0:
            axes.set_ylabel("Share of right fixes", fontsize=_FONT, color=_FAINT)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_aspect("equal")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0))
        axes.tick_params(labelsize=_FONT, colors=_FAINT)
        axes.grid(color=_GRID)
        axes.set_axisbelow(True)
        axes.legend(
            fontsize=_FONT - 1, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), handlelength=1.2
        )
    return figure


def _curve(axes: Axes, kind: Kind, colour: str) -> None:
    found = kind.reliability
    confidences, shares, counts = zip(*found.bins, strict=True)
    label = (
        f"{kind.fov:g}°: AURC {found.risk_coverage:.2f}, AUROC right {_number(found.auroc_right)}, "
        f"region {_number(found.auroc_region)}"
    )
    axes.plot(confidences, shares, color=colour, linewidth=1.2, label=label)
    sizes = [10 + 90 * count / found.pictures for count in counts]
    axes.scatter(confidences, shares, s=sizes, color=colour, zorder=3, linewidth=0)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"

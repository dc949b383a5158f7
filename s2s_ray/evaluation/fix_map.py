"""A figure of fixes on imagery of their region, each with its circle, its heading and the true place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Wedge

from s2s_ray.geo.images import Pixels
from s2s_ray.geo.offsets import east_north
from s2s_ray.localization import Fix

_FAINT = "#6b6b6b"
_NEAR, _FAR, _TRUE = "#19c37d", "#ff5c4d", "#ffffff"
_WEDGE_M = 22.0


class Located(NamedTuple):
    """A fix, and where the picture was taken in truth: latitude and longitude in degrees."""

    fix: Fix
    latitude: float
    longitude: float


def fix_map(imagery: Pixels, centre: tuple[float, float], side_m: float, located: Sequence[Located]) -> Figure:
    """Draw fixes on imagery of the region.

    A fix is green if its position is right (within `confidence_m`), else red. Its circle holds the true position at
    68%, its wedge shows the heading with its spread, and a line leads to the true position.

    Args:
        imagery: square, north up, S S 3.
        centre: latitude and longitude of its middle in degrees.
        side_m: metres that it is wide.
        located: the fixes.
    """
    figure = Figure(figsize=(6.2, 6.6), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    half = side_m / 2
    axes.imshow(imagery, extent=(-half, half, -half, half), interpolation="bilinear", alpha=0.85)
    right = 0
    for fix, latitude, longitude in located:
        place, truth = east_north(
            *centre, np.array([fix.latitude, latitude]), np.array([fix.longitude, longitude])
        ).tolist()
        is_right = bool(np.hypot(place[0] - truth[0], place[1] - truth[1]) <= fix.confidence_m)
        right += is_right
        colour = _NEAR if is_right else _FAR
        axes.plot(*zip(place, truth, strict=True), color=colour, linewidth=0.8, linestyle=":")
        if fix.radius_m is not None and fix.radius_m < side_m:
            axes.add_patch(Circle(place, fix.radius_m, fill=False, color=colour, linewidth=1.2))
        if fix.heading is not None:
            spread = max(4.0, fix.heading_spread or 0.0)
            middle = 90 - fix.heading
            axes.add_patch(
                Wedge(place, _WEDGE_M, middle - spread, middle + spread, color=colour, alpha=0.6, linewidth=0)
            )
        axes.plot(*place, "o", color=colour, markersize=3.5, markeredgecolor="#222222", markeredgewidth=0.5)
        axes.plot(*truth, "x", color=_TRUE, markersize=4.5, markeredgewidth=1.2)
    axes.grid(visible=False)
    axes.set_xlim(-half, half)
    axes.set_ylim(-half, half)
    axes.set_xlabel("metres east", fontsize=7.5, color=_FAINT)
    axes.set_ylabel("metres north", fontsize=7.5, color=_FAINT)
    axes.tick_params(labelsize=6.5, labelcolor=_FAINT)
    within = {fix.confidence_m for fix, _, _ in located}
    rule = f" within {within.pop():.0f} m" if len(within) == 1 else ""
    axes.set_title(f"{right} of {len(located)} pictures are right{rule}", fontsize=8.5, loc="left")
    kinds = [
        Line2D([], [], marker="o", linestyle="", color=_NEAR, label="position and heading; 68% circle"),
        Line2D([], [], marker="o", linestyle="", color=_FAR, label="the same, wrong"),
        Line2D([], [], marker="x", linestyle="", color=_FAINT, label="true position"),
    ]
    axes.legend(handles=kinds, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3, fontsize=6.5, frameon=False)
    return figure

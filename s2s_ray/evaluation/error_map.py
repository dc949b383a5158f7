"""A figure of a model's errors: the queries on a map, and the distribution of the distances to their first match."""

from __future__ import annotations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from s2s_ray.geo.places import Places

_FAINT, _INK, _GRID = "#6b6b6b", "#222222", "#ececec"
_MIN_M = 1.0


def error_map(places: Places, metres: NDArray[np.float64], radius_m: float | None = None) -> Figure | None:
    """Draw a map of the queries coloured by their error, and the share of queries within each distance.

    The map is relative to the south-west corner of the queries. The curve is over all queries; it marks `radius_m`.

    Args:
        places: the queries, N, in one frame of coordinates.
        metres: distance between each query and its first match, N; NaN if unknown.
        radius_m: distance within which a match counts as correct.

    Returns: None if no position is known.
    """
    known = places.frames != 0
    if not known.any():
        return None
    spots = places[np.flatnonzero(known)].plane()
    shown = np.isfinite(metres)
    spots = (spots - spots.min(axis=0))[shown[known]]
    unit, unit_m = ("km", 1000.0) if spots.max(initial=0.0) > 3000 else ("m", 1.0)
    spots = spots / unit_m
    order = np.argsort(metres[shown])  # the worst on top
    figure = Figure(figsize=(7.5, 3.4), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    upper = max(10 * _MIN_M, float(metres[shown].max(initial=0.0)))
    drawn = left.scatter(
        *spots[order].T,
        c=metres[shown][order].clip(_MIN_M),
        s=float(np.clip(4000 / max(1, shown.sum()), 1.5, 14)),
        cmap="viridis_r",
        norm=LogNorm(_MIN_M, upper),
        linewidths=0,
    )
    left.set_aspect("equal", adjustable="datalim")
    left.set_xlabel(f"east, {unit}", fontsize=7.5, color=_FAINT)
    left.set_ylabel(f"north, {unit}", fontsize=7.5, color=_FAINT)
    left.set_title(f"Error of the first match, {shown.sum():,} queries", fontsize=7.5, loc="left")
    bar = figure.colorbar(drawn, ax=left, shrink=0.85)
    bar.set_label("metres", fontsize=7.5, color=_FAINT)
    bar.ax.tick_params(labelsize=6.5)
    bar.ax.yaxis.set_major_formatter("{x:g}")
    errors = np.sort(metres[np.isfinite(metres)].clip(_MIN_M))
    right.step(errors, np.arange(1, len(errors) + 1) / len(metres), where="post", color="#0b5fa5", linewidth=1.2)
    right.set_xscale("log")
    right.set_xlim(_MIN_M, upper)
    right.xaxis.set_major_formatter("{x:g}")
    right.set_ylim(0, 1.02)
    right.yaxis.set_major_formatter(PercentFormatter(1.0))
    right.set_title("Queries whose first match is within", fontsize=7.5, loc="left")
    right.set_xlabel("metres", fontsize=7.5, color=_FAINT)
    right.grid(color=_GRID, linewidth=0.6)
    right.set_axisbelow(True)
    if radius_m is not None:
        right.axvline(max(radius_m, _MIN_M), color=_FAINT, linewidth=0.8, linestyle=":")
        right.text(max(radius_m, _MIN_M), 0.03, f" {radius_m:g} m", fontsize=6.5, color=_FAINT)
    for axes in (left, right):
        axes.tick_params(labelsize=6.5, labelcolor=_FAINT)
        axes.spines[["top", "right"]].set_visible(False)
    return figure

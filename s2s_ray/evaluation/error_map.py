"""A figure of a model's errors: the queries on a map, and the distribution of the distances to their first match."""

from __future__ import annotations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

_FAINT, _INK, _GRID = "#6b6b6b", "#222222", "#ececec"
_MIN_M = 1.0


def error_map(
    positions: NDArray[np.float64], zones: NDArray[np.int64], metres: NDArray[np.float64], radius_m: float | None = None
) -> Figure | None:
    """Draw a map of the queries coloured by their error, and the share of queries within each distance.

    The map shows the UTM zone with the most queries, relative to their south-west corner. The curve is over all
    queries; it marks `radius_m`.

    Args:
        positions: easting and northing in metres, N 2.
        zones: EPSG codes of their UTM zones, N; 0 if unknown.
        metres: distance between each query and its first match, N; NaN if unknown or in another zone.
        radius_m: distance within which a match counts as correct.

    Returns: None if no position is known.
    """
    known = zones != 0
    if not known.any():
        return None
    codes, counts = np.unique(zones[known], return_counts=True)
    zone = int(codes[counts.argmax()])
    shown = (zones == zone) & np.isfinite(metres)
    places = positions[shown] - positions[zones == zone].min(axis=0)
    unit, unit_m = ("km", 1000.0) if places.max(initial=0.0) > 3000 else ("m", 1.0)
    places = places / unit_m
    order = np.argsort(metres[shown])  # the worst on top
    figure = Figure(figsize=(7.5, 3.4), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    upper = max(10 * _MIN_M, float(metres[shown].max(initial=0.0)))
    drawn = left.scatter(
        *places[order].T,
        c=metres[shown][order].clip(_MIN_M),
        s=float(np.clip(4000 / max(1, shown.sum()), 1.5, 14)),
        cmap="viridis_r",
        norm=LogNorm(_MIN_M, upper),
        linewidths=0,
    )
    left.set_aspect("equal", adjustable="datalim")
    left.set_xlabel(f"east, {unit}", fontsize=7.5, color=_FAINT)
    left.set_ylabel(f"north, {unit}", fontsize=7.5, color=_FAINT)
    left.set_title(f"Error of the first match, {shown.sum():,} queries in EPSG:{zone}", fontsize=7.5, loc="left")
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

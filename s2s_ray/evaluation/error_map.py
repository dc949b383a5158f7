"""Where a model errs: the queries on the map with the metres to their first match, and how many err by what."""

from __future__ import annotations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

_FAINT, _INK, _GRID = "#6b6b6b", "#222222", "#ececec"
_LEAST_M = 1.0


def error_map(
    positions: NDArray[np.float64], zones: NDArray[np.int64], metres: NDArray[np.float64], radius_m: float | None = None
) -> Figure | None:
    """A map of the queries coloured by their error, and the share of queries within each distance.

    The map is of the UTM zone with the most queries, from their south-west corner; the curve is of all
    queries whose error is known, `radius_m` marked in it.

    Args:
        positions: easting and northing in metres, N 2.
        zones: EPSG codes of their zones, N; 0 where unknown.
        metres: between each query and the tile found first, N; NaN where unknown or in another zone.

    Returns: None where not one position is known.
    """
    known = zones != 0
    if not known.any():
        return None
    codes, counts = np.unique(zones[known], return_counts=True)
    zone = int(codes[counts.argmax()])
    here = (zones == zone) & np.isfinite(metres)
    places = positions[here] - positions[zones == zone].min(axis=0)
    unit, metres_of = ("km", 1000.0) if places.max(initial=0.0) > 3000 else ("m", 1.0)
    places = places / metres_of
    order = np.argsort(metres[here])  # the worst on top
    figure = Figure(figsize=(7.5, 3.4), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    most = max(10 * _LEAST_M, float(metres[here].max(initial=0.0)))
    drawn = left.scatter(
        *places[order].T,
        c=metres[here][order].clip(_LEAST_M),
        s=float(np.clip(4000 / max(1, here.sum()), 1.5, 14)),
        cmap="viridis_r",
        norm=LogNorm(_LEAST_M, most),
        linewidths=0,
    )
    left.set_aspect("equal", adjustable="datalim")
    left.set_xlabel(f"east, {unit}", fontsize=7.5, color=_FAINT)
    left.set_ylabel(f"north, {unit}", fontsize=7.5, color=_FAINT)
    left.set_title(f"Error of the first match, {here.sum():,} queries in EPSG:{zone}", fontsize=7.5, loc="left")
    bar = figure.colorbar(drawn, ax=left, shrink=0.85)
    bar.set_label("metres", fontsize=7.5, color=_FAINT)
    bar.ax.tick_params(labelsize=6.5)
    bar.ax.yaxis.set_major_formatter("{x:g}")
    errors = np.sort(metres[np.isfinite(metres)].clip(_LEAST_M))
    right.step(errors, np.arange(1, len(errors) + 1) / len(metres), where="post", color="#0b5fa5", linewidth=1.2)
    right.set_xscale("log")
    right.set_xlim(_LEAST_M, most)
    right.xaxis.set_major_formatter("{x:g}")
    right.set_ylim(0, 1.02)
    right.yaxis.set_major_formatter(PercentFormatter(1.0))
    right.set_title("Queries whose first match is within", fontsize=7.5, loc="left")
    right.set_xlabel("metres", fontsize=7.5, color=_FAINT)
    right.grid(color=_GRID, linewidth=0.6)
    right.set_axisbelow(True)
    if radius_m is not None:
        right.axvline(max(radius_m, _LEAST_M), color=_FAINT, linewidth=0.8, linestyle=":")
        right.text(max(radius_m, _LEAST_M), 0.03, f" {radius_m:g} m", fontsize=6.5, color=_FAINT)
    for axes in (left, right):
        axes.tick_params(labelsize=6.5, labelcolor=_FAINT)
        axes.spines[["top", "right"]].set_visible(False)
    return figure

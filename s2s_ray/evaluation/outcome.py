"""The outcome of a protocol: the rank of each query, the errors of its heading and position, and their figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

Figures = dict[str, float | None]
"""Figures by name (`config.protocol.FIGURES`); None if none of the queries has a value."""
DEPTHS = (1, 5, 10)
HEADINGS = (5, 10)
METRES = (5, 10, 25)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of each of N queries.

    Attributes:
        ranks: as in `RecallResult`, int64; 0: not asked, because the protocol needs a heading that is unknown.
        heading_errors: degrees between the heading of the first match and the true one; NaN if the heading is known.
        own_heading_errors: the same in the query's own tile, wherever it is ranked.
        metres: between the position of the first match and the true one; NaN if a position is unknown.
        tile_metres: the same within the query's own tile, without positions; NaN if another tile is the first match.
        gallery: number of tiles.
    """

    ranks: NDArray[np.int64]
    heading_errors: NDArray[np.float64]
    own_heading_errors: NDArray[np.float64]
    metres: NDArray[np.float64]
    tile_metres: NDArray[np.float64]
    gallery: int

    @classmethod
    def of_columns(cls, table: NDArray[np.float64], gallery: int) -> Outcome:
        """Return the outcome whose `columns` are N 5."""
        ranks, first, own, metres, tile_metres = table.T
        return cls(ranks.astype(np.int64), first, own, metres, tile_metres, gallery)

    @property
    def columns(self) -> NDArray[np.float64]:
        """The results as numbers, N 5, which workers can exchange."""
        columns = (self.ranks, self.heading_errors, self.own_heading_errors, self.metres, self.tile_metres)
        return np.stack(columns, axis=-1)

    def figures(self) -> Figures:
        """Return the figures by name: recall, errors of the heading in degrees, and of the position in metres.

        `heading_...` counts the queries that are found (rank 1), and their first match; `own_heading_...` all queries,
        and their own tile. `metres_...` counts all queries with known positions, `found_metres_median` those found,
        with or without.
        """
        found, ranks = self.ranks == 1, self.ranks[self.ranks > 0]
        depths = {str(k): k for k in DEPTHS} | {"1_percent": ceil(self.gallery / 100)}
        return {
            **{
                f"recall_at_{key}": float((ranks <= depth).mean()) if len(ranks) else None
                for key, depth in depths.items()
            },
            "median_rank": _median(ranks),
            "heading_error_median": _median(self.heading_errors[found]),
            **{f"heading_within_{most}": _within(self.heading_errors[found], most) for most in HEADINGS},
            "own_heading_error_median": _median(self.own_heading_errors),
            **{f"own_heading_within_{most}": _within(self.own_heading_errors, most) for most in HEADINGS},
            "metres_median": _median(self.metres),
            **{f"metres_within_{most}": _within(self.metres, most) for most in METRES},
            "found_metres_median": _median(np.where(np.isnan(self.tile_metres), self.metres, self.tile_metres)[found]),
        }


def _median(values: NDArray[Any]) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else None


def _within(values: NDArray[np.float64], most: float) -> float | None:
    known = values[np.isfinite(values)]
    return float((known <= most).mean()) if len(known) else None


def joined(seeds: Sequence[Figures]) -> dict[str, Any]:
    """Return the mean of each figure over the seeds that have it, and the figures of each."""
    values = {name: [one[name] for one in seeds if one[name] is not None] for name in seeds[0]}
    means = {name: float(np.mean(known)) if known else None for name, known in values.items()}  # type: ignore[arg-type]
    return {**means, "by_seed": list(seeds)}


def figures_by_metric(tables: Mapping[str, Figures]) -> dict[str, float]:
    """Return figures as `PROTOCOL.FIGURE`, without those that have no value."""
    return {
        f"{protocol}.{name}": value
        for protocol, figures in tables.items()
        for name, value in figures.items()
        if value is not None
    }


def cells(tables: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return the figures of protocols as text: the titles of the columns, and a row for each protocol.

    With several seeds, recall at 1 has its standard deviation beside it.
    """
    header = ["protocol", *(title for title, _ in _COLUMNS)]
    return [header, *([name, *(cell(figures) for _, cell in _COLUMNS)] for name, figures in tables.items())]


def table(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Return `cells` as a table in plain text."""
    rows = cells(tables)
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = []
    for row in rows:
        figures = [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *figures]))
    return "\n".join(lines)


def _cell(name: str, scale: float) -> Callable[[Mapping[str, Any]], str]:
    def cell(figures: Mapping[str, Any]) -> str:
        value = figures[name]
        if value is None:
            return "-"
        values = [scale * one[name] for one in figures["by_seed"] if one[name] is not None]
        spread = f" ± {np.std(values, ddof=1):.1f}" if name == "recall_at_1" and len(values) > 1 else ""
        return f"{scale * value:.1f}{spread}"

    return cell


_COLUMNS = (
    ("R@1 %", _cell("recall_at_1", 100)),
    ("R@5 %", _cell("recall_at_5", 100)),
    ("R@10 %", _cell("recall_at_10", 100)),
    ("heading °", _cell("heading_error_median", 1)),
    ("<= 5° %", _cell("heading_within_5", 100)),
    ("<= 10° %", _cell("heading_within_10", 100)),
    ("metres", _cell("metres_median", 1)),
    ("<= 5 m %", _cell("metres_within_5", 100)),
    ("<= 10 m %", _cell("metres_within_10", 100)),
    ("<= 25 m %", _cell("metres_within_25", 100)),
)

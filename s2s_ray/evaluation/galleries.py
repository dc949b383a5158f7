"""Galleries of retrieved tiles and synthesised views, and the curves of a run (supplement, figures 4 to 8).

Each function returns a matplotlib figure that pyplot does not manage; `save` writes it as PNG or PDF.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from s2s_ray import storage
from s2s_ray.errors import InputError
from s2s_ray.geo.images import Pixels
from s2s_ray.geo.views import to_pixels

TRUE = "#12934a"
"""Colour of the frame of a correct tile."""

_NEUTRAL, _INK, _FAINT = "#c4c4c4", "#222222", "#6b6b6b"
_WIDTH = 1200  # of a page, in pixels, the unit of all layouts
_DPI = 160
_MARGIN, _GAP, _LINE = 16.0, 10.0, 24.0
_FONT = 7.5
_LOSSES = {
    "r_loss": "Triplet loss (R)",
    "l1_weighted": "L1, weighted (G)",
    "gan": "Adversarial loss (G)",
    "d_loss": "Adversarial loss (D)",
}
_RECALLS = {"recall_at_1": "R@1", "recall_at_5": "R@5", "recall_at_10": "R@10", "recall_at_1_percent": "R@1%"}
_COLOURS = ("#0b5fa5", "#d1701a", "#6a8f2a", "#8a5aa8")


@dataclass(frozen=True, slots=True)
class Match:
    """A retrieved tile, S S 3 uint8, and its distance from the query (None if unknown)."""

    tile: Pixels
    correct: bool
    metres: float | None = None


@dataclass(frozen=True, slots=True)
class RetrievalRow:
    """A query panorama h w 3 uint8 and its closest tiles, closest first; `rank` is that of the best correct tile."""

    id: str
    street: Pixels
    matches: Sequence[Match]
    rank: int


@dataclass(frozen=True, slots=True)
class SynthesisRow:
    """A tile S S 3 and three images h w 3 of one pair, uint8."""

    id: str
    tile: Pixels
    polar: Pixels
    synthesised: Pixels
    real: Pixels


def evenly_spaced(count: int, rows: int) -> list[int]:
    """Return at most `rows` of `count` indices, evenly spaced, so that a gallery is not chosen by its results."""
    rows = min(rows, count)
    return [(2 * i + 1) * count // (2 * rows) for i in range(rows)]


def retrieval_gallery(rows: Sequence[RetrievalRow], gallery: int) -> Figure:
    """Draw query panoramas with their closest tiles, like the supplement's figures 4 and 5.

    Correct tiles have a green frame, the others a thin grey one; below each is its distance in metres, if known.
    `gallery` is the number of tiles that were searched. Pass `evenly_spaced` queries, so that hits and misses appear as
    often as they occur.
    """
    if not rows:
        raise InputError("a gallery needs at least one row")
    columns = max(len(row.matches) for row in rows)
    tile = 118.0
    tiles_width = max(columns, 5) * (tile + _GAP) - _GAP
    street_width = _WIDTH - 2 * _MARGIN - 2 * _GAP - tiles_width
    step = tile + _LINE + _GAP
    page = _Page(_MARGIN + _LINE + len(rows) * step)
    first_tile = _WIDTH - _MARGIN - tiles_width
    top = _MARGIN
    page.text(_MARGIN, top, "Query street view", weight="bold")
    page.text(first_tile, top, f"Closest {columns} of {gallery:,} satellite tiles", weight="bold")
    top += _LINE
    for row in rows:
        scale = min(street_width / row.street.shape[1], tile / row.street.shape[0])
        height, width = scale * row.street.shape[0], scale * row.street.shape[1]
        page.image(row.street, _MARGIN, top + (tile - height) / 2, width, height)
        below = top + tile + 4
        verdict = "found first" if row.rank == 1 else f"true tile ranks {row.rank:,} of {gallery:,}"
        page.text(_MARGIN, below, _shortened(row.id), color=_FAINT)
        page.text(_MARGIN + street_width, below, verdict, align="right", color=TRUE if row.rank == 1 else _INK)
        for column, match in enumerate(row.matches):
            left = first_tile + column * (tile + _GAP)
            page.image(match.tile, left, top, tile, tile, correct=match.correct)
            if match.metres is not None:
                colour = TRUE if match.correct else _FAINT
                page.text(left + tile / 2, below, _metres(match.metres), align="center", color=colour)
        top += step
    return page.figure


def synthesis_gallery(rows: Sequence[SynthesisRow]) -> Figure:
    """Draw satellite tiles, their polar images, synthesised and real street views, like figures 6 and 7."""
    if not rows:
        raise InputError("a gallery needs at least one row")
    rows_of, columns_of = rows[0].real.shape[:2]
    tile = 84.0
    wide = (_WIDTH - 2 * _MARGIN - 3 * _GAP - tile) / 3
    high = wide * rows_of / columns_of
    step = max(tile, high) + _GAP
    page = _Page(_MARGIN + _LINE + len(rows) * step + _MARGIN - _GAP)
    lefts = [_MARGIN, *(_MARGIN + tile + _GAP + i * (wide + _GAP) for i in range(3))]
    titles = ("Satellite", "Polar", "Synthesised", "Real street view")
    for left, title in zip(lefts, titles, strict=True):
        page.text(left, _MARGIN, title, weight="bold")
    for index, row in enumerate(rows):
        middle = _MARGIN + _LINE + index * step + (step - _GAP) / 2
        page.image(row.tile, _MARGIN, middle - tile / 2, tile, tile)
        for left, image in zip(lefts[1:], (row.polar, row.synthesised, row.real), strict=True):
            page.image(image, left, middle - high / 2, wide, high)
    return page.figure


def comparison_gallery(
    views: Mapping[str, Sequence[Pixels]], tiles: Sequence[Pixels], real: Sequence[Pixels]
) -> Figure:
    """Draw the same places synthesised by several models, like the supplement's figure 8.

    Each place is a column, each model a row.

    Args:
        views: views by the title of the model, one h w 3 for each place.
        tiles, real: satellite tiles S S 3 and real street views h w 3 of the places.
    """
    if not tiles:
        raise InputError("a comparison needs at least one place")
    label = 190.0
    wide = (_WIDTH - 2 * _MARGIN - label - len(tiles) * _GAP) / len(tiles)
    high = wide * real[0].shape[0] / real[0].shape[1]
    tile = min(120.0, wide)
    rows = {**views, "real street view": real}
    page = _Page(2 * _MARGIN + tile + _GAP + len(rows) * (high + _GAP) - _GAP)
    lefts = [_MARGIN + label + _GAP + column * (wide + _GAP) for column in range(len(tiles))]
    page.text(_MARGIN, _MARGIN + tile / 2 - _LINE / 2, "satellite", weight="bold")
    for left, image in zip(lefts, tiles, strict=True):
        page.image(image, left + (wide - tile) / 2, _MARGIN, tile, tile)
    top = _MARGIN + tile + _GAP
    for title, images in rows.items():
        page.text(_MARGIN, top + high / 2 - _LINE / 3, title, weight="bold")
        for left, image in zip(lefts, images, strict=True):
            page.image(image, left, top, wide, high)
        top += high + _GAP
    return page.figure


def training_curves(history: Sequence[Mapping[str, float]]) -> Figure:
    """Draw losses and validation recall over the epochs of a run.

    Each entry has `epoch` (0-based) and the losses of the training step (`r_loss`, `l1_weighted`, `gan`, `d_loss`);
    entries with a validation also have `recall_at_1` and so on. Dotted lines mark changes of `discard`, the percentage
    of triplets that mining leaves out. Names that no entry has are left out.
    """
    if not history:
        raise InputError("the curves of a run need at least one epoch")
    figure = Figure(figsize=(_WIDTH / _DPI, 480 / _DPI), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 4)
    recalls = {name: label for name, label in _RECALLS.items() if any(name in entry for entry in history)}
    for panel, (name, title) in enumerate(_LOSSES.items()):
        axes = figure.add_subplot(grid[panel // 2, panel % 2])
        _curve(axes, history, name, title, _INK)
        _decorate(axes, title, history, labelled_x=panel >= 2)
    axes = figure.add_subplot(grid[:, 2:])
    for colour, (name, label) in zip(_COLOURS, recalls.items(), strict=False):
        _curve(axes, history, name, label, colour)
    gallery = next((entry["gallery"] for entry in reversed(history) if "gallery" in entry), None)
    _decorate(axes, "Validation recall", history, labelled_x=True)
    if gallery is not None:
        axes.set_xlabel(f"Epoch (gallery of {gallery:,.0f} tiles)", fontsize=_FONT, color=_FAINT)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    if recalls:
        compact: dict[str, Any] = {"handlelength": 0.8, "handletextpad": 0.4, "columnspacing": 0.9, "borderpad": 0.0}
        axes.legend(
            fontsize=_FONT - 0.5, frameon=False, ncols=4, loc="lower right", bbox_to_anchor=(1.0, 1.0), **compact
        )
    middle = sum(axes.get_xlim()) / 2
    for epoch, discard in _mining(history):
        side = "left" if epoch < middle else "right"
        text = f" mining {discard:g}% "
        axes.text(epoch, 0.03, text, fontsize=_FONT - 1, color=_FAINT, rotation=90, ha=side, va="bottom")
    return figure


def save(figure: Figure, uri: str) -> None:
    """Write a figure to a URI whose suffix, .png or .pdf, is the format."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=uri.rpartition(".")[2], dpi=_DPI)
    storage.write_bytes(uri, buffer.getvalue())


def rolled_up(polar: Pixels) -> Pixels:
    """Turn a polar image h w 3 into a north-up disc, 2h 2h 3 on white, for data sets without the raw tiles.

    It is the inverse of `geo.polar.polar_transform`, to the nearest pixel.
    """
    height, width = polar.shape[:2]
    down, right = np.meshgrid(*[np.arange(2 * height) - height] * 2, indexing="ij")
    row = np.rint(height - 1 - np.hypot(down, right)).astype(int)
    column = np.rint(np.arctan2(-right, down) / (2 * np.pi) * width).astype(int) % width
    tile: Pixels = polar[row.clip(0), column]
    tile[row < 0] = 255
    return tile


def pixels(image: Tensor) -> Pixels:
    """Convert 3 H W, uint8 or in [-1, 1], to H W 3 uint8."""
    planes = image if image.dtype == torch.uint8 else to_pixels(image)
    interleaved: Pixels = planes.permute(1, 2, 0).cpu().numpy()
    return interleaved


class _Page:
    """A figure whose layout is in pixels from its top left corner."""

    def __init__(self, height: float) -> None:
        self.height = height
        self.figure = Figure(figsize=(_WIDTH / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
        FigureCanvasAgg(self.figure)

    def image(
        self, image: Pixels, left: float, top: float, width: float, height: float, *, correct: bool = False
    ) -> None:
        bottom = self.height - top - height
        box = (left / _WIDTH, bottom / self.height, width / _WIDTH, height / self.height)
        axes = self.figure.add_axes(box)
        axes.imshow(image, interpolation="lanczos", aspect="auto")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(edgecolor=TRUE if correct else _NEUTRAL, linewidth=2.6 if correct else 0.4)

    def text(
        self, x: float, top: float, text: str, *, align: str = "left", color: str = _INK, weight: str = "normal"
    ) -> None:
        style: dict[str, Any] = {"ha": align, "va": "top", "color": color, "weight": weight, "fontsize": _FONT}
        self.figure.text(x / _WIDTH, 1 - top / self.height, text, parse_math=False, **style)  # ids may hold a $


def _curve(axes: Axes, history: Sequence[Mapping[str, float]], name: str, label: str, colour: str) -> None:
    points = [(entry["epoch"] + 1, entry[name]) for entry in history if name in entry]
    if points:
        marker = "o" if len(points) <= 30 else ""
        axes.plot(*zip(*points, strict=True), color=colour, label=label, linewidth=1.2, marker=marker, markersize=2.2)


def _decorate(axes: Axes, title: str, history: Sequence[Mapping[str, float]], *, labelled_x: bool) -> None:
    axes.set_title(title, fontsize=_FONT, loc="left", color=_INK)
    axes.tick_params(labelsize=_FONT - 1, color=_NEUTRAL, labelcolor=_FAINT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_NEUTRAL)
    axes.grid(axis="y", color="#ececec", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.set_xlim(history[0]["epoch"] + 0.5, history[-1]["epoch"] + 1.5)
    if labelled_x:
        axes.set_xlabel("Epoch", fontsize=_FONT, color=_FAINT)
    for epoch, _ in _mining(history):
        axes.axvline(epoch, color=_FAINT, linewidth=0.8, linestyle=":")


def _mining(history: Sequence[Mapping[str, float]]) -> list[tuple[float, float]]:
    """Return where the percentage of discarded triplets changes, between two epochs, and the new percentage."""
    discards = [(entry["epoch"] + 0.5, entry.get("discard", 0.0)) for entry in history]
    return [now for before, now in pairwise([(0.0, 0.0), *discards]) if now[1] != before[1]]


def _metres(distance: float) -> str:
    if distance < 9.95:
        return f"{distance:.1f} m"
    return f"{distance:,.0f} m" if distance < 9_999.5 else f"{distance / 1000:,.0f} km"


def _shortened(text: str, length: int = 24) -> str:
    return text if len(text) <= length else f"{text[: length // 2 - 1]}…{text[-(length // 2) :]}"

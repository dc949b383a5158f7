"""The report of a run on one self-contained HTML page: configuration, curves, tables and galleries."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from s2s_ray.config import Config
from s2s_ray.evaluation.evaluate import EvaluationReport
from s2s_ray.evaluation.outcome import cells
from s2s_ray.evaluation.page import render
from s2s_ray.model.checkpoint_meta import read_meta
from s2s_ray.secrets import masked, masked_address

_HEADINGS = {
    "curves": "Training",
    "retrieval": "Retrieval",
    "synthesis": "Synthesis",
    "errors": "Errors on the map",
    "reliability": "Confidence of fixes",
}
_LABELS = {
    "recall_at_1": "R@1", "recall_at_5": "R@5", "recall_at_10": "R@10", "recall_at_1_percent": "R@1%",
    "median_rank": "median rank", "l1": "L1", "psnr": "PSNR, dB", "ssim": "SSIM", "sharpness": "SD, dB",
}  # fmt: skip
_SHOWN = ("d_loss", "r_loss", "gan", "l1_weighted", "g_loss", "recall_at_1", "recall_at_10")


def report_page(
    checkpoint: str,
    measured: EvaluationReport,
    figures: Mapping[str, Figure],
    config: Config,
    history: Sequence[Mapping[str, Any]] = (),
) -> bytes:
    """Return the page of a run; it fetches nothing when it is read.

    Args:
        checkpoint: URI of the checkpoint that was measured.
        measured: its evaluation.
        figures: figures by name, see `figures.draw_figures`.
        config: the configuration that it was measured with, usually that of the run.
        history: the epochs of the run.
    """
    meta = read_meta(checkpoint)
    return render(
        "run.html",
        name=meta.get("run", "run"),
        checkpoint=masked_address(checkpoint),
        step=meta.get("step"),
        data=masked_address(config.data.uri),  # earlier versions accepted a password in it
        measured=measured,
        labels=_LABELS,
        both={"street → satellite": measured.street_to_satellite, "satellite → street": measured.satellite_to_street},
        synthesis=measured.synthesis,
        protocols=cells(measured.protocols),
        columns=[name for name in _SHOWN if any(name in entry for entry in history)],
        history=_evenly_spaced(history),
        epochs=len(history),
        headings=_HEADINGS,
        pictures={name: _png(figure) for name, figure in figures.items()},
        settings=masked(config.to_yaml()),
    )


def _evenly_spaced(history: Sequence[Mapping[str, Any]], most: int = 25) -> list[Mapping[str, Any]]:
    """Return at most `most` epochs, evenly spaced, the last one among them."""
    step = max(1, -(-len(history) // most))
    return [entry for k, entry in enumerate(history, start=1) if k % step == 0 or k == len(history)]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()

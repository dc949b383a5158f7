"""What is known of a run on one self-contained HTML page: configuration, curves, tables and galleries."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
from matplotlib.figure import Figure

from s2s_ray import storage
from s2s_ray.config import Config
from s2s_ray.errors import NotFoundError
from s2s_ray.evaluation.evaluate import EvaluationReport
from s2s_ray.model.checkpoint_meta import read_meta
from s2s_ray.version import code_version

HISTORY_FILE = "history.json"
_TITLES = {
    "curves": "Training",
    "retrieval": "Retrieval",
    "synthesis": "Synthesis",
    "errors": "Errors on the map",
}
_LABELS = {
    "recall_at_1": "R@1", "recall_at_5": "R@5", "recall_at_10": "R@10", "recall_at_1_percent": "R@1%",
    "median_rank": "median rank", "l1": "L1", "psnr": "PSNR, dB", "ssim": "SSIM", "sharpness": "SD, dB",
}  # fmt: skip
_SHOWN = ("d_loss", "r_loss", "gan", "l1_weighted", "g_loss", "recall_at_1", "recall_at_10")


def read_history(run: str) -> list[dict[str, Any]]:
    """The epochs of a run; none of a checkpoint that stands alone."""
    try:
        return list(storage.read_json(storage.join(run, HISTORY_FILE)))
    except NotFoundError:
        return []


def report_page(
    run: str,
    checkpoint: str,
    measured: EvaluationReport,
    figures: Mapping[str, Figure],
    settings: Config,
) -> bytes:
    """The page of a run, everything in it: nothing is fetched when it is read.

    Args:
        run, checkpoint: their URIs.
        measured: the checkpoint's evaluation.
        figures: by name, see `figures.draw_figures`.
        settings: the configuration that it was measured with, the run's own as a rule.
    """
    meta, history = read_meta(checkpoint), read_history(run)
    text = resources.files("s2s_ray.evaluation").joinpath("report.html").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(text)
    return template.render(
        name=meta.get("run", "run"),
        run=run,
        checkpoint=checkpoint,
        step=meta.get("step"),
        data=settings.data.uri,
        measured=measured,
        labels=_LABELS,
        both={"street → satellite": measured.street_to_satellite, "satellite → street": measured.satellite_to_street},
        synthesis=measured.synthesis,
        columns=[name for name in _SHOWN if any(name in entry for entry in history)],
        history=_spaced(history),
        epochs=len(history),
        titles=_TITLES,
        pictures={name: base64.b64encode(_png(figure)).decode() for name, figure in figures.items()},
        settings=settings.to_yaml(),
        version=code_version(),
    ).encode()


def _spaced(history: Sequence[dict[str, Any]], most: int = 25) -> list[dict[str, Any]]:
    """At most so many epochs, evenly spaced, with the last one."""
    step = max(1, -(-len(history) // most))
    return [entry for k, entry in enumerate(history, start=1) if k % step == 0 or k == len(history)]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()

"""The report of a sweep: trials as Parquet, plots as PNG, and one self-contained HTML page."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from typing import Any

import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import TrialState

from s2s_ray import storage
from s2s_ray.config import Config
from s2s_ray.evaluation.page import render
from s2s_ray.secrets import masked
from s2s_ray.sweep.objectives import direction, label, shown
from s2s_ray.sweep.study import SweepStudy, TrialRecord, searched

TRIALS_FILE = "trials.parquet"
REPORT_FILE = "report.html"
PLOTS = "plots"
_MIN_FOR_IMPORTANCE = 4  # complete trials; the importance of fewer means nothing


def write_report(root: str, config: Config, study: SweepStudy, best: TrialRecord | None) -> None:
    """Write `trials.parquet`, `plots/NAME.png` and `report.html` below the sweep's root."""
    records, metric = study.records(), study.objectives[0]
    sign = 1 if direction(metric) == "maximize" else -1
    buffer = io.BytesIO()
    pq.write_table(trials_table(study), buffer)
    storage.write_bytes(storage.join(root, TRIALS_FILE), buffer.getvalue())
    pictures = {}
    for name, figure in plots(study).items():
        pictures[name] = _png(figure)
        storage.write_bytes(storage.join(root, PLOTS, f"{name}.png"), pictures[name])
    page = render(
        "sweep.html",
        name=config.tune.name,
        best=best,
        best_value=None if best is None else shown(metric, best.values[metric]),
        objectives=study.objectives,
        labels={name: label(name) for name in study.objectives},
        records=sorted(records, key=lambda record: -sign * record.values.get(metric, -sign * math.inf)),
        keys=searched(records),
        pareto=study.pareto() if len(study.objectives) > 1 else set(),
        pictures=pictures,
        headings={},
        settings=masked(yaml.safe_dump(config.tune.model_dump(mode="json"), sort_keys=False)),
    )
    storage.write_bytes(storage.join(root, REPORT_FILE), page)


def trials_table(study: SweepStudy) -> pa.Table:
    """Return one row for each trial: number, state, objectives, parameters by key, epochs, seconds, run, reason.

    A parameter with values of several types is a column of text. With two objectives `pareto` is true for the trials
    that no other one beats in both.
    """
    records = study.records()
    columns: dict[str, Any] = {
        "number": [record.number for record in records],
        "state": [record.state for record in records],
    }
    columns |= {name: pa.array([r.values.get(name) for r in records], pa.float64()) for name in study.objectives}
    for key in searched(records):
        columns[key] = _column([record.params.get(key) for record in records])
    if len(study.objectives) > 1:
        front = study.pareto()
        columns["pareto"] = [record.number in front for record in records]
    columns |= {
        "epochs": [record.epochs for record in records],
        "start_s": pa.array([record.start_s for record in records], pa.float64()),
        "seconds": pa.array([record.seconds for record in records], pa.float64()),
        "run": [record.run for record in records],
        "reason": [record.reason for record in records],
    }
    return pa.table(columns)


def plots(study: SweepStudy) -> dict[str, Figure]:
    """Return figures by name: history, importance, parallel_coordinate and slice of the first objective.

    With two objectives there is also pareto_front. Figures that need more complete trials, or parameters that vary,
    are left out.
    """
    complete = study.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        return {}
    drawn = optuna.visualization.matplotlib
    target: dict[str, Any] = {"target_name": label(study.objectives[0])}
    if len(study.objectives) > 1:
        target["target"] = lambda trial: trial.values[0]
    wanted: dict[str, Callable[[], Any]] = {"history": lambda: drawn.plot_optimization_history(study.study, **target)}
    varying = [
        key
        for key in dict.fromkeys(key for trial in complete for key in trial.params)
        if len({trial.params[key] for trial in complete if key in trial.params}) > 1
    ]
    if varying:
        wanted["slice"] = lambda: drawn.plot_slice(study.study, params=varying, **target)
    shared = [key for key in varying if all(key in trial.params for trial in complete)]
    if len(shared) > 1:
        wanted["parallel_coordinate"] = lambda: drawn.plot_parallel_coordinate(study.study, params=shared, **target)
    if shared and len(complete) >= _MIN_FOR_IMPORTANCE and len({trial.values[0] for trial in complete}) > 1:
        evaluator = PedAnovaImportanceEvaluator(target_quantile=0.25)
        wanted["importance"] = lambda: drawn.plot_param_importances(
            study.study, evaluator=evaluator, params=shared, **target
        )
    if len(study.objectives) > 1:
        names = [label(name) for name in study.objectives]
        wanted["pareto_front"] = lambda: drawn.plot_pareto_front(study.study, target_names=names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna marks all of its figures as experimental
        return {name: _figure(draw()) for name, draw in wanted.items()}


def _figure(drawn: Any) -> Figure:
    """Return the figure of the axes that Optuna drew, one or an array, with room for their labels."""
    panels: list[Axes] = [drawn] if isinstance(drawn, Axes) else drawn.ravel().tolist()
    figure = panels[0].get_figure()
    assert isinstance(figure, Figure)
    figure.set_size_inches(max(8.0, 3.0 * len(panels)), 4.5)
    for panel in figure.axes:
        for lines in panel.collections:
            if isinstance(lines, LineCollection):
                lines.set_cmap("viridis")  # low values of the default map are white
        if len(panels) > 1 and panel.get_xscale() == "log":
            panel.xaxis.set_major_locator(LogLocator(numticks=4))
            panel.xaxis.set_minor_formatter(NullFormatter())
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    pyplot.close(figure)  # Optuna creates figures through pyplot, which would keep them open
    return buffer.getvalue()


def _column(values: list[Any]) -> pa.Array:
    kinds = {bool if isinstance(value, bool) else type(value) for value in values if value is not None}
    if kinds <= {int, float} and kinds:
        return pa.array(values, pa.int64() if kinds == {int} else pa.float64())
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    return pa.array([None if value is None else str(value) for value in values], pa.string())

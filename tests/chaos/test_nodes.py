"""Nodes that are added and lost during a run on a Ray cluster."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from s2s_ray import storage
from s2s_ray.config import Config
from s2s_ray.model.checkpoint_meta import read_meta
from s2s_ray.training.loop import Trainer
from s2s_ray.training.run import checkpoint_store
from tests.support import simulated_nodes as nodes
from tests.support.commands import ROOT
from tests.support.killed_runs import Ending, configured

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Trained:
    """A run on changing nodes, and the result of `train`."""

    config: Config
    result: dict[str, Any]


def trained(scenario: str, config: Config, folder: Path) -> Trained:
    (folder / "config.yaml").write_text(config.to_yaml())
    program = [sys.executable, nodes.__file__, scenario, str(folder)]
    # Ray writes the address of the cluster to this directory; its path must be short, for sockets.
    with tempfile.TemporaryDirectory(prefix="nodes-") as place, (folder / "log").open("w") as log:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": place}
        Path(place, "ray").mkdir()
        ended = subprocess.run(program, stdout=log, stderr=subprocess.STDOUT, env=environment, timeout=500)
    assert ended.returncode == 0, (folder / "log").read_text()[-5000:]
    return Trained(config, json.loads((folder / "result.json").read_text()))


def test_a_lost_node_costs_nothing(settings: list[str], undisturbed: Callable[[int], Ending], tmp_path: Path) -> None:
    """Two workers on two nodes, one of which is lost within an epoch; bit-identical to plain processes."""
    run = trained("lost", configured(settings, tmp_path, workers=2), tmp_path)
    Ending.of(run.config).assert_same(undisturbed(2))
    check_result(run.result)


@pytest.fixture(scope="module")
def elastic(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run that grew and shrank, with all of its checkpoints."""
    folder = tmp_path_factory.mktemp("elastic")
    config = configured(settings, folder, workers=2, min_workers=1, resize_every_s=1, keep_checkpoints=100)
    return trained("elastic", config, folder)


def test_a_run_grows_and_shrinks_with_its_nodes(elastic: Trained) -> None:
    store = checkpoint_store(elastic.config)
    grown, shrunk = nodes.ELASTIC_STEPS
    workers = {step: read_meta(store.uri(step))["workers"] for step in store.steps()}
    assert workers == {step: 2 if grown < step <= shrunk else 1 for step in range(1, 10)}
    assert [entry["step"] for entry in elastic.result["history"]] == [3, 6, 9]
    check_result(elastic.result)


def test_each_step_of_an_elastic_run_equals_that_of_a_single_worker(
    elastic: Trained, settings: list[str], tmp_path: Path
) -> None:
    """From every checkpoint, one worker's next step has the same pairs and losses as the run's own."""
    store = checkpoint_store(elastic.config)
    states = [store.load(step) for step in range(1, 10)]
    for before, after in pairwise(states):
        step = before.meta["step"]
        pairs, expected = next_step(configured(settings, tmp_path / str(step)), before.uri)
        if after.trainer["sums"]:
            sums = after.trainer["sums"]
        else:  # an epoch ended: its figures are means over all of its pairs
            sums = {name: 13 * value for name, value in after.trainer["history"][-1].items() if name in expected}
            sums["pairs"] = 13.0
        done = before.trainer["sums"]
        assert sums["pairs"] - done.get("pairs", 0.0) == pairs, "a pair was lost or counted twice"
        found = {name: (sums[name] - done.get(name, 0.0)) / pairs for name in expected}
        assert found == pytest.approx(expected, rel=3e-4), step


class _Enough(Exception):  # noqa: N818 - not an error
    """Raised after one step."""


def next_step(config: Config, checkpoint: str) -> tuple[int, dict[str, float]]:
    """Return the number of pairs and the losses of one worker's next step after a checkpoint."""
    shutil.copytree(checkpoint, Path(config.train.storage) / "run" / "checkpoints" / Path(checkpoint).name)
    trainer = Trainer(config)
    cycle, taken = trainer.cycle, []

    def once(satellite: Any, street: Any, **kwargs: Any) -> dict[str, float]:
        taken.append((len(satellite), cycle(satellite, street, **kwargs)))
        raise _Enough

    once.optimizers = cycle.optimizers  # type: ignore[attr-defined]
    trainer.cycle = once  # type: ignore[assignment]
    with pytest.raises(_Enough):
        trainer.fit()
    return taken[0]


def check_result(result: dict[str, Any]) -> None:
    """Check that the checkpoints in the result of `train` exist and are complete."""
    for uri in (result["best"], result["newest"]):
        storage.check(uri)

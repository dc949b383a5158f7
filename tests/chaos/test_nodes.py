"""Nodes that come and go under a run on a Ray cluster of several nodes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from s2s_ray import storage
from s2s_ray.checkpoint import read_meta
from s2s_ray.config import Config
from s2s_ray.training.loop import Trainer
from s2s_ray.training.run import checkpoint_store
from tests.chaos import nodes
from tests.chaos.runs import Ending, configured
from tests.commands import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def configs(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Config]:
    """Of the run that grows and shrinks, whose checkpoints are all kept, and of the one that loses a node."""
    folder = tmp_path_factory.mktemp("runs")
    keep = {"workers": 2, "resize_every_s": 1, "keep_checkpoints": 100}
    return {
        "elastic": configured(settings, folder, name="elastic", min_workers=1, **keep),
        "lost": configured(settings, folder, name="lost", workers=2),
    }


@pytest.fixture(scope="module")
def happened(configs: dict[str, Config], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each run returned, after both were trained on one cluster."""
    folder = tmp_path_factory.mktemp("nodes")
    for name, config in configs.items():
        (folder / f"{name}.yaml").write_text(config.to_yaml())
    program = [sys.executable, nodes.__file__, str(folder / "elastic.yaml"), str(folder / "lost.yaml"), str(folder)]
    # A cluster of nodes leaves its address for others to find: in a place of its own, with a short path for sockets.
    with tempfile.TemporaryDirectory(prefix="nodes-") as place, (folder / "log").open("w") as log:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": place}
        Path(place, "ray").mkdir()
        ended = subprocess.run(program, stdout=log, stderr=subprocess.STDOUT, env=environment, timeout=500)
    assert ended.returncode == 0, (folder / "log").read_text()[-5000:]
    tree: dict[str, Any] = json.loads((folder / "happened.json").read_text())
    return tree


def test_a_lost_node_costs_nothing(
    configs: dict[str, Config], happened: dict[str, Any], undisturbed: Callable[[int], Ending]
) -> None:
    """Two workers on two nodes, one of which is lost within an epoch: to the bit what plain processes make."""
    Ending.of(configs["lost"]).assert_same(undisturbed(2))


def test_a_run_grows_and_shrinks_with_its_nodes(configs: dict[str, Config], happened: dict[str, Any]) -> None:
    store = checkpoint_store(configs["elastic"])
    grown, shrunk = nodes.ELASTIC_STEPS
    workers = {step: read_meta(store.uri(step))["workers"] for step in store.steps()}
    assert workers == {step: 2 if grown < step <= shrunk else 1 for step in range(1, 10)}
    assert [entry["step"] for entry in happened["elastic"]["history"]] == [3, 6, 9]


def test_each_step_of_an_elastic_run_is_the_one_that_a_single_worker_takes(
    configs: dict[str, Config], happened: dict[str, Any], settings: list[str], tmp_path: Path
) -> None:
    """From every checkpoint on, one worker's next step has the same pairs and losses as the run's own next step."""
    store = checkpoint_store(configs["elastic"])
    states = [store.load(step) for step in range(1, 10)]
    for before, after in pairwise(states):
        step = before.meta["step"]
        pairs, expected = next_step(configured(settings, tmp_path / str(step)), before.uri)
        if after.trainer["sums"]:
            sums = after.trainer["sums"]
        else:  # an epoch ended: its figures are means over all its pairs
            sums = {name: 13 * value for name, value in after.trainer["history"][-1].items() if name in expected}
            sums["pairs"] = 13.0
        done = before.trainer["sums"]
        assert sums["pairs"] - done.get("pairs", 0.0) == pairs, "a pair was lost or counted twice"
        found = {name: (sums[name] - done.get(name, 0.0)) / pairs for name in expected}
        assert found == pytest.approx(expected, rel=3e-4), step


class _Enough(Exception):  # noqa: N818 - not an error
    """One step was taken."""


def next_step(config: Config, checkpoint: str) -> tuple[int, dict[str, float]]:
    """How many pairs one worker's step from a checkpoint on has, and its losses."""
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


def test_what_training_returned_is_there(happened: dict[str, Any]) -> None:
    for result in happened.values():
        for uri in (result["best"], result["newest"]):
            storage.check(uri)

"""Sweeps through the entry script on a real cluster: killed and resumed, extended, failing trials, S3."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from s2s_ray import registry, storage
from s2s_ray.config import load_config
from s2s_ray.model.checkpoint import load_checkpoint
from s2s_ray.training.loop import Trainer
from tests.support.commands import started
from tests.support.processes import wait_for_the_end_of

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = 12
pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def settings(narrow: list[str]) -> list[str]:
    """Trials of one worker and a few epochs on a small data set."""
    return [*narrow, "train.workers=1", "train.epochs=6"]


def command(script: str, *settings: str) -> list[str]:
    options = [part for setting in settings for part in ("--set", setting)]
    return [sys.executable, str(ROOT / "jobs" / script), "--config", "tiny", *options]


def run(script: str, *settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(script, *settings), capture_output=True, text=True, timeout=600)


def trials(root: Path | str) -> list[dict[str, Any]]:
    with storage.open_input(f"{root}/trials.parquet") as file:
        rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    return rows


def histories(root: Path) -> dict[str, list[dict[str, Any]]]:
    return {path.parent.name: json.loads(path.read_text()) for path in root.glob("trials/*/history.json")}


def test_a_killed_sweep_resumes_and_can_be_extended(settings: list[str], tmp_path: Path) -> None:
    root, releases = tmp_path / "sweeps" / "night", str(tmp_path / "registry")
    places = [
        *settings,
        f"tune.storage={tmp_path / 'sweeps'}",
        "tune.name=night",
        f"tune.registry={releases}",
        "tune.scheduler=none",
        "tune.concurrent=1",
        f"train.epochs={EPOCHS}",
        "tune.space={loss.alpha: {low: 2, high: 50, log: true}, loss.lambda_l1: {low: 10, high: 1000, log: true}}",
    ]
    log = tmp_path / "killed.log"
    with log.open("w") as output:
        killed = subprocess.Popen(
            command("tune.py", *places, "tune.trials=3"), stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 240
        while len(found := histories(root)) < 2 or not all(found.values()):
            assert killed.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, "no second trial after four minutes"
            time.sleep(0.1)
    finally:
        killed.kill()
        killed.wait()
    wait_for_the_end_of(killed.pid)
    before = histories(root)
    [first, second] = sorted(before, key=lambda name: -len(before[name]))
    assert len(before[first]) == EPOCHS
    assert 0 < len(before[second]) < EPOCHS, "killed too late to matter"
    stamp = (root / "trials" / first / "history.json").stat().st_mtime_ns

    extended = run("tune.py", *places, "tune.trials=4")
    assert extended.returncode == 0, extended.stderr[-3000:]
    rows = trials(root)
    assert [row["state"] for row in rows] == ["complete"] * 4
    assert [row["epochs"] for row in rows] == [EPOCHS] * 4
    assert [row["run"] for row in rows][:2] == [first, second], "the interrupted trial did not resume in its own run"
    assert (root / "trials" / first / "history.json").stat().st_mtime_ns == stamp, "a finished trial was touched"
    after = histories(root)
    kept = len(before[second]) - 1  # the newest epoch's checkpoint may not have been stored
    assert [entry["r_loss"] for entry in after[second][:kept]] == [entry["r_loss"] for entry in before[second][:kept]]
    assert [entry["step"] for entry in after[second]] == [3 * (epoch + 1) for epoch in range(EPOCHS)]
    assert "best of 4 trials" in extended.stdout

    best = max(rows, key=lambda row: (row["recall_at_1"], -row["number"]))
    tree = yaml.safe_load((root / "best.yaml").read_text())
    assert tree["loss"]["alpha"] == best["loss.alpha"]
    [release] = registry.list_releases(releases, "night")
    assert release.run == best["run"]
    assert load_checkpoint(release.checkpoint_uri).config == load_config(root / "best.yaml").model

    again = load_config(root / "best.yaml", [f"train.storage={tmp_path / 'runs'}", "train.epochs=1"])
    assert len(Trainer(again).fit()) == 1, "best.yaml is a configuration for train as it is"


def test_two_objectives_and_failing_trials_on_s3(settings: list[str], s3: str) -> None:
    places = [
        *settings,
        f"tune.storage={s3}/sweeps",
        f"tune.registry={s3}/registry",
        "tune.synthesis=l1",
        "tune.scheduler=none",
        "tune.sampler=RandomSampler",
        "tune.trials=5",
        "train.lr_retrieval=1.0e-3",
        "tune.space={train.lr_retrieval: {choices: [1.0e-3, 1.0e+30]}, loss.alpha: {low: 2, high: 50}}",
    ]
    done = run("tune.py", *places)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = trials(f"{s3}/sweeps/sweep")
    assert [row["state"] == "failed" for row in rows] == [row["train.lr_retrieval"] > 1 for row in rows]
    failed = [row for row in rows if row["state"] == "failed"]
    assert failed, "no trial had the rate that cannot work"
    assert all("diverged at step" in row["reason"] and "train-" in row["reason"] for row in failed)
    complete = [row for row in rows if row["state"] == "complete"]
    assert all(0 < row["l1"] < 2 for row in complete)
    assert any(row["pareto"] for row in complete)
    assert len(registry.list_releases(f"{s3}/registry", "sweep")) == 1
    names = storage.list_names(f"{s3}/sweeps/sweep")
    assert {"best.yaml", "report.html", "study.journal", "sweep.yaml", "trials.parquet"} <= set(names)

    again = run("tune.py", *places)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "all 5 trials have finished" in again.stderr
    assert trials(f"{s3}/sweeps/sweep") == rows

    other = run("tune.py", *places, "train.epochs=7")
    assert other.returncode == 2
    assert "was started with train.epochs=6, now it is 7: keep it, or choose another tune.name" in other.stderr


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The environment with secrets, and the folder of Ray's sessions: none of them may be in any file after the test.

    The folders in the list are searched; the test adds its own.
    """
    (tmp_path / "pl4nted-study").mkdir()
    secrets = {
        "S2S_STUDY": f"sqlite:///{tmp_path / 'pl4nted-study' / 'study.db'}",
        "AWS_ACCESS_KEY_ID": "AKIApl4nted",
        "AWS_SECRET_ACCESS_KEY": "pl4nted-aws-secret",
        "AWS_SESSION_TOKEN": "pl4nted-aws-session",
        "WANDB_API_KEY": "pl4nted-wandb",
        "MLFLOW_TRACKING_PASSWORD": "pl4nted-mlflow",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    with tempfile.TemporaryDirectory(prefix="s2s-ray-") as ray:  # the names of Ray's sockets have to be short
        monkeypatch.setenv("RAY_TMPDIR", ray)
        folders = [Path(ray)]
        yield folders
        files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
        assert any("session" in str(path) and path.suffix in (".log", ".out", ".err") for path in files)
        assert [str(path) for path in files if b"pl4nted" in path.read_bytes()] == []


def test_trials_of_several_workers_stopped_by_ctrl_c(settings: list[str], tmp_path: Path, planted: list[Path]) -> None:
    planted += [tmp_path / "sweeps", tmp_path / "registry"]
    root, epochs = tmp_path / "sweeps" / "sweep", 20
    places = [
        *settings,
        "tune.study=${env:S2S_STUDY}",
        f"tune.storage={tmp_path / 'sweeps'}",
        f"tune.registry={tmp_path / 'registry'}",
        "train.workers=2",
        f"train.epochs={epochs}",
        "tune.trials=1",
        "tune.space={loss.alpha: {low: 2, high: 50}}",
    ]
    with started(command("tune.py", *places)) as process:
        deadline = time.monotonic() + 240
        while not any(len(history) >= 2 for history in histories(root).values()):
            assert process.poll() is None, process.communicate()[1][-3000:]
            assert time.monotonic() < deadline, "no second epoch after four minutes"
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors[-3000:]
    assert "pl4nted" not in errors
    assert "s2s: sweep stopped after 0 of 1 trials: the same command resumes sweep 'sweep'" in errors
    [before] = histories(root).values()
    assert 2 <= len(before) < epochs, "stopped too late to matter"

    done = run("tune.py", *places)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = trials(root)
    assert [(row["state"], row["epochs"]) for row in rows] == [("complete", epochs)], rows[0]["reason"]
    assert "pl4nted" not in done.stdout + done.stderr
    assert (tmp_path / "pl4nted-study" / "study.db").exists()
    assert len(registry.list_releases(str(tmp_path / "registry"), "sweep")) == 1, "no release to search"
    [after] = histories(root).values()
    kept = len(before) - 1  # the newest epoch's checkpoint may not have been stored
    assert [entry["r_loss"] for entry in after[:kept]] == [entry["r_loss"] for entry in before[:kept]]
    assert [entry["step"] for entry in after] == [3 * (epoch + 1) for epoch in range(epochs)]
    print(f"\na trial of two workers starts after {rows[0]['start_s']} s")

    short = run("tune.py", *places, "train.workers=5", "train.resources_per_worker={CPU: 2}", "tune.name=greedy")
    assert short.returncode == 2
    assert "a trial needs 10 CPU (train.workers=5" in short.stderr
    assert "so a trial could never start: lower these settings, or add nodes" in short.stderr
    assert not (tmp_path / "sweeps" / "greedy").exists()

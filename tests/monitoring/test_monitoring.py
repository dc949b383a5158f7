"""Dashboards and alert rules ask for metrics that exist; the exporter and `s2s status` say what a storage holds."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import optuna
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from s2s_ray import registry, storage
from s2s_ray.cli import main
from s2s_ray.config import Config, with_values
from s2s_ray.data.prepare import prepare
from s2s_ray.errors import ClusterError, DivergedError, NotFoundError
from s2s_ray.model.checkpoint import save_model
from s2s_ray.monitoring.exporter import exporting
from s2s_ray.monitoring.inventory import take_inventory
from s2s_ray.monitoring.status import (
    DeploymentStatus,
    age,
    dashboard_address,
    deployments,
    show,
)
from s2s_ray.runtime.metrics import RAY_PREFIX, STORAGE, TRAINING
from s2s_ray.sweep.study import SweepStudy, read_records
from s2s_ray.training.loop import (
    Trainer,
)

if TYPE_CHECKING:
    from tests.conftest import PairFolder

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy" / "prometheus"
DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
# What Ray 2.60 exports of itself and a dashboard or rule may ask for.
RAYS_OWN = {
    "ray_serve_autoscaling_target_replicas",
    "ray_serve_deployment_queued_queries",
    "ray_serve_health_check_failures_total",
    "ray_serve_num_http_error_requests_total",
    "ray_serve_replica_processing_queries",
}
KEYWORDS = {"and", "or", "unless", "bool", "offset", "ignoring", "group_left", "group_right"}


def asked_for(expression: str) -> set[str]:
    """Names of the metrics in a PromQL expression."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
    bare = re.sub(r"\b(by|on|without|ignoring)\s*\([^)]*\)", "", bare)
    return {name for name in re.findall(r"[a-zA-Z_:][\w:]*\b(?!\s*\()", bare) if name not in KEYWORDS}


def exported() -> dict[str, set[str]]:
    """Every metric that there is, with the labels of our own."""
    training = {RAY_PREFIX + name: set(metric.labels) for name, metric in TRAINING.items()}
    return training | {name: set(metric.labels) for name, metric in STORAGE.items()} | service_metrics()


def service_metrics() -> dict[str, set[str]]:
    """The service's own, read from its code: Ray adds `_total` to counters and makes three of a histogram."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "serve").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            kind = getattr(node.func, "id", getattr(node.func, "attr", "")) if isinstance(node, ast.Call) else ""
            if kind in ("Counter", "Gauge", "Histogram") and isinstance(node, ast.Call) and node.args:
                name = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
                suffixes = {"Counter": ["_total"], "Gauge": [""], "Histogram": ["_bucket", "_sum", "_count"]}[kind]
                found |= {f"{RAY_PREFIX}{name}{suffix}": set() for suffix in suffixes}
    return found


def unknown(names: set[str]) -> set[str]:
    """Of the names those that nobody exports; the service's are not judged where it exports none."""
    missing = names - exported().keys() - RAYS_OWN
    if not service_metrics():
        missing = {name for name in missing if name.startswith(("ray_s2s_train", "ray_s2s_sweep", "s2s_"))}
    return missing


def panels(path: Path) -> list[dict[str, Any]]:
    tree = json.loads(path.read_text())
    return [panel for panel in tree["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """Every expression of dashboards and rules, with where it stands."""
    for path in DASHBOARDS:
        for panel in panels(path):
            for target in panel["targets"]:
                yield f"{path.stem}: {panel['title']}", target["expr"]
        for variable in json.loads(path.read_text())["templating"]["list"]:
            if variable["type"] == "query":
                yield (
                    f"{path.stem}: ${variable['name']}",
                    re.sub(r"label_values\((\w+),.*", r"\1", variable["query"]["query"]),
                )
    for group in yaml.safe_load((RULES / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def test_names_are_found_in_expressions() -> None:
    assert asked_for('sum by (le) (rate(a_bucket{x="b"}[5m])) / on (run) c > 0.5 and time() - d{e=~"f"} unless g') == {
        "a_bucket",
        "c",
        "d",
        "g",
    }


@pytest.mark.parametrize(("where", "expression"), list(queries()))
def test_every_query_names_an_exported_metric(where: str, expression: str) -> None:
    names = asked_for(expression)
    assert names
    assert not unknown(names)


def test_labels_that_queries_select_are_there() -> None:
    metrics = exported()
    for where, expression in queries():
        for name, inside in re.findall(r"(\w+)\{([^}]*)\}", expression):
            if metrics.get(name):
                assert set(re.findall(r"(\w+)\s*[=!]~?", inside)) <= metrics[name], where


def test_everything_that_is_exported_is_shown_or_watched() -> None:
    asked = set().union(*(asked_for(expression) for _, expression in queries()))
    ours = {RAY_PREFIX + name for name in TRAINING if name not in ("s2s_train_step",)}
    assert not ours - asked


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_are_well_formed(path: Path) -> None:
    tree = json.loads(path.read_text())
    assert len({panel["id"] for panel in tree["panels"]}) == len(tree["panels"])
    titles = [panel["title"] for panel in panels(path)]
    taken: set[tuple[int, int]] = set()
    for panel in tree["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, f"{panel['title']} lies over another panel"
        taken |= cells
    assert all(titles)
    variables = {variable["name"] for variable in tree["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(tree["panels"])))
    assert used == variables, "a variable that nothing uses, or one that is not there"


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    return found


def check(promtool: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([promtool, *words], cwd=folder, capture_output=True, text=True, timeout=60)


def test_every_query_can_be_parsed(promtool: str, tmp_path: Path) -> None:
    rules = [{"record": f"q{number}", "expr": expression} for number, (_, expression) in enumerate(queries())]
    text = yaml.safe_dump({"groups": [{"name": "q", "rules": rules}]}).replace("$run", "x").replace("$sweep", "x")
    (tmp_path / "queries.yaml").write_text(text.replace("$endpoint", "x"))
    done = check(promtool, tmp_path, "check", "rules", "queries.yaml")
    assert done.returncode == 0, done.stderr


def test_alerts_fire_when_they_should(promtool: str) -> None:
    done = check(promtool, RULES, "test", "rules", "alerts_test.yaml")
    assert done.returncode == 0, done.stderr
    done = check(promtool, RULES, "check", "config", "prometheus.yaml")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_tests_of_the_alerts_would_find_a_mistake(promtool: str, tmp_path: Path) -> None:
    """Each alert in turn silenced."""
    shutil.copy(RULES / "alerts_test.yaml", tmp_path)
    whole = yaml.safe_load((RULES / "alerts.yaml").read_text())
    count = sum(len(group["rules"]) for group in whole["groups"])
    for number in range(count):
        tree = yaml.safe_load((RULES / "alerts.yaml").read_text())
        rule = [rule for group in tree["groups"] for rule in group["rules"]][number]
        rule["expr"] = f"({rule['expr']}) unless on () vector(1)"
        (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(tree))
        assert check(promtool, tmp_path, "test", "rules", "alerts_test.yaml").returncode != 0, rule["alert"]


def test_each_alert_is_explained() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    explained = re.findall(r"^\| (S2S\w+) \|", page, re.MULTILINE)
    rules = [
        rule["alert"]
        for group in yaml.safe_load((RULES / "alerts.yaml").read_text())["groups"]
        for rule in group["rules"]
    ]
    assert explained == rules


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, pair_folder: type[PairFolder]) -> Path:
    """Runs that are complete, unfinished, diverged and damaged, a sweep under way and a registry."""
    folder = tmp_path_factory.mktemp("root")
    pairs = pair_folder(folder / "pairs")
    for split, count in (("train", 4), ("val", 3), ("test", 1)):
        for number in range(count):
            pairs.add(f"{split}-{number}", split)
    config = pairs.config(folder / "data")
    prepare(config)
    small = with_values(
        config,
        {
            "model.channels": 4,
            "model.residual_blocks": 1,
            "model.discriminator_channels": 4,
            "model.street_blocks": [1, 1, 1],
            "model.masks": 2,
            "train.batch": 4,
            "train.epochs": 2,
            "train.storage": str(folder / "runs"),
            "train.name": "complete",
            "tune.storage": str(folder / "sweeps"),
            "tune.name": "night",
            "tune.trials": 5,
            "tune.space": {"loss.alpha": {"low": 2, "high": 50}},
        },
    )
    trainer = Trainer(small)
    trainer.fit()
    Trainer(with_values(small, {"train.name": "cut", "train.epochs": 1})).fit()
    longer = with_values(small, {"train.name": "cut", "train.epochs": 9})
    (folder / "runs" / "cut" / "config.yaml").write_text(longer.to_yaml())
    with pytest.raises(DivergedError):
        Trainer(with_values(small, {"train.name": "wild", "train.lr_retrieval": 1e30})).fit()
    (folder / "runs" / "damaged" / "checkpoints").mkdir(parents=True)
    (folder / "runs" / "damaged" / "config.yaml").write_text("train: {nmae: x}")
    fill_sweep(small, folder)
    save_model(trainer.model, {"run": "complete", "step": 2}, folder / "weights")
    storage.publish(folder / "weights", str(folder / "checkpoint"))
    registry.publish(str(folder / "registry"), "city", str(folder / "checkpoint"))
    return folder


def fill_sweep(config: Config, folder: Path) -> None:
    """A sweep with two complete trials, a failed one and one that runs."""
    root = folder / "sweeps" / "night"
    root.mkdir(parents=True)
    (root / "sweep.yaml").write_text(yaml.safe_dump({"dataset": "d", "config": config.model_dump(mode="json")}))
    study = SweepStudy(config.tune, str(root)).study
    space = {"loss.alpha": optuna.distributions.FloatDistribution(2, 50)}
    for value in (0.25, 0.5):
        study.tell(study.ask(space), value)
    study.tell(study.ask(space), state=optuna.trial.TrialState.FAIL)
    study.ask(space)


def test_inventory_of_a_root(root: Path) -> None:
    found = take_inventory(str(root))
    runs = {run.name: run for run in found.runs}
    assert set(runs) == {"complete", "cut", "wild"}
    assert runs["complete"].complete
    assert (runs["complete"].epochs_done, runs["complete"].step) == (2, 2)
    assert 0 <= (runs["complete"].best_recall or 0) <= 1
    assert abs(time.time() - (runs["complete"].checkpoint_time or 0)) < 600
    assert (runs["cut"].complete, runs["cut"].epochs_done, runs["cut"].epochs) == (False, 1, 9)
    assert "step" in (runs["wild"].diverged or "")
    assert runs["wild"].checkpoints in (0, 1)
    [fault] = found.faults
    assert "damaged" in fault
    assert "nmae" in fault
    [sweep] = found.sweeps
    assert (sweep.asked, sweep.states) == (5, {"complete": 2, "failed": 1, "running": 1})
    assert (sweep.best_recall, sweep.best_trial) == (0.5, 1)
    [name] = found.names
    assert (name.name, name.releases, name.current, name.promoted) == ("city", 1, None, None)


def test_looking_at_a_sweep_changes_nothing(root: Path) -> None:
    before = {path: path.read_bytes() for path in (root / "sweeps").rglob("*") if path.is_file()}
    take_inventory(str(root))
    assert {path: path.read_bytes() for path in (root / "sweeps").rglob("*") if path.is_file()} == before
    tree = yaml.safe_load((root / "sweeps" / "night" / "sweep.yaml").read_text())
    assert read_records(Config.from_tree(tree["config"]).tune, str(root / "nowhere")) == []


def test_a_root_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere does not exist"):
        take_inventory(str(tmp_path / "nowhere"))


def test_exporter_tells_prometheus_what_is_there(root: Path) -> None:
    port = free_port()
    with exporting([str(root)], "127.0.0.1", port) as collector:
        page = httpx2.get(f"http://127.0.0.1:{port}/metrics").text
        families = {family.name: family for family in text_string_to_metric_families(page)}
        assert set(families) == set(STORAGE), "nothing but what is listed, and all of it"
        values = {
            (sample.name, *(value for key, value in sample.labels.items() if key != "root")): sample.value
            for family in families.values()
            for sample in family.samples
        }
        assert values["s2s_run_complete", "complete"] == 1
        assert values["s2s_run_complete", "cut"] == 0
        assert values["s2s_run_diverged", "wild"] == 1
        assert values["s2s_run_epochs_done", "cut"] == 1
        assert values["s2s_stored_sweep_trials", "failed", "night"] == 1
        assert values["s2s_stored_sweep_best_recall_at_1", "night"] == 0.5
        assert values["s2s_registry_releases", "city"] == 1
        assert values["s2s_exporter_faults",] == 1
        assert 0 <= values["s2s_run_checkpoint_age_seconds", "complete"] < 600
        newest = sorted((root / "runs" / "complete" / "checkpoints").glob("*/manifest.json"))[-1]
        os.utime(newest, (2000, 2000))
        collector.scan()
        page = httpx2.get(f"http://127.0.0.1:{port}/metrics").text
        assert re.search(r's2s_run_checkpoint_timestamp_seconds\{.*run="complete"\} 2000\.0', page)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_status_is_readable(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    served = [DeploymentStatus("s2s", "city", "Ingress", "HEALTHY", 1, 2, "scaling up")]
    console = Console(width=150, force_terminal=False)
    show([take_inventory(str(root))], served, console)
    text = capsys.readouterr().out
    for expected in (
        "complete",
        "1 of 9",
        "unfinished",
        "diverged at step",
        "3 of 5",
        "50.0%",
        "not readable",
        "1 of 2",
    ):
        assert expected in text


def test_status_for_programs(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_DASHBOARD_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with pytest.raises(SystemExit) as end:
        main(["status", "--json", str(root)])
    assert end.value.code == 0
    tree = json.loads(capsys.readouterr().out)
    assert {run["name"] for run in tree["roots"][0]["runs"]} == {"complete", "cut", "wild"}
    assert tree["deployments"] is None
    with pytest.raises(SystemExit) as end:
        main(["status", str(root / "nowhere")])
    assert end.value.code == 2
    assert "nowhere does not exist" in capsys.readouterr().err


@pytest.mark.slow
def test_the_exporter_command_serves_until_it_is_told_to_end(root: Path) -> None:
    port = free_port()
    words = [sys.executable, "-m", "s2s_ray.cli", "exporter", str(root), "--port", str(port)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert f"http://127.0.0.1:{port}/metrics tells of {root}" in process.stdout.readline()
            assert "s2s_run_complete" in httpx2.get(f"http://127.0.0.1:{port}/metrics").text
            taken = subprocess.run(words, capture_output=True, text=True, timeout=60)
            assert taken.returncode == 2
            assert f"127.0.0.1:{port} cannot be listened on" in taken.stderr
            process.terminate()
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()


def test_ages_are_short() -> None:
    assert [age(seconds) for seconds in (5, 119, 600, 7300, 200000)] == ["5 s", "119 s", "10 min", "2 h", "2 d"]


def test_the_cluster_asked_is_the_one_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_DASHBOARD_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://b")
    assert dashboard_address(None) == "http://b"
    assert dashboard_address("http://a") == "http://a"
    with pytest.raises(ClusterError, match=r"no answer from http://127\.0\.0\.1:9"):
        deployments("http://127.0.0.1:9")

"""`s2s status`: tables in a terminal, JSON, and the deployments of a cluster."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import optuna
import pytest
import yaml
from ray.serve.schema import ApplicationDetails, DeploymentDetails, ServeInstanceDetails
from rich.console import Console

from s2s_ray.cli import main
from s2s_ray.config import Config
from s2s_ray.errors import ClusterError
from s2s_ray.monitoring.inventory import Inventory, ReleaseStatus, RunStatus, SweepStatus, sweep_status, take_inventory
from s2s_ray.monitoring.status import DeploymentStatus, age, dashboard_address, deployments, show
from s2s_ray.sweep.study import SweepStudy


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


@pytest.mark.parametrize(
    "name", ["[/x]", "[x]", "[red]x", "a\\", "[link=file:///x]y[/link]", ":warning:", "a\nb\x1b[31m", "\udcff"]
)
def test_text_of_users_is_shown_as_it_is(name: str) -> None:
    run = RunStatus(name, f"/data/{name}", 3, 1, 7, None, None, {}, None, 0, None, None, f"step 7 (pairs {name}, b)")
    whole = replace(run, name="whole", uri="/data/whole", diverged=None)
    sweep = SweepStatus(name, f"/data/{name}", 3, {"complete": 1, "failed": 0, "running": 0}, None, None)
    release = ReleaseStatus(name, f"/data/{name}", 1, name, None)
    served = [DeploymentStatus(name, name, name, name, 1, 2, name)]
    with io.StringIO() as file:
        console = Console(file=file, width=400)
        show([Inventory("/data", [run, whole], [sweep], [release], [name]), Inventory(name)], served, console)
        text = file.getvalue()
    text.encode()
    shown = name.replace("\n", "\\n").replace("\x1b", "\\x1b").replace("\udcff", "\\udcff")
    assert text.count(shown) == 2 + 1 + 2 + 1 + 1 + 5


def test_a_sweep_for_another_metric_shows_its_own_figure(tmp_path: Path) -> None:
    config = Config.from_tree(
        {
            "evaluation": {"protocols": ["fov=90"]},
            "tune": {"metric": "fov=90.metres_median", "space": {"loss.alpha": {"low": 2, "high": 50}}},
        }
    )
    root = tmp_path / "near"
    root.mkdir()
    (root / "sweep.yaml").write_text(yaml.safe_dump({"dataset": "d", "config": config.model_dump(mode="json")}))
    study = SweepStudy(config.tune, str(root)).study
    for value in (20.0, 7.25, 30.0):
        study.tell(study.ask({"loss.alpha": optuna.distributions.FloatDistribution(2, 50)}), value)
    found = sweep_status(str(root))
    assert (found.metric, found.best_value, found.best_trial) == ("fov=90.metres_median", 7.25, 1)
    assert found.best_recall is None
    with io.StringIO() as file:
        show([Inventory("/data", [], [found], [], [])], None, Console(file=file, width=200))
        assert "7.25 fov=90.metres_median" in file.getvalue()


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


def test_ages_are_short() -> None:
    assert [age(seconds) for seconds in (5, 119, 600, 7300, 200000)] == ["5 s", "119 s", "10 min", "2 h", "2 d"]


def test_the_address_of_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_DASHBOARD_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://b")
    assert dashboard_address(None) == "http://b"
    assert dashboard_address("http://a") == "http://a"


DETAILS = {
    "applications": {
        "s2s": {
            "deployed_app_config": {"args": {"name": "city"}},
            "deployments": {
                "Ingress": {
                    "status": "UPSCALING",
                    "message": "one more",
                    "target_num_replicas": 2,
                    "replicas": [{"state": "RUNNING"}, {"state": "STARTING"}],
                }
            },
        }
    }
}


class Dashboard(BaseHTTPRequestHandler):
    """Ray's dashboard, closed by the token `secret`."""

    content = json.dumps(DETAILS)

    def do_GET(self) -> None:
        known = self.headers.get("authorization") == "Bearer secret"
        found = self.path == "/api/serve/applications/"
        self.send_response(401 if not known else 200 if found else 404)
        self.end_headers()
        self.wfile.write((self.content if known else "Unauthorized: Missing authentication token").encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def dashboard() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Dashboard) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_deployments_of_a_cluster(dashboard: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The keys are those of Ray's own schema."""
    assert "applications" in ServeInstanceDetails.model_fields
    assert {"deployments", "deployed_app_config"} <= set(ApplicationDetails.model_fields)
    assert {"status", "message", "target_num_replicas", "replicas"} <= set(DeploymentDetails.model_fields)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    expected = [DeploymentStatus("s2s", "city", "Ingress", "UPSCALING", 1, 2, "one more")]
    assert deployments(dashboard) == expected
    assert deployments(f"{dashboard}/") == expected
    monkeypatch.setattr(Dashboard, "content", "<html>")
    with pytest.raises(ClusterError, match="is not the dashboard of a Ray cluster"):
        deployments(dashboard)
    monkeypatch.delenv("RAY_AUTH_MODE")
    with pytest.raises(
        ClusterError, match=r"refused the request \(Unauthorized: .*\): set RAY_AUTH_MODE=token"
    ) as caught:
        deployments(dashboard)
    assert caught.value.status == 401


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "127.0.0.1:9", "ray://127.0.0.1:9", "http://[x"])
def test_a_cluster_that_cannot_be_reached_is_named(address: str) -> None:
    with pytest.raises(ClusterError, match=f"no response from {re.escape(address)}: "):
        deployments(address)


def test_brackets_of_a_fault_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    inventory = Inventory("/runs[old]", faults=["reading a sweep needs optuna: pip install 's2s-ray[tune]'"])
    show([inventory], None, Console(width=150, force_terminal=False))
    text = capsys.readouterr().out
    assert "/runs[old]" in text
    assert "pip install 's2s-ray[tune]'" in text

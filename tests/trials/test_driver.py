"""Only one process at a time runs the trials of a sweep or a study."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from s2s_ray.errors import AblationError, DamagedError, SweepError
from s2s_ray.trials import driver
from s2s_ray.trials.driver import DRIVER_FILE, SILENT_S, driving


def test_a_second_driver_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    what = "sweep 'night'"
    program = (
        "import sys\nfrom s2s_ray.errors import SweepError\nfrom s2s_ray.trials.driver import driving\n"
        f"with driving({str(tmp_path)!r}, {what!r}, SweepError):\n"
        "    print('drives', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "drives\n"
        message = f"{what} at .* is already run by PID {first.pid} on {socket.gethostname()} "
        with pytest.raises(SweepError, match=message), driving(str(tmp_path), what, SweepError):
            raise AssertionError("two drivers")
        assert (tmp_path / DRIVER_FILE).exists(), "the refused process removed the file of the first"
        first.kill()
    with driving(str(tmp_path), what, SweepError):
        assert (tmp_path / DRIVER_FILE).exists(), "a killed driver is replaced immediately"
    assert not (tmp_path / DRIVER_FILE).exists()


@pytest.mark.parametrize("silent", [SILENT_S - 20, SILENT_S + 20])
def test_a_driver_on_another_machine_counts_as_dead_when_it_is_silent(tmp_path: Path, silent: float) -> None:
    """Its file is one that the first version wrote, without `format`."""
    other = {"host": "elsewhere", "machine": "another", "pid": 1, "born": 1, "told": time.time() - silent}
    (tmp_path / DRIVER_FILE).write_text(json.dumps(other))
    if silent < SILENT_S:
        with pytest.raises(AblationError, match="PID 1 on elsewhere"), driving(str(tmp_path), "study", AblationError):
            raise AssertionError("two drivers")
    else:
        with driving(str(tmp_path), "study", AblationError):
            tree = json.loads((tmp_path / DRIVER_FILE).read_text())
            assert tree["host"] == socket.gethostname()
            assert set(tree) == {"format", *other}, "the first version finds its keys"


def test_keys_of_a_newer_version_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree = {"host": "elsewhere", "machine": "another", "pid": 1, "born": 1, "told": 0.0, "mood": "good"}
    (tmp_path / DRIVER_FILE).write_text(json.dumps(tree))
    with driving(str(tmp_path), "study", AblationError):
        assert "ignored keys that this version does not know: mood" in caplog.text


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / DRIVER_FILE).write_text("{")
    with (
        pytest.raises(DamagedError, match=r"driver\.json cannot be read .*: delete it if no process runs these trials"),
        driving(str(tmp_path), "study", AblationError),
    ):
        raise AssertionError("started")


def test_a_driver_refreshes_its_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "HEARTBEAT_EVERY_S", 0.01)
    with driving(str(tmp_path), "sweep", SweepError):
        before = (tmp_path / DRIVER_FILE).read_text()
        deadline = time.monotonic() + 10
        while (tmp_path / DRIVER_FILE).read_text() == before:
            assert time.monotonic() < deadline, "no second heartbeat"
            time.sleep(0.01)

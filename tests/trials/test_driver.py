"""One driver at a time at the place of a sweep or a study."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from s2s_ray.trials import driver
from s2s_ray.trials.driver import DRIVER_FILE, SILENT_S, driving


class RefusedError(ValueError):
    pass


def test_a_second_driver_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom s2s_ray.trials.driver import driving\n"
        f"with driving({str(tmp_path)!r}, 'sweep', ValueError):\n"
        "    print('drives', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "drives\n"
        told = f"sweep at .* is driven by process {first.pid} on {socket.gethostname()}"
        with pytest.raises(RefusedError, match=told), driving(str(tmp_path), "sweep", RefusedError):
            raise AssertionError("two drivers")
        assert (tmp_path / DRIVER_FILE).exists(), "what refuses one leaves the other's word"
        first.kill()
    with driving(str(tmp_path), "sweep", RefusedError):
        assert (tmp_path / DRIVER_FILE).exists(), "a killed one is taken over at once"
    assert not (tmp_path / DRIVER_FILE).exists()


@pytest.mark.parametrize("silent", [SILENT_S - 20, SILENT_S + 20])
def test_one_on_another_machine_is_gone_when_it_is_silent(tmp_path: Path, silent: float) -> None:
    told = {"host": "elsewhere", "machine": "another", "pid": 1, "born": 1, "told": time.time() - silent}
    (tmp_path / DRIVER_FILE).write_text(json.dumps(told))
    if silent < SILENT_S:
        with pytest.raises(RefusedError, match="process 1 on elsewhere"), driving(str(tmp_path), "study", RefusedError):
            raise AssertionError("two drivers")
    else:
        with driving(str(tmp_path), "study", RefusedError):
            assert json.loads((tmp_path / DRIVER_FILE).read_text())["host"] == socket.gethostname()


def test_a_driver_keeps_telling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "BEAT_S", 0.01)
    with driving(str(tmp_path), "sweep", RefusedError):
        before = (tmp_path / DRIVER_FILE).read_text()
        deadline = time.monotonic() + 10
        while (tmp_path / DRIVER_FILE).read_text() == before:
            assert time.monotonic() < deadline, "it told nothing more"
            time.sleep(0.01)

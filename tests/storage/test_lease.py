"""Only one process at a time drives a run, a sweep or a study, and one that lost its lease writes nothing more."""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from s2s_ray.errors import ConflictError, DamagedError, RunError, StorageError, SweepError, UnreachableError
from s2s_ray.storage import conditional, holder, lease, retries
from s2s_ray.storage.lease import DRIVER_FILE, HEARTBEAT_S, POLL_S, SILENT_S, Lease, driving

ELSEWHERE = {"host": "elsewhere", "machine": "another", "pid": 1}
FIRST_VERSION = {**ELSEWHERE, "born": 1, "told": 0.0}
WHAT = "run 'first'"


@dataclass
class Time:
    """A clock that only waiting moves."""

    now: float = 1000.0
    paused: list[Callable[[], object]] = field(default_factory=list)
    """Done once each, one at every wait."""

    def pause(self, seconds: float) -> None:
        self.now += seconds
        if self.paused:
            self.paused.pop(0)()


@pytest.fixture
def virtual(monkeypatch: pytest.MonkeyPatch) -> Time:
    moving = Time()
    monkeypatch.setattr(lease, "clock", lambda: moving.now)
    monkeypatch.setattr(lease, "pause", moving.pause)
    return moving


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make this process appear on another machine from now on."""
    monkeypatch.setattr(holder, "_machine", lambda: "one")
    return lambda name: monkeypatch.setattr(holder, "_machine", lambda: name)


def stored(root: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((root / DRIVER_FILE).read_text())
    return tree


def acquired(root: Path) -> Lease:
    own = Lease(str(root), WHAT, RunError)
    own.acquire()
    return own


def test_a_second_driver_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom s2s_ray.errors import SweepError\nfrom s2s_ray.storage.lease import driving\n"
        f"with driving({str(tmp_path)!r}, {WHAT!r}, SweepError):\n"
        "    print('drives', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "drives\n"
        before = stored(tmp_path)
        message = f"{WHAT} at .* is already run by PID {first.pid} on {socket.gethostname()}, which is alive"
        with pytest.raises(SweepError, match=message), driving(str(tmp_path), WHAT, SweepError):
            raise AssertionError("two drivers")
        assert stored(tmp_path) == before, "the refused process changed the file of the first"
        first.kill()
    with driving(str(tmp_path), WHAT, SweepError):
        assert stored(tmp_path)["epoch"] == 2, "a killed driver is replaced immediately"
    assert stored(tmp_path)["ended"]
    with driving(str(tmp_path), WHAT, SweepError):
        assert (stored(tmp_path)["epoch"], stored(tmp_path)["ended"]) == (3, False)


@pytest.mark.parametrize("told", [0.0, 1e12], ids=["a clock that is slow", "a clock that is fast"])
def test_a_silent_driver_on_another_machine_is_replaced_whatever_its_clock(
    tmp_path: Path, virtual: Time, told: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Its file is one that the first version wrote, without `format`."""
    caplog.set_level("INFO")
    (tmp_path / DRIVER_FILE).write_text(json.dumps({**FIRST_VERSION, "told": told}))
    acquired(tmp_path)
    assert SILENT_S <= virtual.now - 1000 <= SILENT_S + 2 * POLL_S
    assert "waiting 60 s to see whether PID 1 on elsewhere, which runs run 'first' at" in caplog.text
    assert (stored(tmp_path)["host"], stored(tmp_path)["epoch"]) == (socket.gethostname(), 1)


def test_a_driver_on_another_machine_that_beats_is_alive(tmp_path: Path, virtual: Time) -> None:
    """Its clock stands still, and so does the rest of its file but for the count."""
    (tmp_path / DRIVER_FILE).write_text(json.dumps(FIRST_VERSION))
    beat = json.dumps({**FIRST_VERSION, "told": 1.0})
    virtual.paused = [lambda: None] * 14 + [lambda: (tmp_path / DRIVER_FILE).write_text(beat)]
    with pytest.raises(RunError, match="is already run by PID 1 on elsewhere, which is alive"):
        acquired(tmp_path)
    assert virtual.now - 1000 == 15 * POLL_S, "it is refused as soon as the file moves"
    assert stored(tmp_path)["told"] == 1.0


def test_waiting_ends_when_the_other_driver_does(tmp_path: Path, virtual: Time) -> None:
    first = acquired(tmp_path)
    virtual.paused = [first.renew, lambda: None, first.release]
    second = Lease(str(tmp_path), WHAT, RunError)
    second.acquire(wait=True)
    assert stored(tmp_path)["epoch"] == 2
    first.release()
    assert not stored(tmp_path)["ended"], "the first gave back what it no longer had"


def test_a_driver_that_was_suspended_stops_before_it_writes(
    tmp_path: Path, virtual: Time, machines: Callable[[str], None]
) -> None:
    first = acquired(tmp_path)
    first.check()
    machines("two")
    second = acquired(tmp_path)
    machines("one")
    for _ in range(2):
        with pytest.raises(RunError, match=r"PID \d+ on .* took it over, because this process had shown no sign of"):
            first.check()
    with pytest.raises(RunError, match="took it over"):
        first.fence.check()
    first.renew()
    first.release()
    second.check()
    assert (stored(tmp_path)["epoch"], stored(tmp_path)["ended"]) == (2, False)


def test_a_driver_that_was_suspended_goes_on_if_nobody_took_over(tmp_path: Path, virtual: Time) -> None:
    own = acquired(tmp_path)
    virtual.now += 10 * SILENT_S
    own.check()
    assert stored(tmp_path)["beat"] == 1


def test_two_that_wait_for_the_same_driver(tmp_path: Path, virtual: Time, machines: Callable[[str], None]) -> None:
    (tmp_path / DRIVER_FILE).write_text(json.dumps(FIRST_VERSION))
    virtual.paused = [lambda: None] * 30
    winners: list[Lease] = []

    def faster() -> None:
        machines("two")
        winners.append(acquired(tmp_path))
        machines("one")

    virtual.paused.append(faster)
    with pytest.raises(RunError, match="is already run by"):
        acquired(tmp_path)
    winners[0].check()


@pytest.mark.parametrize("written", [True, False], ids=["after the write", "before the write"])
@pytest.mark.parametrize("lost", [1, 3])
def test_lost_answers(tmp_path: Path, virtual: Time, monkeypatch: pytest.MonkeyPatch, written: bool, lost: int) -> None:
    write, left = conditional.write, [lost]

    def losing(uri: str, content: bytes, version: str | None) -> None:
        left[0] -= 1
        if left[0] < 0 or written:
            write(uri, content, version)
        if left[0] >= 0:
            raise UnreachableError("the answer was lost")

    monkeypatch.setattr(conditional, "write", losing)
    own = acquired(tmp_path)
    assert stored(tmp_path)["epoch"] == 1
    left[0] = lost
    own.renew()
    own.check()
    left[0] = 0
    own.release()
    assert stored(tmp_path)["ended"]


def test_a_driver_whose_file_was_deleted_stops(tmp_path: Path, virtual: Time) -> None:
    own = acquired(tmp_path)
    (tmp_path / DRIVER_FILE).unlink()
    virtual.now += 3 * HEARTBEAT_S
    with pytest.raises(RunError, match=r"its driver\.json was deleted; this process stops"):
        own.check()
    own.release()
    assert not (tmp_path / DRIVER_FILE).exists()


def test_a_lease_that_could_not_be_given_back_is_over(
    tmp_path: Path, virtual: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage was away when the work ended; the same process begins it again."""
    own, read = acquired(tmp_path), conditional.read

    def away(*_: object) -> None:
        raise UnreachableError("no route to host")

    monkeypatch.setattr(conditional, "read", away)
    with pytest.raises(UnreachableError, match="no route"):
        own.release()
    monkeypatch.setattr(conditional, "read", read)
    acquired(tmp_path).check()
    assert virtual.now == 1000
    with pytest.raises(RunError, match="is already run by"):
        acquired(tmp_path)
    with pytest.raises(RunError, match="took it over"):
        own.fence.check()


def test_an_outage_is_named_before_a_write(tmp_path: Path, virtual: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    own = acquired(tmp_path)

    def away(*_: object) -> None:
        raise StorageError("no route to host")

    monkeypatch.setattr(conditional, "read", away)
    own.check()
    virtual.now += 3 * HEARTBEAT_S
    with pytest.raises(StorageError, match="no route"):
        own.check()


def test_a_file_that_always_changes(tmp_path: Path, virtual: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    own = acquired(tmp_path)

    def changed(*_: object) -> None:
        raise ConflictError("changed")

    monkeypatch.setattr(conditional, "write", changed)
    with pytest.raises(ConflictError, match="keeps being changed by other processes"):
        own.renew()


def test_a_fence_can_be_sent_to_a_worker(tmp_path: Path) -> None:
    own = acquired(tmp_path)
    fence = pickle.loads(pickle.dumps(own.fence))
    fence.check()
    own.release()
    with pytest.raises(RunError, match="its driver has ended"):
        fence.check()


def test_a_container_is_not_its_host(tmp_path: Path, virtual: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of another namespace is not gone because no process here has its PID."""
    monkeypatch.setattr(holder, "_namespace", lambda: "pid:[1]")
    monkeypatch.setattr("s2s_ray.storage.holder.os.getpid", lambda: 2**22 + 1)
    acquired(tmp_path)
    monkeypatch.setattr(holder, "_namespace", lambda: "pid:[2]")
    acquired(tmp_path)
    assert virtual.now - 1000 >= SILENT_S


def test_keys_of_a_newer_version_are_logged(tmp_path: Path, virtual: Time, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / DRIVER_FILE).write_text(json.dumps({**FIRST_VERSION, "mood": "good"}))
    acquired(tmp_path)
    assert "ignored keys that this version does not know: mood" in caplog.text


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 2}', '{"host": 1}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / DRIVER_FILE).write_text(content)
    with pytest.raises(DamagedError, match=r"driver\.json cannot be read .*: delete it if no process runs what is"):
        acquired(tmp_path)


def test_a_driver_renews_its_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.01)
    with driving(str(tmp_path), "sweep", SweepError):
        deadline = time.monotonic() + 10
        while stored(tmp_path)["beat"] < 2:
            assert time.monotonic() < deadline, "no second heartbeat"
            time.sleep(0.01)


@pytest.mark.parametrize("fault", [FileNotFoundError, PermissionError])
def test_a_driver_that_proc_hides_is_not_gone(
    tmp_path: Path, virtual: Time, monkeypatch: pytest.MonkeyPatch, fault: type[OSError]
) -> None:
    """With `hidepid` the processes of other users cannot be looked at: only the silence of the file counts."""
    first = acquired(tmp_path)
    pid, read = os.getpid(), Path.read_text

    def refused(*_: object) -> None:
        raise PermissionError

    def hidden(path: Path, *args: Any, **kwargs: Any) -> str:
        if path == Path(f"/proc/{pid}/stat"):
            raise fault(path)
        return read(path, *args, **kwargs)

    monkeypatch.setattr("s2s_ray.storage.holder.os.kill", refused)
    monkeypatch.setattr(Path, "read_text", hidden)
    virtual.paused = [first.renew]
    with pytest.raises(RunError, match=f"is already run by PID {pid} on .*, which is alive"):
        acquired(tmp_path)
    assert virtual.now == 1000 + POLL_S
    acquired(tmp_path)
    assert virtual.now - 1000 >= SILENT_S


def test_a_file_of_a_newer_version_ends_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Only another process can have written it."""
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.01)
    with driving(str(tmp_path), WHAT, RunError) as own:
        newer = json.dumps({"format": 99})
        (tmp_path / DRIVER_FILE).write_text(newer)
        deadline = time.monotonic() + 10
        while not own.is_lost:
            assert time.monotonic() < deadline, "the heartbeat did not notice"
            time.sleep(0.01)
        with pytest.raises(
            RunError, match=r"driver\.json has format 99, .*; this process stops and writes nothing more"
        ):
            own.check()
    assert (tmp_path / DRIVER_FILE).read_text() == newer
    assert "could not give the lease" in caplog.text


def test_the_end_does_not_wait_for_a_storage_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(lease, "_END_S", 0.01)
    waiting, over, read = threading.Event(), threading.Event(), conditional.read

    def hangs(uri: str) -> tuple[bytes | None, str | None]:
        waiting.set()
        assert over.wait(10)
        return read(uri)

    with driving(str(tmp_path), WHAT, RunError):
        monkeypatch.setattr(conditional, "read", hangs)
        assert waiting.wait(10)
    assert not over.is_set()
    assert "could not give the lease" in caplog.text
    over.set()


def test_a_lease_is_given_back_in_one_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, attempts = acquired(tmp_path), list[int]()

    def away(uri: str) -> tuple[bytes | None, str | None]:
        def attempt() -> tuple[bytes | None, str | None]:
            attempts.append(1)
            raise UnreachableError("no route to host")

        return retries.patiently(uri, "AWS", attempt)

    monkeypatch.setattr(conditional, "read", away)
    monkeypatch.setattr("s2s_ray.storage.retries.time.sleep", lambda _: None)
    with pytest.raises(UnreachableError, match="no route"):
        own.release()
    assert len(attempts) == 1

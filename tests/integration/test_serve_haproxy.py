"""The service behind Ray's HAProxy: it answers as without, bounds what waits, and listens on loopback only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.integration.callers import PANORAMA, flood, kill_ingress, kill_replicas, raw
from tests.integration.served import PATIENT_S, SCARCE, Running, behind_haproxy, running_in

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
LOOPBACK = "0100007F"  # as /proc/net/tcp has it


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("haproxy")
    with running_in(folder, behind_haproxy, access_log=False, timeout_s=PATIENT_S, synthesis=SCARCE) as service:
        yield service


def listening(process: Path) -> set[tuple[str, int]]:
    """Addresses and ports that a process listens on, IPv4 and IPv6."""
    sockets = set()
    for descriptor in (process / "fd").iterdir():
        with suppress(FileNotFoundError):
            sockets.add(os.readlink(descriptor).removeprefix("socket:[").removesuffix("]"))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in (process / "net" / table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:
                address, port = fields[1].split(":")
                found.add((address, int(port, 16)))
    return found


def haproxies(running: Running) -> list[Path]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            session = int((process / "stat").read_text().rpartition(")")[2].split()[3])
            if session == running.process.pid and (process / "comm").read_text() == "haproxy\n":
                found.append(process)
    return found


def test_it_answers_as_the_plain_classes_do(running: Running) -> None:
    [[first, *_]] = running.localizer.street([PANORAMA], k=3)
    answer = raw(running)()
    assert (answer.status, answer.release) == (200, running.release.id)
    assert answer.best is not None
    assert answer.best[0] == first.id
    assert answer.best[1] == pytest.approx(first.descriptor_distance, abs=1e-4)


def test_nothing_of_it_listens_beyond_loopback(running: Running) -> None:
    processes = haproxies(running)
    assert processes
    ports = {one for process in processes for one in listening(process)}
    assert int(running.url.rpartition(":")[2]) in {port for _, port in ports}
    assert len(ports) == 3, "the service, figures, statistics"
    assert {address for address, _ in ports} == {LOOPBACK}


@pytest.mark.parametrize("deployment", ["StreetEmbedding", "Search"])
def test_a_killed_replica_costs_no_answer(running: Running, deployment: str) -> None:
    kill_replicas(running, deployment)


def test_a_killed_ingress_costs_patient_clients_no_answer(running: Running) -> None:
    kill_ingress(running)


def test_an_open_loop_at_many_times_the_capacity(running: Running) -> None:
    told = flood(running)
    print(f"\n{told}")
    assert {answer.status for answer in told.answers} == {200, 503}
    assert told.accepted.max() < 30, "far below the deadline"

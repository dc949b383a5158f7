"""The service behind Ray's HAProxy: it answers as without, bounds what waits, and listens on loopback only."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest

from tests.support.callers import PANORAMA, flood, kill_ingress, kill_replicas, raw
from tests.support.processes import processes_of
from tests.support.served import PATIENT_S, SCARCE, Running, behind_haproxy, running_in

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("haproxy")
    with running_in(folder, behind_haproxy, access_log=False, timeout_s=PATIENT_S, synthesis=SCARCE) as service:
        yield service


def haproxies(running: Running) -> list[psutil.Process]:
    found = []
    for process in processes_of(running.process.pid):
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile
            if process.name() == "haproxy":
                found.append(process)
    return found


def all_listen_on(running: Running) -> set[tuple[str, int]]:
    """Addresses and ports, IPv4 and IPv6, at a moment when no process takes over from another, as with each change."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        processes, found = haproxies(running), set()
        with suppress(psutil.NoSuchProcess):
            for process in processes:
                connections = process.net_connections("tcp")
                found |= {tuple(one.laddr) for one in connections if one.status == psutil.CONN_LISTEN}
            if processes and haproxies(running) == processes:
                return found
        time.sleep(0.1)
    raise AssertionError("no HAProxy that stays as it is for a moment within a minute")


def test_it_answers_as_the_plain_classes_do(running: Running) -> None:
    [[first, *_]] = running.localizer.street([PANORAMA], k=3)
    answer = raw(running)()
    assert (answer.status, answer.release) == (200, running.release.id)
    assert answer.best is not None
    assert answer.best[0] == first.id
    assert answer.best[1] == pytest.approx(first.descriptor_distance, abs=1e-4)


def test_nothing_of_it_listens_beyond_loopback(running: Running) -> None:
    ports = all_listen_on(running)
    assert int(running.url.rpartition(":")[2]) in {port for _, port in ports}
    assert len(ports) == 3, "the service, figures, statistics"
    assert {address for address, _ in ports} == {"127.0.0.1"}


@pytest.mark.parametrize("deployment", ["StreetEmbedding", "Search"])
def test_a_killed_replica_costs_no_answer(running: Running, deployment: str) -> None:
    kill_replicas(running, deployment)


def test_a_killed_ingress_costs_patient_clients_no_answer(running: Running) -> None:
    kill_ingress(running)


def test_an_open_loop_at_many_times_the_capacity(running: Running) -> None:
    told = flood(running)
    print(f"\n{told}")
    assert {answer.status for answer in told.answers} == {200, 503}
    assert told.within(1) <= 5, "what the limits of the deployments leave"

"""The service behind Ray's HAProxy: same results, bounded queues, and listening on loopback only."""

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
        with suppress(psutil.NoSuchProcess):  # it has just ended
            if process.name() == "haproxy":
                found.append(process)
    return found


def all_listen_on(running: Running) -> set[tuple[str, int]]:
    """Return the addresses and ports, IPv4 and IPv6, while no process replaces another, as after each change."""
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
    raise AssertionError("HAProxy kept changing for a minute")


def test_the_results_are_those_of_the_plain_classes(running: Running) -> None:
    [[first, *_]] = running.localizer.street([PANORAMA], k=3)
    outcome = raw(running)()
    assert (outcome.status, outcome.release) == (200, running.release.id)
    assert outcome.best is not None
    assert outcome.best[0] == first.id
    assert outcome.best[1] == pytest.approx(first.descriptor_distance, abs=1e-4)


def test_it_listens_on_loopback_only(running: Running) -> None:
    ports = all_listen_on(running)
    assert int(running.url.rpartition(":")[2]) in {port for _, port in ports}
    assert len(ports) == 3, "the service, metrics, statistics"
    assert {address for address, _ in ports} == {"127.0.0.1"}


@pytest.mark.parametrize("deployment", ["StreetEmbedding", "Search"])
def test_a_killed_replica_fails_no_request(running: Running, deployment: str) -> None:
    kill_replicas(running, deployment)


def test_a_killed_ingress_fails_no_request_of_clients_that_retry(running: Running) -> None:
    kill_ingress(running)


def test_an_open_loop_at_many_times_the_capacity(running: Running) -> None:
    flooded = flood(running)
    print(f"\n{flooded}")
    assert {outcome.status for outcome in flooded.outcomes} == {200, 503}
    assert flooded.within(1) <= 5, "the limits of the deployments allow this"

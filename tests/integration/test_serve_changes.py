"""The service while it changes: releases promoted under load, processes killed, replicas added and removed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from s2s_ray import registry
from s2s_ray.geo.images import encode
from tests.support.callers import expected, flood, kill_ingress, kill_replicas, load, many_at_once, raw, summary, until
from tests.support.served import PATIENT_S, SCARCE, Running, noise, publish, replicas, running_in

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("changes")


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Running]:
    """The service, quick to add and remove replicas; satellite embedding may stand at zero."""
    lively = {"num_cpus": 0.2, "upscale_delay_s": 0.5, "downscale_delay_s": 2, "look_back_s": 11}
    street = {**lively, "min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 1}
    satellite = {**lively, "min_replicas": 0, "max_replicas": 1}
    changes = {"street": street, "satellite": satellite, "synthesis": SCARCE}
    with running_in(folder, poll_s=0.5, access_log=False, timeout_s=PATIENT_S, **changes) as service:
        yield service


def test_releases_change_under_load_without_a_failed_or_mixed_answer(running: Running, folder: Path) -> None:
    first, second = running.release, publish(folder, 6, running.root)
    truth = {release.id: expected(release) for release in (first, second)}
    assert abs(truth[first.id][1] - truth[second.id][1]) > 1e-3, "the releases can be told apart"
    with load(raw(running)) as answers:
        until(lambda: len(answers) > 20, 30, "no load")
        registry.promote(running.root, "demo", second.id)
        took = until(lambda: answers[-1].release == second.id, 60, "the new release is not served")
        time.sleep(2)
        registry.rollback(running.root, "demo")
        until(lambda: answers[-1].release == first.id, 60, "the old release is not served again")
        time.sleep(1)
    print(f"\npromoted under load: {summary(answers)}; the new release answered {took:.1f} s after the promotion")
    assert {answer.status for answer in answers} == {200}
    assert Counter(answer.release for answer in answers)[second.id] > 10
    for answer in answers:
        assert answer.release is not None
        assert answer.best is not None
        id, distance = truth[answer.release]
        assert answer.best[0] == id
        assert answer.best[1] == pytest.approx(distance, abs=1e-4), "a descriptor of one release met another's index"


def test_a_damaged_release_is_not_served_and_said_so(running: Running, folder: Path) -> None:
    third = publish(folder, 7, running.root)
    weights = Path(third.checkpoint_uri) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    registry.promote(running.root, "demo", third.id)
    state = until_fault(running)
    assert (state["release"], state["next"], state["status"]) == (running.release.id, third.id, "ready")
    assert "fails its checksum" in state["fault"] or "cannot be loaded" in state["fault"]
    assert raw(running)().release == running.release.id
    registry.rollback(running.root, "demo")
    until(lambda: running.http.get("/readyz").json()["fault"] is None, 30, "the fault stays")


def until_fault(running: Running) -> dict[str, Any]:
    until(lambda: running.http.get("/readyz").json()["fault"], 30, "no fault is told")
    state: dict[str, Any] = running.http.get("/readyz").json()
    return state


@pytest.mark.parametrize("deployment", ["StreetEmbedding", "Search"])
def test_a_killed_replica_costs_no_answer(running: Running, deployment: str) -> None:
    kill_replicas(running, deployment)


def test_a_killed_ingress_costs_patient_clients_no_answer(running: Running) -> None:
    kill_ingress(running)
    assert running.http.get("/readyz").status_code == 200


def held(running: Running) -> dict[str, int]:
    counts: dict[str, int] = running.http.get("/readyz").json()["deployments"]
    return counts


def test_replicas_are_added_under_load_and_removed_to_zero_where_allowed(running: Running) -> None:
    until(lambda: held(running)["satellite"] == 0, 60, "satellite embedding never stands at zero")
    assert running.http.get("/readyz").status_code == 200
    tile = encode(noise(48, 48, 1), "png")
    started = time.monotonic()
    answer = running.http.post("/v1/embed/satellite", content=tile, headers={"content-type": "image/png"})
    assert answer.status_code == 200
    print(f"\nfrom zero: answered after {time.monotonic() - started:.1f} s")
    with load(many_at_once(running)) as answers:
        up = until(lambda: held(running)["street"] == 2, 90, "no replica was added")
    assert {answer.status for answer in answers} == {200}, summary(answers)
    down = until(lambda: held(running)["street"] == 1, 90, "no replica was removed")
    until(lambda: held(running)["satellite"] == 0, 60, "satellite embedding does not go back to zero")
    print(f"second replica after {up:.1f} s of load, gone {down:.1f} s after it")


def test_an_open_loop_at_many_times_the_capacity(running: Running) -> None:
    """Requests that come whether or not others were answered: the accepted ones stay quick, memory does not grow."""
    processes = [*replicas(running, "Ingress"), *replicas(running, "Synthesis")]
    before = sum(map(resident_mb, processes))
    told = flood(running)
    grown = sum(map(resident_mb, processes)) - before
    print(f"\n{told}; memory {grown:+.0f} MB")
    assert {answer.status for answer in told.answers} == {200, 503}
    # What the limits of the deployments leave. Most wait in Ray's Python proxy, which takes a few dozen a second.
    assert told.within(1) <= 5
    assert grown < 100
    assert running.http.post("/v1/synthesize", content=encode(noise(48, 48, 1), "png")).status_code == 200


def resident_mb(process: psutil.Process) -> float:
    return process.memory_info().rss / 1e6

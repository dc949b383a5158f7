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
    """Start a service that adds and removes replicas quickly; satellite embedding may scale to zero."""
    lively = {"num_cpus": 0.2, "upscale_delay_s": 0.5, "downscale_delay_s": 2, "look_back_s": 11}
    street = {**lively, "min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 1}
    satellite = {**lively, "min_replicas": 0, "max_replicas": 1}
    changes = {"street": street, "satellite": satellite, "synthesis": SCARCE}
    with running_in(folder, poll_s=0.5, access_log=False, timeout_s=PATIENT_S, **changes) as service:
        yield service


def test_releases_change_under_load_without_a_failed_or_mixed_response(running: Running, folder: Path) -> None:
    first, second = running.release, publish(folder, 6, running.root)
    matches = {release.id: expected(release) for release in (first, second)}
    assert abs(matches[first.id][1] - matches[second.id][1]) > 1e-3, "the releases are distinguishable"
    with load(raw(running)) as outcomes:
        until(lambda: len(outcomes) > 20, 30, "no load")
        registry.promote(running.root, "demo", second.id)
        seconds = until(lambda: outcomes[-1].release == second.id, 60, "the new release is not served")
        time.sleep(2)
        registry.rollback(running.root, "demo")
        until(lambda: outcomes[-1].release == first.id, 60, "the old release is not served again")
        time.sleep(1)
    print(f"\npromoted under load: {summary(outcomes)}; the new release was served {seconds:.1f} s after the promotion")
    assert {outcome.status for outcome in outcomes} == {200}
    assert Counter(outcome.release for outcome in outcomes)[second.id] > 10
    for outcome in outcomes:
        assert outcome.release is not None
        assert outcome.best is not None
        id, distance = matches[outcome.release]
        assert outcome.best[0] == id
        assert outcome.best[1] == pytest.approx(distance, abs=1e-4), (
            "the descriptor of one release met the index of the other"
        )


def test_a_damaged_release_is_reported_and_not_served(running: Running, folder: Path) -> None:
    third = publish(folder, 7, running.root)
    weights = Path(third.checkpoint_uri) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    registry.promote(running.root, "demo", third.id)
    state = until_fault(running)
    assert (state["release"], state["next"], state["status"]) == (running.release.id, third.id, "ready")
    assert "fails its checksum" in state["fault"] or "cannot be loaded" in state["fault"]
    assert raw(running)().release == running.release.id
    registry.rollback(running.root, "demo")
    until(lambda: running.http.get("/readyz").json()["fault"] is None, 30, "the fault remains")


def until_fault(running: Running) -> dict[str, Any]:
    until(lambda: running.http.get("/readyz").json()["fault"], 30, "no fault is reported")
    state: dict[str, Any] = running.http.get("/readyz").json()
    return state


@pytest.mark.parametrize("deployment", ["StreetEmbedding", "Search"])
def test_a_killed_replica_fails_no_request(running: Running, deployment: str) -> None:
    kill_replicas(running, deployment)


def test_a_killed_ingress_fails_no_request_of_clients_that_retry(running: Running) -> None:
    kill_ingress(running)
    assert running.http.get("/readyz").status_code == 200


def held(running: Running) -> dict[str, int]:
    counts: dict[str, int] = running.http.get("/readyz").json()["deployments"]
    return counts


def test_replicas_are_added_under_load_and_removed_to_zero_if_allowed(running: Running) -> None:
    until(lambda: held(running)["satellite"] == 0, 60, "satellite embedding does not scale to zero")
    assert running.http.get("/readyz").status_code == 200
    tile = encode(noise(48, 48, 1), "png")
    started = time.monotonic()
    response = running.http.post("/v1/embed/satellite", content=tile, headers={"content-type": "image/png"})
    assert response.status_code == 200
    print(f"\nfrom zero: first response after {time.monotonic() - started:.1f} s")
    with load(many_at_once(running)) as outcomes:
        up = until(lambda: held(running)["street"] == 2, 90, "no replica was added")
    assert {outcome.status for outcome in outcomes} == {200}, summary(outcomes)
    down = until(lambda: held(running)["street"] == 1, 90, "no replica was removed")
    until(lambda: held(running)["satellite"] == 0, 60, "satellite embedding does not return to zero")
    print(f"second replica after {up:.1f} s of load, removed {down:.1f} s after it")


def test_an_open_loop_at_many_times_the_capacity(running: Running) -> None:
    """Requests arrive whether or not earlier ones are complete: accepted ones stay fast, memory does not grow."""
    processes = [*replicas(running, "Ingress"), *replicas(running, "Synthesis")]
    before = sum(map(resident_mb, processes))
    flooded = flood(running)
    grown = sum(map(resident_mb, processes)) - before
    print(f"\n{flooded}; memory {grown:+.0f} MB")
    assert {outcome.status for outcome in flooded.outcomes} == {200, 503}
    # The limits of the deployments allow this. Most requests wait in Ray's Python proxy, at a few dozen a second.
    assert flooded.within(1) <= 5
    assert grown < 100
    assert running.http.post("/v1/synthesize", content=encode(noise(48, 48, 1), "png")).status_code == 200


def resident_mb(process: psutil.Process) -> float:
    return process.memory_info().rss / 1e6

"""Lost replicas, overload, deadlines and internal errors, and how each is reported."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import torch
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError

from s2s_ray.errors import DescriptorError, ReleaseNotLoadedError
from tests.support.fake_service import Fakes, flat
from tests.support.http_requests import post, request, sentence


def test_unknown_paths_and_methods_get_json(fakes: Fakes) -> None:
    response = request(fakes, "GET", "/v1/nothing")
    assert response.status_code == 404
    sentence(response)
    response = request(fakes, "GET", "/v1/localize")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    sentence(response)


@pytest.mark.parametrize("deployment", ["street", "search"])
@pytest.mark.parametrize(
    "fault",
    [
        BackPressureError(9, 8),
        # as Ray raises the error of a replica in the caller
        RayTaskError("call", "traceback", ReleaseNotLoadedError("release x cannot be loaded")).as_instanceof_cause(),
    ],
)
def test_overload_and_damaged_releases_are_503_with_retry_after(
    fakes: Fakes, deployment: str, fault: Exception
) -> None:
    def fail(*_args: Any) -> None:
        raise fault

    getattr(fakes, deployment).function = fail
    response = post(fakes, "/v1/localize", flat(40, 100))
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")
    assert "try again later" in sentence(response)


def test_a_call_to_a_lost_replica_is_retried(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s2s_ray.service.http.exchange._FIRST_PAUSE_S", 0.001)
    faults = [RayActorError(), ObjectLostError("ab", None, "")]

    def fail_twice(*_args: Any) -> Any:
        if faults:
            raise faults.pop()
        return np.array([1, 0, 0, 0], np.float32)

    fakes.street.function = fail_twice
    assert post(fakes, "/v1/embed/street", flat(40, 100)).json()["descriptor"] == [1, 0, 0, 0]
    assert fakes.recorder.retries == ["street", "street"]

    def lost(*_args: Any) -> Any:
        raise RayActorError()

    fakes.street.function = lost
    response = post(fakes, "/v1/embed/street", flat(40, 100))
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")


def raised_in_a_replica(error: Exception) -> Any:
    """Return a function of a fake that fails as a handle does."""

    def fail(*_args: Any) -> Any:
        raise RayTaskError("call", "traceback", error).as_instanceof_cause()

    return fail


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered", 700),
        RuntimeError("CUDA error: device-side assert triggered"),
    ],
    ids=["AcceleratorError", "RuntimeError"],
)
def test_a_call_to_a_replica_whose_accelerator_failed_is_retried(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("s2s_ray.service.http.exchange._FIRST_PAUSE_S", 0.001)
    fail, works = raised_in_a_replica(error), fakes.street.function
    fakes.street.function = lambda *args: fail() if len(fakes.street.calls) < 3 else works(*args)
    assert post(fakes, "/v1/embed/street", flat(40, 100)).status_code == 200
    assert fakes.recorder.retries == ["street", "street"]
    fakes.street.function = fail
    response = post(fakes, "/v1/embed/street", flat(40, 100))
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")


def test_a_replica_without_memory_is_not_asked_again_at_once(fakes: Fakes) -> None:
    fakes.street.function = raised_in_a_replica(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    response = post(fakes, "/v1/embed/street", flat(40, 100))
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")
    assert "out of memory" in sentence(response)
    assert len(fakes.street.calls) == 1


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_time_out_of_a_library_is_not_the_deadline_of_the_caller(fakes: Fakes, wrapped: bool) -> None:
    async def fail() -> Any:
        raise TimeoutError("the database did not respond")

    fakes.search.function = raised_in_a_replica(TimeoutError("of a library")) if wrapped else lambda *_args: fail()
    response = post(fakes, "/v1/localize", flat(40, 100), headers={"x-request-id": "mine-2"})
    assert (response.status_code, "under mine-2" in sentence(response)) == (500, True)


def test_deadlines(fakes: Fakes) -> None:
    cancelled: list[bool] = []

    async def slow() -> Any:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    fakes.street.function = lambda *_args: slow()
    response = post(fakes, "/v1/embed/street", flat(40, 100), headers={"s2s-timeout": "0.4"})
    assert (response.status_code, "not completed within 0.4 s" in sentence(response)) == (504, True)
    fakes.settings = {"timeout_s": 0.5}
    response = post(fakes, "/v1/embed/street", flat(40, 100), headers={"s2s-timeout": "900"})
    assert (response.status_code, "not completed within 0.5 s" in sentence(response)) == (504, True)
    assert cancelled == [True, True]
    for text in ("0", "-1", "nan", "soon"):
        assert post(fakes, "/v1/embed/street", flat(40, 100), headers={"s2s-timeout": text}).status_code == 400


def test_an_internal_error_is_one_sentence_with_the_request_id(fakes: Fakes) -> None:
    def fail(*_args: Any) -> Any:
        raise KeyError("a defect")

    fakes.street.function = fail
    response = post(fakes, "/v1/embed/street", flat(40, 100), headers={"x-request-id": "mine-1"})
    assert (response.status_code, response.headers["x-request-id"]) == (500, "mine-1")
    assert "under mine-1" in sentence(response)
    response = post(fakes, "/v1/embed/street", flat(40, 100), headers={"x-request-id": "no good\ttext"})
    assert "text" not in response.headers["x-request-id"]


def test_an_error_of_a_replica_is_never_the_mistake_of_the_caller(fakes: Fakes) -> None:
    """Even of a class whose status is 4xx: the ingress has validated the request."""
    error = RayTaskError("call", "traceback", DescriptorError("not finite")).as_instanceof_cause()

    def fail(*_args: Any) -> Any:
        raise error

    fakes.search.function = fail
    response = post(fakes, "/v1/localize", flat(40, 100))
    assert response.status_code == 500
    assert response.headers["x-request-id"] in sentence(response)


def test_requests_before_a_release_is_loaded_get_a_503(fakes: Fakes) -> None:
    fakes.current = None
    assert post(fakes, "/v1/embed/street", flat(40, 100)).status_code == 503
    response = request(fakes, "GET", "/readyz")
    assert (response.status_code, response.json()["status"]) == (503, "not ready")
    assert request(fakes, "GET", "/healthz").status_code == 200

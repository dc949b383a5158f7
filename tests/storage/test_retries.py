"""How long a store that does not respond is waited for."""

from __future__ import annotations

import pytest

from s2s_ray.errors import ConflictError, DamagedError, NotFoundError, RefusedError, StorageError, UnreachableError
from s2s_ray.storage import retries

URI = "s3://bucket/x"


class Flaky:
    """An operation that fails with the given errors before it succeeds."""

    def __init__(self, *faults: Exception) -> None:
        self.faults = list(faults)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.faults:
            raise self.faults.pop(0)
        return "done"


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, which are recorded and take no time."""
    made: list[float] = []
    monkeypatch.setattr("s2s_ray.storage.retries.time.sleep", made.append)
    monkeypatch.setattr(retries, "_responded", set())
    return made


def test_errors_that_pass_are_retried_with_growing_pauses(pauses: list[float]) -> None:
    operation = Flaky(UnreachableError("reset"), DamagedError("changed on its way"), UnreachableError("503"))
    assert retries.patiently(URI, "AWS", operation) == "done"
    assert operation.calls == 4
    assert pauses == sorted(pauses)
    assert len(pauses) == 3


def test_one_that_does_not_pass_is_raised_as_it_is(pauses: list[float]) -> None:
    operation = Flaky(*[UnreachableError(f"{URI}: reset")] * 99)
    with pytest.raises(UnreachableError, match=rf"^{URI}: reset$"):
        retries.patiently(URI, "AWS", operation)
    assert operation.calls == retries.ATTEMPTS
    assert len(pauses) == retries.ATTEMPTS - 1


def test_content_that_is_damaged_each_time_is_given_up_soon(pauses: list[float]) -> None:
    assert retries.patiently(URI, "AWS", Flaky()) == "done"
    operation = Flaky(*[DamagedError(f"{URI} fails its checksum")] * 99)
    with pytest.raises(DamagedError, match="fails its checksum"):
        retries.patiently(URI, "AWS", operation)
    assert operation.calls == retries.ATTEMPTS


def test_a_store_that_has_responded_is_retried_for_minutes(pauses: list[float]) -> None:
    with pytest.raises(NotFoundError):
        retries.patiently(URI, "here", Flaky(NotFoundError("none")))  # a response as well
    patient = Flaky(*[UnreachableError("reset")] * (retries.PATIENT_ATTEMPTS - 1))
    assert retries.patiently(URI, "here", patient) == "done"
    assert sum(pauses) > 120
    assert max(pauses) < 1.25 * retries.LONGEST_PAUSE_S
    with pytest.raises(UnreachableError):
        retries.patiently(URI, "elsewhere", Flaky(*[UnreachableError("reset")] * 99))
    assert len(pauses) == retries.PATIENT_ATTEMPTS - 1 + retries.ATTEMPTS - 1


@pytest.mark.parametrize("kind", [NotFoundError, RefusedError, ConflictError, StorageError])
def test_an_error_that_stays_is_not_retried(pauses: list[float], kind: type[StorageError]) -> None:
    operation = Flaky(kind("no"))
    with pytest.raises(kind):
        retries.patiently(URI, "AWS", operation)
    assert operation.calls == 1
    assert pauses == []

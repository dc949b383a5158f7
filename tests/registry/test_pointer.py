"""Each change of `current.json` is made once, whatever becomes of the responses to its writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from s2s_ray import registry, storage
from s2s_ray.errors import ConflictError, NoIndexError, RegistryError, StorageError, UnreachableError
from s2s_ray.storage import conditional
from tests.support.small_releases import NAME, checkpoint, index

Write: TypeAlias = Callable[[str, bytes, str | None], None]
Fault: TypeAlias = Callable[[Write, str, bytes, str | None], None]


def lost_before(write: Write, uri: str, content: bytes, version: str | None) -> None:
    raise UnreachableError(f"{uri}: timed out")


def lost_after(write: Write, uri: str, content: bytes, version: str | None) -> None:
    write(uri, content, version)
    raise UnreachableError(f"{uri}: connection reset")


def conflict_after(write: Write, uri: str, content: bytes, version: str | None) -> None:
    """As if something between had repeated the request, which then fails because of itself."""
    write(uri, content, version)
    raise ConflictError(f"{uri} was changed by another process since it was read")


FAULTS = [[], [lost_before], [lost_after], [conflict_after], [lost_before, lost_after], [lost_after, lost_after]]


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> list[Fault]:
    """What becomes of the next writes; without pauses between them."""
    planned: list[Fault] = []
    write = conditional.write

    def faulty(uri: str, content: bytes, version: str | None) -> None:
        if planned and uri.endswith(registry.POINTER_FILE):
            planned.pop(0)(write, uri, content, version)
        else:
            write(uri, content, version)

    monkeypatch.setattr(conditional, "write", faulty)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return planned


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A registry with the releases r1 to r4; r3 is current, r2 and r1 were before."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # takes most of the time
    for step in range(1, 5):
        uri = checkpoint(str(tmp_path / f"checkpoint-{step}"), step, recall=step / 10)
        built = index(str(tmp_path / f"index-{step}"), uri, "g")
        registry.publish(str(tmp_path / "registry"), NAME, uri, built, release=f"r{step}")
    for step in range(1, 4):
        registry.promote(str(tmp_path / "registry"), NAME, f"r{step}")
    return str(tmp_path / "registry")


CALLS: dict[str, tuple[Callable[[str], Any], tuple[str, ...]]] = {
    "promote": (lambda root: registry.promote(root, NAME, "r4").id, ("r4", "r3", "r2", "r1")),
    "promote the current one": (lambda root: registry.promote(root, NAME, "r3").id, ("r3", "r2", "r1")),
    "rollback": (lambda root: registry.rollback(root, NAME).id, ("r2", "r1")),
    "promote_best": (lambda root: registry.promote_best(root, NAME, "recall_at_1"), ("r4", "r3", "r2", "r1")),
}


@pytest.mark.parametrize("planned", FAULTS, ids=lambda planned: "-".join(one.__name__ for one in planned) or "none")
@pytest.mark.parametrize("call", CALLS)
def test_one_call_is_one_change(root: str, faults: list[Fault], call: str, planned: list[Fault]) -> None:
    faults += planned
    function, lineage = CALLS[call]
    assert function(root) == lineage[0]
    assert registry.lineage(root, NAME) == lineage


@pytest.mark.parametrize("call", ["promote", "rollback", "promote_best"])
def test_a_change_is_known_when_another_was_made_since(root: str, faults: list[Fault], call: str) -> None:
    def and_another(write: Write, uri: str, content: bytes, version: str | None) -> None:
        write(uri, content, version)
        registry.promote(root, NAME, "r1")
        raise UnreachableError(f"{uri}: connection reset")

    faults.append(and_another)
    function, lineage = CALLS[call]
    assert function(root) == lineage[0], "what this call made current, not what is current now"
    assert registry.lineage(root, NAME) == ("r1", *lineage)


def test_too_many_changes_since_are_reported(root: str, faults: list[Fault]) -> None:
    def and_many(write: Write, uri: str, content: bytes, version: str | None) -> None:
        write(uri, content, version)
        for _ in range(33):
            registry.promote(root, NAME, "r1")
            registry.promote(root, NAME, "r4")
        raise UnreachableError(f"{uri}: connection reset")

    faults.append(and_many)
    with pytest.raises(ConflictError, match="whether this change was made is unknown, because more than 64 others"):
        registry.rollback(root, NAME)


def test_a_change_that_loses_every_race_is_no_missing_release(root: str, faults: list[Fault]) -> None:
    def overtaken(write: Write, uri: str, content: bytes, version: str | None) -> None:
        raise ConflictError(f"{uri} was changed by another process since it was read")

    faults += [overtaken] * 100
    with pytest.raises(ConflictError, match=r"changed by other processes 50 times in a row") as raised:
        registry.promote(root, NAME, "r4")
    assert raised.value.http_status == 503
    assert registry.current(root, NAME) == "r3"


def test_what_cannot_be_found_out_is_said(root: str, faults: list[Fault]) -> None:
    faults += [lost_before] * 100
    with pytest.raises(UnreachableError, match="is unknown: look at it before you try again") as raised:
        registry.rollback(root, NAME)
    assert raised.value.http_status == 503


def test_errors_have_the_status_of_their_kind(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, release in (("other", "r1"), (NAME, "r9")):
        with pytest.raises(RegistryError) as missing:
            registry.promote(root, name, release)
        assert missing.value.http_status == 404
    registry.publish(root, NAME, str(tmp_path / "checkpoint-1"), release="bare")
    with pytest.raises(NoIndexError) as bare:
        registry.promote(root, NAME, "bare")
    assert bare.value.http_status == 409

    def away(uri: str) -> Any:
        raise UnreachableError(f"{uri}: timed out")

    monkeypatch.setattr(conditional, "read", away)
    with pytest.raises(StorageError) as unreachable:
        registry.rollback(root, NAME)
    assert unreachable.value.http_status == 503


def test_the_best_is_chosen_against_what_is_current_when_it_is_written(root: str, faults: list[Fault]) -> None:
    """Somebody promotes a better release between the comparison and the write: it stays."""
    registry.rollback(root, NAME)
    registry.promote(root, NAME, "r1")

    def overtaken(write: Write, uri: str, content: bytes, version: str | None) -> None:
        registry.promote(root, NAME, "r4")
        write(uri, content, version)

    faults.append(overtaken)
    assert registry.promote_best(root, NAME, "recall_at_1") == "r4"
    assert registry.lineage(root, NAME) == ("r4", "r1", "r2", "r1")


def test_few_marks_are_kept(root: str) -> None:
    for turn in range(70):
        registry.promote(root, NAME, f"r{1 + turn % 2}")
    tree = json.loads(storage.read_bytes(storage.join(root, NAME, registry.POINTER_FILE)))
    assert len(tree["writes"]) == len(set(tree["writes"])) == 64

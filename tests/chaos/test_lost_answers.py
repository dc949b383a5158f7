"""Conditional writes whose answers are lost, on the S3 server behind the faulty proxy: each call is one change."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from s2s_ray import registry, storage
from s2s_ray.config import Config
from s2s_ray.data.prepare import prepare
from s2s_ray.data.verify import verify
from s2s_ray.errors import RegistryError, RunError, StorageError
from s2s_ray.storage import lease
from s2s_ray.storage.lease import DRIVER_FILE, Lease
from tests.support.faulty_proxy import FaultyProxy
from tests.support.small_releases import NAME, checkpoint, index, read_release

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

MOST = 12
"""Conditional writes that one call may make."""


@pytest.fixture
def root(s3: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """A registry of four releases, of which the third is current, and a fifth checkpoint."""
    uri = f"{s3}/lost/{request.node.name}"
    for step in (1, 2, 3, 4, 5):
        checkpoint(f"{uri}/checkpoint-{step}", step, recall=step / 10)
        index(f"{uri}/index-{step}", f"{uri}/checkpoint-{step}", "only")
    for step in (1, 2, 3, 4):
        registry.publish(f"{uri}/registry", NAME, f"{uri}/checkpoint-{step}", f"{uri}/index-{step}", release=f"r{step}")
    registry.publish(f"{uri}/registry", NAME, f"{uri}/checkpoint-4", release="bare")
    yield uri
    storage.delete(uri)


def reset(root: str) -> None:
    """Make the third release the current one of three, as it was."""
    storage.delete(f"{root}/registry/{NAME}/current.json")
    for release in ("r1", "r2", "r3"):
        registry.promote(f"{root}/registry", NAME, release)


def lineage(root: str) -> tuple[str, ...]:
    return registry.lineage(f"{root}/registry", NAME)


def publish_new(root: str) -> None:
    storage.delete(f"{root}/registry/{NAME}/releases/new")
    uri = f"{root}/registry"
    release = registry.publish(uri, NAME, f"{root}/checkpoint-5", f"{root}/index-5", release="new")
    assert read_release(release) == (registry.fingerprint(f"{root}/checkpoint-5"), "only")


def attach(root: str) -> None:
    uri = f"{root}/registry"
    storage.delete(f"{uri}/{NAME}/releases/bare")
    registry.publish(uri, NAME, f"{root}/checkpoint-4", release="bare")
    release = registry.attach_index(uri, NAME, "bare", f"{root}/index-4")
    assert read_release(release)[1] == "only"


def promote(root: str) -> None:
    assert registry.promote(f"{root}/registry", NAME, "r4").id == "r4"
    assert lineage(root) == ("r4", "r3", "r2", "r1")


def promote_best(root: str) -> None:
    assert registry.promote_best(f"{root}/registry", NAME, "recall_at_1") == "r4"
    assert lineage(root) == ("r4", "r3", "r2", "r1")


def roll_back(root: str) -> None:
    assert registry.rollback(f"{root}/registry", NAME).id == "r2"
    assert lineage(root) == ("r2", "r1")


def drive(root: str) -> None:
    run = f"{root}/run"
    storage.delete(run)
    for epoch in (1, 2):
        mine = Lease(run, "run 'run'", RunError)
        mine.acquire()
        mine.check()
        mine.renew()
        mine.check()
        with suppress(StorageError):  # `driving` logs it: who waits a while gets the lease in any case
            mine.release()
        content = storage.read_json(f"{run}/{DRIVER_FILE}")
        assert (content["epoch"], content["ended"]) == (epoch, True)


@pytest.mark.parametrize("losses", [1, 3])
@pytest.mark.parametrize(
    ("verb", "writes"),
    [(publish_new, 1), (attach, 1), (promote, 1), (promote_best, 1), (roll_back, 1), (drive, 6)],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_call_whose_answers_are_lost_is_one_change(
    verb: Callable[[str], None],
    writes: int,
    losses: int,
    root: str,
    proxy: FaultyProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of its conditional writes in turn is carried out, and the answer to it lost, once or three times."""
    monkeypatch.setattr(lease, "POLL_S", 0.01)
    for number in range(MOST):
        proxy.faults["CONDITIONAL"] = []
        reset(root)
        proxy.faults["CONDITIONAL"] = [*[""] * number, *["lose"] * losses]
        verb(root)
        if len(proxy.faults["CONDITIONAL"]) >= losses:  # it makes no more conditional writes
            assert number >= writes
            return
    raise AssertionError(f"more than {MOST} conditional writes")


# Real processes


def _together(start: Any, work: Callable[..., Any], arguments: tuple[Any, ...], answers: Any) -> None:
    start.wait(60)
    try:
        answers.put(("ok", work(*arguments)))
    except Exception as error:
        answers.put((type(error).__name__, str(error)))


def at_once(*calls: tuple[Callable[..., Any], tuple[Any, ...]]) -> list[tuple[str, Any]]:
    """Make calls in processes of their own that begin at the same moment; return what each returned or raised."""
    context = multiprocessing.get_context("spawn")
    start, answers = context.Barrier(len(calls)), context.SimpleQueue()
    processes = [context.Process(target=_together, args=(start, *call, answers)) for call in calls]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(180)
            assert process.exitcode == 0
        return [answers.get() for _ in processes]
    finally:
        for process in processes:
            process.kill()


TURNS = 6


def _promote_in_turns(root: str, first: int) -> list[str]:
    uri = f"{root}/registry"
    return [registry.promote(uri, NAME, f"r{1 + (first + turn) % 4}").id for turn in range(TURNS)]


def _publish_in_turns(root: str, step: int) -> list[str]:
    """Publish one checkpoint under an id of its own, and another under an id that both want; return what was won."""
    won = []
    for turn in range(TURNS // 2):
        uri = f"{root}/registry"
        registry.publish(uri, NAME, f"{root}/checkpoint-5", f"{root}/index-5", release=f"same-{turn}")
        try:
            registry.publish(uri, NAME, f"{root}/checkpoint-{step}", f"{root}/index-{step}", release=f"either-{turn}")
        except RegistryError:
            continue
        won.append(f"either-{turn}")
    return won


def test_processes_that_publish_and_promote_at_once_while_answers_are_lost(root: str, proxy: FaultyProxy) -> None:
    reset(root)
    proxy.faults["CONDITIONAL"] = ["", "lose", ""] * 40
    answers = at_once(
        (_promote_in_turns, (root, 0)),
        (_promote_in_turns, (root, 2)),
        (_publish_in_turns, (root, 1)),
        (_publish_in_turns, (root, 2)),
    )
    assert [kind for kind, _ in answers] == ["ok"] * 4, answers
    assert proxy.met["lose"] > TURNS
    proxy.faults["CONDITIONAL"] = []
    history = lineage(root)
    assert len(history) <= 3 + 2 * TURNS
    assert all(one != other for one, other in itertools.pairwise(history))
    won = sorted(release for _, value in answers for release in value if release.startswith("either"))
    assert won == [f"either-{turn}" for turn in range(TURNS // 2)], "exactly one publisher has each"
    for release in registry.list_releases(f"{root}/registry", NAME):
        read_release(release)


def _prepare(tree: dict[str, Any]) -> str:
    return prepare(Config.from_tree(tree)).digest


def test_two_preparations_at_once_make_one_data_set(sharded: Config, tmp_path: Path) -> None:
    equal = sharded.model_dump(mode="json")
    equal["data"]["uri"] = str(tmp_path / "equal")
    answers = at_once((_prepare, (equal,)), (_prepare, (equal,)))
    assert answers == [("ok", answers[0][1])] * 2
    assert verify(equal["data"]["uri"]).ok

    one, other = (sharded.model_dump(mode="json") for _ in range(2))
    one["data"]["uri"] = other["data"]["uri"] = str(tmp_path / "other")
    other["model"]["width"] = 48
    kinds = sorted(kind for kind, _ in at_once((_prepare, (one,)), (_prepare, (other,))))
    assert kinds == ["DatasetError", "ok"], "one has the place, the other is refused"
    assert verify(one["data"]["uri"]).ok

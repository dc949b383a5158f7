"""Several publishers at once, those that were cut short, and releases that are damaged."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from s2s_ray import registry, storage
from s2s_ray.errors import CheckpointError, DamagedError, NotFoundError, RefusedError, RegistryError, S2SError
from s2s_ray.storage import conditional, files
from s2s_ray.storage.store import registered
from tests.support.calibrations import calibration
from tests.support.faulty_store import FaultyStore
from tests.support.memory_store import MemoryStore
from tests.support.small_releases import NAME, checkpoint, index, read_release

ROUNDS = 8


class _KilledError(BaseException):
    """The end of the process."""


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoints 1 and 2, each with two indexes, `old` and `new`."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # takes most of the time
    for step in (1, 2):
        uri = checkpoint(str(tmp_path / f"checkpoint-{step}"), step, recall=step / 10)
        for generation in ("old", "new"):
            index(str(tmp_path / f"index-{step}-{generation}"), uri, generation)
    return tmp_path


def publish(sources: Path, step: int, generation: str | None, release: str = "one") -> registry.Release:
    uri = None if generation is None else str(sources / f"index-{step}-{generation}")
    checkpoint_uri = str(sources / f"checkpoint-{step}")
    made = None if generation is None else calibration(registry.fingerprint(checkpoint_uri))
    return registry.publish(str(sources / "registry"), NAME, checkpoint_uri, uri, release=release, calibration=made)


CHANGING = ((files, "upload", 1), (files, "delete", 0), (conditional, "write", 0))
"""The functions that change a storage, and which of their arguments is the URI."""


def before_operation(monkeypatch: pytest.MonkeyPatch, number: int, action: Callable[[], Any]) -> None:
    """Do something before the operation of this number that changes the registry; operations of its own count not."""
    left = [number]
    for module, name, place in CHANGING:
        real = getattr(module, name)

        def operation(*args: Any, real: Any = real, place: int = place) -> Any:
            if "/registry/" in args[place]:
                left[0] -= 1
                if left[0] == -1:
                    action()
            return real(*args)

        monkeypatch.setattr(module, name, operation)


def killed_before(monkeypatch: pytest.MonkeyPatch, number: int, publication: Callable[[], Any]) -> None:
    """Begin a publication and end before an operation."""

    def kill() -> None:
        raise _KilledError

    with monkeypatch.context() as patch:
        before_operation(patch, number, kill)
        with pytest.raises(_KilledError):
            publication()


OPERATIONS = 12
"""That change the registry when a checkpoint is published with its index and its calibration."""


@pytest.mark.parametrize("number", range(OPERATIONS))
def test_a_publication_cut_short_is_completed_by_the_next(
    sources: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    killed_before(monkeypatch, number, lambda: publish(sources, 1, "old"))
    assert registry.list_releases(str(sources / "registry"), NAME) == []
    if number:
        with pytest.raises(RegistryError, match=r"another checkpoint is being published as release 'one'.*another id"):
            publish(sources, 2, "old")
    release = publish(sources, 1, "old")
    assert read_release(release) == (release.fingerprint, "old")
    assert storage.list_names(release.uri) == ["calibration.json", "checkpoint", "index", "release.json"]
    assert registry.read_calibration(release) == calibration(release.fingerprint)
    for folder in (release.checkpoint_uri, storage.join(release.uri, "index")):
        assert not [name for name in storage.list_names(folder) if "claim" in name or name.startswith("files-")]


@pytest.mark.parametrize("number", range(OPERATIONS))
@pytest.mark.parametrize("other", ["the same", "another checkpoint", "another index"])
def test_a_publisher_that_comes_in_between(
    sources: Path, monkeypatch: pytest.MonkeyPatch, number: int, other: str
) -> None:
    step, generation = {"the same": (1, "old"), "another checkpoint": (2, "old"), "another index": (1, "new")}[other]
    errors: list[S2SError] = []

    def trying(step: int, generation: str) -> None:
        try:
            publish(sources, step, generation)
        except S2SError as error:
            errors.append(error)

    with monkeypatch.context() as patch:
        before_operation(patch, number, partial(trying, step, generation))
        trying(1, "old")
    [release] = registry.list_releases(str(sources / "registry"), NAME)
    digest, found = read_release(release)
    if other == "the same":
        assert not errors
    else:
        assert [type(error) for error in errors] == [RegistryError]
    assert (digest, found) in {
        (registry.fingerprint(str(sources / "checkpoint-1")), "old"),
        (registry.fingerprint(str(sources / f"checkpoint-{step}")), generation),
    }


def test_a_publisher_that_looked_before_the_first_had_finished(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The promoted release stays whole, whatever the second one saw."""
    release = publish(sources, 1, "old")
    registry.promote(str(sources / "registry"), NAME, release.id)
    record, read, stale = storage.join(release.uri, registry.RELEASE_FILE), files.read_bytes, [True]
    changed: list[str] = []

    def before_it_was_there(uri: str) -> bytes:
        if uri == record and stale:
            stale.clear()
            raise NotFoundError(f"{uri} does not exist")
        return read(uri)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "read_bytes", before_it_was_there)
        for module, name, place in CHANGING:
            patch.setattr(module, name, lambda *args, place=place: changed.append(args[place]))
        assert publish(sources, 1, "old") == release
    assert not stale
    assert {storage.name(uri) for uri in changed} <= {"manifest.claim.json"}, (
        "the deletion of claims that are not there"
    )


def test_an_index_is_attached_once(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(sources / "registry")
    for number in range(5):
        release = publish(sources, 1, None, f"r{number}")
        attach = partial(registry.attach_index, root, NAME, release.id)
        killed_before(monkeypatch, number, partial(attach, str(sources / "index-1-old")))
        if number:
            with pytest.raises(RegistryError, match="already has another index, or one is being attached"):
                attach(str(sources / "index-1-new"))
        assert read_release(attach(str(sources / "index-1-old"))) == (release.fingerprint, "old")


def test_publishing_again_repairs_a_damaged_release(sources: Path) -> None:
    release = publish(sources, 1, "old")
    (Path(release.checkpoint_uri) / "model.safetensors").write_bytes(b"damaged")
    (Path(release.uri) / "index" / "index.json").unlink()
    assert read_release(publish(sources, 1, "old")) == (release.fingerprint, "old")


def test_a_release_from_a_replaced_index(sources: Path) -> None:
    """The index was built twice at one place, so its files are in a folder of their own there."""
    storage.publish(Path(storage.fetch(str(sources / "index-1-new"), sources / "copy")), str(sources / "index-1-old"),
                    replace=True)  # fmt: skip
    release = publish(sources, 1, "old")
    assert read_release(release) == (release.fingerprint, "new")
    assert storage.list_names(f"{release.uri}/index") == ["entries.parquet", "index.json", "manifest.json"]


def test_sources_that_are_replaced_in_between(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was looked at is not what is copied: nothing is published under the name of the other."""
    copies = {name: storage.fetch(str(sources / name), sources / f"{name}-copy")
              for name in ("checkpoint-2", "index-2-old")}  # fmt: skip
    fetch = storage.fetch
    for replaced, other in (("checkpoint-1", "checkpoint-2"), ("index-1-old", "index-2-old")):

        def replaced_before(uri: str, into: Path, only: Any = None, pair: tuple[str, str] = (replaced, other)) -> Path:
            if uri.endswith(pair[0]):
                storage.publish(copies[pair[1]], uri, replace=True)
            return fetch(uri, into, only)

        monkeypatch.setattr(storage, "fetch", replaced_before)
        with pytest.raises((CheckpointError, RegistryError), match=r"was replaced while|was built with checkpoint"):
            publish(sources, 1, "old")
        monkeypatch.setattr(storage, "fetch", fetch)
        assert registry.list_releases(str(sources / "registry"), NAME) == []
        storage.delete(str(sources / "checkpoint-1"))
        checkpoint(str(sources / "checkpoint-1"), 1, recall=0.1)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}'])
def test_one_damaged_release_does_not_hide_the_others(
    sources: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = str(sources / "registry")
    for step, id in ((1, "good"), (2, "bad")):
        publish(sources, step, "old", id)
    record = Path(root) / NAME / "releases" / "bad" / "release.json"
    record.write_text(text)
    assert [release.id for release in registry.list_releases(root, NAME)] == ["good"]
    assert f"the release bad of {NAME} is left out: {record}" in caplog.text
    caplog.clear()
    assert registry.promote_best(root, NAME, "recall_at_1") == "good"
    assert not caplog.records, "a service looks again and again"
    assert registry.resolve(root, NAME).id == "good"
    with pytest.raises(RegistryError, match=r"no release 'none'; it has: good$"):
        registry.resolve(root, NAME, "none")
    with pytest.raises((DamagedError, RegistryError), match=re.escape(str(record))):
        registry.resolve(root, NAME, "bad")


def test_one_release_with_damaged_metadata_does_not_stop_the_comparison(
    sources: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = str(sources / "registry")
    publish(sources, 1, "old", "good")
    (Path(publish(sources, 2, "old", "bad").checkpoint_uri) / "meta.json").write_text("{")
    assert registry.promote_best(root, NAME, "recall_at_1") == "good"
    assert "release bad cannot be compared with the others" in caplog.text


@pytest.mark.parametrize("what", ["release", "release and index", "index", "index of a published release"])
def test_what_was_published_is_not_reported_as_a_failure(sources: Path, what: str) -> None:
    """The storage refuses all operations from some moment on: an error means that there is something left to do."""
    source, new = str(sources / "checkpoint-1"), str(sources / "index-1-old")
    store, root = FaultyStore(MemoryStore()), "memory://registry"

    def act(name: str) -> registry.Release:
        if what == "index":
            return registry.attach_index(root, name, "one", new)
        return registry.publish(root, name, source, None if what == "release" else new, release="one")

    with registered("memory", store):
        for number in range(100):
            name = f"{NAME}-{number}"
            if what.startswith("index"):
                registry.publish(root, name, source, release="one")
            done = None
            with store.failing("refuse", number), suppress(RefusedError):
                done = act(name)
            stored = {release.id: release for release in registry.list_releases(root, name)}.get("one")
            complete = stored is not None and (what == "release" or stored.index_uri is not None)
            assert (done is not None) == complete, f"operation {number} was refused"
            if done is not None:
                assert done == stored
            if store.met is None:
                break
        else:
            pytest.fail("the storage is asked too often")


def test_foreign_files_among_the_releases(sources: Path) -> None:
    root = Path(publish(sources, 1, "old").uri).parent
    (root / ".DS_Store").write_bytes(b"x")
    (root / "a folder").mkdir()
    assert [release.id for release in registry.list_releases(str(sources / "registry"), NAME)] == ["one"]


def _publish_all(sources: Path, step: int, barrier: Barrier, results: Any) -> None:
    """Publish in rounds at the same moment as another process: the even ones are the same for both."""
    for turn in range(ROUNDS):
        barrier.wait(60)
        try:
            publish(sources, 1 if turn % 2 == 0 else step, "old", f"r{turn}")
            results.put((turn, step, "published"))
        except S2SError as error:
            results.put((turn, step, type(error).__name__))


@pytest.mark.slow
def test_two_processes_publish_at_once(sources: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_publish_all, args=(sources, step, barrier, results)) for step in (1, 2)]
    for process in processes:
        process.start()
    outcomes = [results.get(timeout=120) for _ in range(2 * ROUNDS)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for turn in range(ROUNDS):
        ended = {step: outcome for number, step, outcome in outcomes if number == turn}
        release = registry.resolve(str(sources / "registry"), NAME, f"r{turn}")
        if turn % 2 == 0:
            assert ended == {1: "published", 2: "published"}
            winner = 1
        else:
            assert sorted(ended.values()) == ["RegistryError", "published"], ended
            [winner] = [step for step, outcome in ended.items() if outcome == "published"]
        assert read_release(release) == (registry.fingerprint(str(sources / f"checkpoint-{winner}")), "old")

"""The checkpoints of a run: what is kept, what counts as damaged, and when a checkpoint is committed."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from s2s_ray import S2S, storage
from s2s_ray.errors import CheckpointError, DamagedError, RunError, StorageError
from s2s_ray.training.checkpoint_store import CheckpointStore
from s2s_ray.training.run import find_checkpoint
from tests.support.memory_store import memory_store
from tests.support.models import tiny_model

SMALL = tiny_model(residual_blocks=6)


@pytest.fixture
def model() -> S2S:
    torch.manual_seed(0)
    return S2S(SMALL)


def save(store: CheckpointStore, model: S2S, step: int, recall: float | None) -> None:
    metrics = {} if recall is None else {"recall_at_1": recall}
    meta = {"run": "r", "step": step, "metrics": metrics, "model": SMALL.model_dump(mode="json")}
    store.save(step, model.state_dict(), {"step": torch.tensor(step)}, meta)


def test_store_keeps_the_newest_and_the_best(model: S2S, tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path / "checkpoints"), keep=2)
    for step, recall in ((1, 0.1), (2, 0.5), (3, 0.2), (4, None), (5, 0.3)):
        save(store, model, step, recall)
    store.flush()
    assert store.steps() == [2, 4, 5]
    assert store.best() == 2


def test_the_later_of_equal_recalls_is_best(model: S2S, tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path / "checkpoints"))
    for step in (1, 2):
        save(store, model, step, 0.5)
    store.flush()
    assert store.best() == 2


@pytest.mark.parametrize(("metric", "best"), [("heading.recall_at_1", 3), ("heading.metres_median", 1), ("median", 0)])
def test_another_metric_may_choose_the_best(
    model: S2S, tmp_path: Path, metric: str, best: int, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(str(tmp_path / "checkpoints"), keep=2)
    for step, value in ((1, 0.1), (2, 0.5), (3, 0.7), (4, None), (5, 0.3)):
        metrics = {"recall_at_1": 0.9 if step == 2 else 0.1, **({} if value is None else {metric: value})}
        config = {"train": {"best_metric": metric}}
        meta = {"run": "r", "step": step, "metrics": metrics, "config": config, "model": SMALL.model_dump(mode="json")}
        store.save(step, model.state_dict(), {}, meta)
    store.flush()
    assert store.best() == (best or None)
    if best:
        assert store.steps() == sorted({best, 4, 5})
    else:  # a metric of a newer version: nothing is chosen, and nothing deleted that was validated by it
        assert "is kept, but not used: metric 'median'" in caplog.text
        assert store.steps() == [1, 2, 3, 4, 5]


def test_saving_copies_the_state_before_it_changes(model: S2S, tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path / "checkpoints"))
    before = model.generator.decoder.head.weight.detach().clone()
    save(store, model, 1, None)
    with torch.no_grad():
        model.generator.decoder.head.weight.zero_()
    store.flush()
    torch.testing.assert_close(store.load(1).model["generator.decoder.head.weight"], before, rtol=0, atol=0)


def test_a_damaged_newest_checkpoint_is_logged_and_the_previous_one_is_used(
    model: S2S, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(str(tmp_path / "checkpoints"))
    for step in (1, 2):
        save(store, model, step, None)
    store.flush()
    (tmp_path / "checkpoints" / "00000002" / "trainer.pt").write_bytes(b"torn")
    with caplog.at_level(logging.WARNING):
        found = store.newest()
    assert found is not None
    assert found.meta["step"] == 1
    assert "00000002" in caplog.text


def test_a_run_whose_checkpoints_are_all_damaged_is_not_started_anew(model: S2S, tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path / "checkpoints"))
    save(store, model, 3, None)
    store.flush()
    (tmp_path / "checkpoints" / "00000003" / "trainer.pt").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"all checkpoints below .* are damaged \(00000003\)"):
        CheckpointStore(store.root).newest()


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_run_that_goes_on_while_its_newest_checkpoint_is_looked_for(
    model: S2S, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    """Whatever was listed has been pruned by the time that it is read; what has taken its place is found."""
    run = CheckpointStore(str(tmp_path / "checkpoints"), keep=1)
    save(run, model, 1, None)
    run.flush()
    fetch, left = storage.fetch, [rounds]

    def overtaken(uri: str, *args: Any, **kwargs: Any) -> Path:
        if left[0]:
            left[0] -= 1
            save(run, model, int(uri[-8:]) + 1, None)
            run.flush()
        return fetch(uri, *args, **kwargs)

    monkeypatch.setattr(storage, "fetch", overtaken)
    found = CheckpointStore(run.root).newest()
    assert found is not None
    assert found.meta["step"] == rounds + 1


def test_an_unreachable_store_does_not_count_as_damage(
    model: S2S, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(str(tmp_path / "checkpoints"))
    for step in (1, 2):
        save(store, model, step, None)
    store.flush()

    def unreachable(*_: Any, **__: Any) -> None:
        raise StorageError("somewhere cannot be reached")

    monkeypatch.setattr(storage, "fetch", unreachable)
    with pytest.raises(StorageError, match="cannot be reached"):
        store.newest()


def test_a_damaged_checkpoint_does_not_displace_a_usable_one(
    model: S2S, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(str(tmp_path / "checkpoints"), keep=2)
    for step in (1, 2, 3):
        save(store, model, step, None)
    store.flush()
    assert store.steps() == [2, 3]
    (tmp_path / "checkpoints" / "00000003" / "model.safetensors").write_bytes(b"torn")
    again = CheckpointStore(store.root, keep=2)
    save(again, model, 4, None)
    again.flush()
    assert again.steps() == [2, 4]
    assert "00000003 is damaged and not used" in caplog.text


def test_a_damaged_best_checkpoint_is_not_the_best(
    model: S2S, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(str(tmp_path / "checkpoints"), keep=3)
    for step, recall in ((1, 0.5), (2, 0.9), (3, 0.7)):
        save(store, model, step, recall)
    store.flush()
    (tmp_path / "checkpoints" / "00000002" / "model.safetensors").write_bytes(b"torn")
    (tmp_path / "checkpoints" / "00000003" / "meta.json").write_bytes(b"{")
    assert CheckpointStore(store.root).best() == 1
    assert "00000002 is damaged" in caplog.text
    assert "00000003 is damaged" in caplog.text


def test_the_rest_of_a_killed_upload_is_deleted(model: S2S, tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path / "checkpoints"))
    for step in (2, 9):
        (tmp_path / "checkpoints" / f"{step:08d}").mkdir(parents=True)
        (tmp_path / "checkpoints" / f"{step:08d}" / "model.safetensors").write_bytes(b"cut sh")
    save(store, model, 3, None)
    store.flush()
    assert store.steps() == [3]
    # another worker, which was given up, may still be writing a later one
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000003", "00000009"]


def test_a_written_checkpoint_is_committed(model: S2S, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish, may_write, steps = storage.publish, threading.Event(), []

    def slow(directory: Path, uri: str, **options: Any) -> None:
        assert may_write.wait(60)
        publish(directory, uri, **options)
        steps.append(uri)

    monkeypatch.setattr(storage, "publish", slow)
    store = CheckpointStore(str(tmp_path / "checkpoints"))
    save(store, model, 1, None)
    assert store.committed is None
    assert store.steps() == []
    may_write.set()
    save(store, model, 2, None)  # waits until the first is stored
    assert steps[:1] == [store.uri(1)]
    store.flush()
    assert store.committed == store.uri(2)


def test_directory_without_manifest_does_not_exist(model: S2S, tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path / "checkpoints"))
    save(store, model, 1, None)
    store.flush()
    (tmp_path / "checkpoints" / "00000001" / "manifest.json").unlink()
    assert store.steps() == []
    assert store.newest() is None


def test_a_step_that_is_there_already(model: S2S, tmp_path: Path) -> None:
    """A run that resumed before it comes to the step again: the rest of an upload, an equal one, a damaged one."""
    other = S2S(SMALL)
    for rest in ("partial", "equal", "damaged", "damaged manifest"):
        store = CheckpointStore(str(tmp_path / rest))
        first = model if rest in ("equal", "partial") else other
        save(store, first, 1, 0.5)
        store.flush()
        folder = tmp_path / rest / "00000001"
        if rest == "partial":
            (folder / "manifest.json").unlink()
            (folder / "trainer.pt").write_bytes(b"cut sh")
        elif rest == "damaged":
            (folder / "trainer.pt").write_bytes(b"torn")
        elif rest == "damaged manifest":
            (folder / "manifest.json").write_text("{")
        resumed = CheckpointStore(store.root)
        save(resumed, model, 1, 0.5)
        resumed.flush()
        storage.check(store.uri(1))
        saved = CheckpointStore(store.root).newest()
        assert saved is not None
        assert all(torch.equal(saved.model[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("lost_after", [0, 1])
def test_a_driver_that_lost_the_run_neither_stores_nor_deletes(model: S2S, tmp_path: Path, lost_after: int) -> None:
    """It is replaced while it writes the files, or between storing a checkpoint and deleting an older one."""
    store, left = CheckpointStore(str(tmp_path / "checkpoints"), keep=1), [lost_after]
    save(store, model, 1, None)
    store.flush()

    def require_lease() -> None:
        if not left[0]:
            raise RunError("another process took the run over")
        left[0] -= 1

    store.require_lease = require_lease
    save(store, model, 2, None)
    with pytest.raises(RunError, match="took the run over"):
        store.flush()
    assert store.steps() == [1, 2][: 1 + lost_after]


def test_a_step_that_is_written_again_has_the_recall_that_it_was_written_with(model: S2S, tmp_path: Path) -> None:
    """A run resumed before a damaged checkpoint with a high recall, and comes to its step again."""
    store = CheckpointStore(str(tmp_path / "checkpoints"), keep=2)
    for step, recall in ((50, None), (100, 0.9)):
        save(store, model, step, recall)
    store.flush()
    (tmp_path / "checkpoints" / "00000100" / "trainer.pt").write_bytes(b"torn")
    resumed = CheckpointStore(store.root, keep=1)
    saved = resumed.newest()
    assert saved is not None
    assert saved.meta["step"] == 50
    for step, recall in ((75, None), (100, 0.35), (150, 0.8), (200, None)):
        save(resumed, model, step, recall)
    resumed.flush()
    assert resumed.best() == 150
    assert resumed.steps() == [150, 200]


@pytest.mark.parametrize("recall", [0.1, 0.9])
def test_the_recall_of_a_replaced_checkpoint_is_read_again(model: S2S, tmp_path: Path, recall: float) -> None:
    store = CheckpointStore(str(tmp_path / "checkpoints"), keep=3)
    for step, first in ((1, 0.5), (2, 0.4)):
        save(store, model, step, first)
    store.flush()
    assert store.best() == 1
    save(store, model, 2, recall)
    store.flush()
    assert store.best() == (2 if recall > 0.5 else 1)


def test_checkpoints_are_listed_once_to_prune_them(model: S2S) -> None:
    used: list[str] = []
    with memory_store() as memory:
        store = CheckpointStore("memory://runs/r/checkpoints", keep=2)
        for step, recall in ((1, 0.9), (2, 0.1), (3, 0.2)):
            save(store, model, step, recall)
        store.flush()
        memory.shared = lambda uri: not used.append(uri)  # type: ignore[func-returns-value]
        save(store, model, 4, 0.3)
        store.flush()
        assert used.count(store.root) == 1
        assert [uri for uri in used if uri.startswith((store.uri(1), store.uri(3)))] == [
            f"{store.uri(1)}/manifest.json",
            f"{store.uri(3)}/manifest.json",
        ]
        assert store.steps() == [1, 3, 4]


def test_a_failed_write_is_raised(model: S2S, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file is in the way")
    store = CheckpointStore(str(tmp_path / "checkpoints"))
    save(store, model, 1, None)
    with pytest.raises(StorageError, match="checkpoints"):
        store.flush()


def test_find_checkpoint_takes_a_checkpoint_or_the_best_of_a_run(model: S2S, tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path / "run" / "checkpoints"))
    save(store, model, 1, 0.9)
    save(store, model, 2, 0.4)
    store.flush()
    assert find_checkpoint(str(tmp_path / "run")) == store.uri(1)
    assert find_checkpoint(store.uri(2)) == store.uri(2)
    with pytest.raises(RunError, match="elsewhere"):
        find_checkpoint(str(tmp_path / "elsewhere"))


def test_the_newest_sound_checkpoint_survives_where_none_was_validated(model: S2S, tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path / "checkpoints"), keep=3)
    for step in (1, 2, 3):
        save(store, model, step, None)
    store.flush()
    (tmp_path / "checkpoints" / "00000003" / "model.safetensors").write_bytes(b"torn")
    again = CheckpointStore(store.root)
    again.keep_best()
    assert again.steps() == [2]


def test_nothing_is_deleted_while_no_checkpoint_is_sound(model: S2S, tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path / "checkpoints"), keep=3)
    for step in (1, 2):
        save(store, model, step, 0.5)
        store.flush()
        (tmp_path / "checkpoints" / f"{step:08d}" / "model.safetensors").write_bytes(b"torn")
    again = CheckpointStore(store.root)
    again.keep_best()
    assert again.steps() == [1, 2]  # somebody may have a copy of the damaged file


class BadReads:
    """Replacement of a function of `storage` that fails for the next `count` reads of a checkpoint."""

    def __init__(self, patch: pytest.MonkeyPatch, name: str, part: str, error: type[StorageError]) -> None:
        self.count, self._part, self._error = 0, part, error
        self._original = getattr(storage, name)
        patch.setattr(storage, name, self)

    def __call__(self, uri: str, *args: Any, **kwargs: Any) -> Any:
        if self._part in uri and self.count:
            self.count -= 1
            raise self._error(f"{uri} fails its checksum")
        return self._original(uri, *args, **kwargs)


@pytest.mark.parametrize("reading", ["check", "read_published"])
@pytest.mark.parametrize("bad_reads", [1, 2])
def test_bad_reads_do_not_cost_the_best_checkpoint(
    model: S2S, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reading: str, bad_reads: int
) -> None:
    """One process judges the best checkpoint by bad reads, and finishes the run when reads are good again."""
    store = CheckpointStore(str(tmp_path / "checkpoints"), keep=3)
    for step, recall in ((1, 0.9), (2, 0.4), (3, 0.5)):
        save(store, model, step, recall)
    store.flush()
    again = CheckpointStore(store.root)
    bad = BadReads(monkeypatch, reading, "00000001", DamagedError)
    bad.count = bad_reads
    again.best()
    bad.count = 0
    again.keep_best()
    assert again.steps() == [1]


@pytest.mark.parametrize("reading", ["check", "read_published", "list_names", "is_complete"])
def test_an_unreachable_store_deletes_nothing(
    model: S2S, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reading: str
) -> None:
    store = CheckpointStore(str(tmp_path / "checkpoints"), keep=3)
    for step, recall in ((1, 0.9), (2, 0.4), (3, 0.5)):
        save(store, model, step, recall)
    store.flush()
    again = CheckpointStore(store.root)
    BadReads(monkeypatch, reading, "checkpoints", StorageError).count = 1
    with pytest.raises(StorageError):
        again.keep_best()
    assert store.steps() == [1, 2, 3]


@pytest.mark.parametrize("name", ["meta.json", "manifest.json"])
def test_a_checkpoint_of_a_newer_version_is_never_deleted(
    model: S2S, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An older program goes on beside a checkpoint whose metadata or manifest it cannot read."""
    store = CheckpointStore(str(tmp_path / "checkpoints"), keep=2)
    save(store, model, 1, 0.9)
    store.flush()
    newer = tmp_path / "checkpoints" / "00000001"
    write_newer(newer, name)
    again = CheckpointStore(store.root, keep=2)
    for step in (2, 3, 4):
        save(again, model, step, 0.1)
    again.flush()
    assert again.steps() == [1, 3, 4]
    assert "00000001 is kept, but not used" in caplog.text
    again.keep_best()
    assert again.steps() == [1, 4]


def write_newer(checkpoint: Path, name: str) -> None:
    """Make a checkpoint look as a newer version would write it, with checksums that fit."""
    path = checkpoint / name
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    if name != "manifest.json":
        manifest = checkpoint / "manifest.json"
        tree = json.loads(manifest.read_text())
        tree["files"][name] = {"bytes": path.stat().st_size, "sha256": storage.sha256(path)}
        manifest.write_text(json.dumps(tree))


def test_a_run_of_a_newer_version_says_so(model: S2S, tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path / "run" / "checkpoints"))
    save(store, model, 1, 0.9)
    store.flush()
    write_newer(tmp_path / "run" / "checkpoints" / "00000001", "meta.json")
    with pytest.raises(CheckpointError, match="upgrade s2s-ray"):
        find_checkpoint(str(tmp_path / "run"))

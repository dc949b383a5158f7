"""A run whose processes are killed at any step, during an upload, and right after a report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from s2s_ray import storage
from s2s_ray.storage import files
from s2s_ray.training.loop import Trainer
from s2s_ray.training.run import checkpoint_store
from tests.support.killed_runs import KILLED, STEPS, Ending, configured, die, killed_at, launch, logged_history

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

Undisturbed = Callable[[int], Ending]


@pytest.mark.parametrize(("workers", "loaders"), [(1, 2), (2, 0)])
def test_a_run_killed_at_every_step_ends_like_an_undisturbed_one(
    settings: list[str], undisturbed: Undisturbed, tmp_path: Path, workers: int, loaders: int
) -> None:
    config = configured(settings, tmp_path, workers=workers, loader_workers=loaders)
    total = config.train.epochs * STEPS
    for step in range(1, total):
        outcome = launch(config, killed_at(step))
        assert KILLED in outcome.codes, outcome.log
        steps = checkpoint_store(config).steps()
        assert step - 1 <= max(steps, default=0) <= step  # at most one step is repeated
    outcome = launch(config)
    assert outcome.done, outcome.log
    Ending.of(config).assert_same(undisturbed(workers))
    assert logged_history(config) == undisturbed(workers).history


def _cut(trainer: Trainer, rank: int, step: int, uploads: int) -> None:
    """Kill the process after `uploads` uploads of a checkpoint's files."""
    upload, sent = files.upload, []

    def cut(path: Path, uri: str) -> None:
        if f"{step:08d}" in uri:
            if len(sent) == uploads:
                die()
            sent.append(uri)
        upload(path, uri)

    files.upload = cut


@pytest.mark.parametrize("uploads", [0, 2])
def test_a_checkpoint_whose_upload_was_interrupted_does_not_count(
    settings: list[str], undisturbed: Undisturbed, tmp_path: Path, uploads: int
) -> None:
    config = configured(settings, tmp_path)
    outcome = launch(config, partial(_cut, step=5, uploads=uploads))
    assert outcome.codes == [KILLED]
    store = checkpoint_store(config)
    assert store.steps()[-2:] == [3, 4]
    begun = tmp_path / "run/checkpoints/00000005"
    assert sum((begun / name).exists() for name in ("meta.json", "model.safetensors", "trainer.pt")) == uploads
    outcome = launch(config)
    assert outcome.done, outcome.log
    Ending.of(config).assert_same(undisturbed(1))


@pytest.fixture(scope="module")
def killed(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage of a run that was killed in its second epoch."""
    folder = tmp_path_factory.mktemp("killed")
    assert launch(configured(settings, folder), killed_at(5)).codes == [KILLED]
    return folder


@pytest.mark.parametrize("file", ["model.safetensors", "trainer.pt", "meta.json", "manifest.json"])
def test_a_damaged_checkpoint_is_logged_and_the_previous_one_is_used(
    settings: list[str], undisturbed: Undisturbed, killed: Path, tmp_path: Path, file: str
) -> None:
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    config = configured(settings, tmp_path)
    newest = Path(checkpoint_store(config).uri(checkpoint_store(config).steps()[-1]))
    content = (newest / file).read_bytes()
    (newest / file).write_bytes(content[: len(content) // 2])
    outcome = launch(config)
    assert outcome.done, outcome.log
    assert f"checkpoint {newest} is damaged and not used" in outcome.log
    before = newest.with_name(f"{int(newest.name) - 1:08d}")
    assert f"resumed {before}: " in outcome.log
    Ending.of(config).assert_same(undisturbed(1))


def _killed_after_report(trainer: Trainer, rank: int, promised: Path) -> None:
    fit = trainer.fit

    def report(reported: dict[str, Any]) -> None:
        if reported["epoch"] == 1:
            promised.write_text(reported["checkpoint"])
            die()

    trainer.fit = partial(fit, report)  # type: ignore[method-assign]


def test_a_reported_checkpoint_outlives_the_process(
    settings: list[str], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    config = configured(settings, tmp_path)
    file = tmp_path / "promised"
    assert launch(config, partial(_killed_after_report, promised=file)).codes == [KILLED]
    promised = file.read_text()
    storage.check(promised)
    assert int(storage.name(promised)) >= 2 * STEPS - 1  # the last of the epoch, or the one before
    outcome = launch(config)
    assert outcome.done, outcome.log
    Ending.of(config).assert_same(undisturbed(1))


def _watch_first_upload(trainer: Trainer, rank: int, seen: Path) -> None:
    """Make the upload of step 2 slow: it lasts until one second after step 3 is finished."""
    publish = storage.publish

    def slow(directory: Path, uri: str, **options: Any) -> None:
        if storage.name(uri) == "00000002":
            deadline = time.monotonic() + 60
            while trainer.global_step < STEPS:
                assert time.monotonic() < deadline, "training stopped during an upload"
                time.sleep(0.01)
            time.sleep(1)
            assert trainer.global_step == STEPS, "the next checkpoint did not wait for the previous one"
            seen.touch()
        publish(directory, uri, **options)

    storage.publish = slow


def test_training_continues_during_an_upload_and_the_next_checkpoint_waits_for_it(
    settings: list[str], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    config = configured(settings, tmp_path, checkpoint_every=2)
    outcome = launch(config, partial(_watch_first_upload, seen=tmp_path / "seen"))
    assert outcome.done, outcome.log
    assert (tmp_path / "seen").exists()
    Ending.of(config).assert_same(undisturbed(1))

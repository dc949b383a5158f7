"""A store that fails temporarily, and one that fails permanently: an S3 server behind a faulty proxy."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from s2s_ray import load_checkpoint, registry, storage
from s2s_ray.config import Config
from s2s_ray.data.prepare import prepare
from s2s_ray.data.verify import verify
from s2s_ray.errors import StorageError
from s2s_ray.storage import retries
from s2s_ray.training.loop import Trainer
from s2s_ray.training.run import checkpoint_store
from tests.conftest import SHARED
from tests.support.commands import train
from tests.support.killed_runs import Ending, assert_equal, before_step, configured, on_s3
from tests.support.s3_server import ceph_script

if TYPE_CHECKING:
    from tests.support.faulty_proxy import FaultyProxy

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

FAULTS = ("refuse", "reset", "drop", "lose", "stall", "spoil")
if ceph_script(SHARED) is None:
    FAULTS = FAULTS[:-1]  # moto's server does not compare an upload with its digest


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use short pauses and time-outs, and one thread as the undisturbed runs do."""
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(retries, "STALL_TIMEOUT_S", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def faults_every(requests: int, kinds: Sequence[str] = FAULTS) -> Callable[[str, str], str]:
    """Spoil one in `requests` requests, in these ways in turn; `spoil` waits for the next upload."""
    counts, faults, owed = cycle(range(requests)), cycle(kinds), [0]

    def choose(method: str, path: str) -> str:
        fault = next(faults) if next(counts) == requests - 1 else ""
        owed[0] += fault == "spoil"
        if owed[0] and method == "PUT":
            owed[0] -= 1
            return "spoil"
        return "" if fault == "spoil" else fault

    return choose


def test_nothing_is_lost_on_a_store_that_fails_repeatedly(
    settings: list[str],
    sharded: Config,
    undisturbed: Callable[[int], Ending],
    s3: str,
    proxy: FaultyProxy,
    tmp_path: Path,
) -> None:
    """Send the data set, cache, checkpoints and registry through a store that spoils every fifth request."""
    proxy.choose = faults_every(5)
    config = on_s3(configured(settings, tmp_path), storage.join(s3, "again-and-again"), tmp_path / "cache")
    prepare(sharded.model_copy(update={"data": config.data}))
    Trainer(config).fit()
    ending = Ending.of(config)
    ending.assert_same(undisturbed(1))
    best = checkpoint_store(config).best()
    assert best is not None
    release = registry.publish(storage.join(s3, "registry"), "model", checkpoint_store(config).uri(best))
    assert registry.resolve(storage.join(s3, "registry"), "model", release.id) == release
    released, saved = load_checkpoint(release.checkpoint_uri), checkpoint_store(config).load(best)
    assert_equal(released.state_dict(), saved.model)
    assert set(proxy.met) >= set(FAULTS), proxy.met
    proxy.choose = lambda method, path: ""
    assert verify(config.data.uri).ok


def test_a_store_that_fails_permanently_is_named_and_the_run_resumes_when_it_is_available_again(
    settings: list[str],
    sharded: Config,
    undisturbed: Callable[[int], Ending],
    s3: str,
    proxy: FaultyProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retries, "PATIENT_ATTEMPTS", 4)
    config = on_s3(configured(settings, tmp_path), storage.join(s3, "for-good"), tmp_path / "cache")
    prepare(sharded.model_copy(update={"data": config.data}))
    trainer = Trainer(config)
    before_step(trainer, 4, lambda: setattr(proxy, "choose", lambda method, path: "refuse"))
    with pytest.raises(StorageError, match=rf"^{config.train.storage}/run/checkpoints\S*: .*(503|SLOW_DOWN)"):
        trainer.fit()
    proxy.choose = lambda method, path: ""
    Trainer(config).fit()
    Ending.of(config).assert_same(undisturbed(1))


def test_a_submitted_run_survives_a_store_that_fails_repeatedly(
    settings: list[str],
    sharded: Config,
    undisturbed: Callable[[int], Ending],
    s3: str,
    proxy: FaultyProxy,
    tmp_path: Path,
) -> None:
    """Use the entry script, so that the files that Ray Train stores itself meet the faults too."""
    config = on_s3(configured(settings, tmp_path), storage.join(s3, "submitted"), tmp_path / "cache")
    prepare(sharded.model_copy(update={"data": config.data}))
    proxy.choose = faults_every(7, ("refuse", "reset", "drop", "lose"))
    own = [f"data.uri={config.data.uri}", f"data.cache_dir={config.data.cache_dir}", "train.workers=1"]
    command = train([*settings, *own], config.train.storage, config.train.name, config.train.epochs)
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert f"best checkpoint {config.train.storage}/run/checkpoints/" in ended.stdout
    assert sum(proxy.met.values()) > 10
    proxy.choose = lambda method, path: ""
    Ending.of(config).assert_same(undisturbed(1))

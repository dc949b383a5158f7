"""Preparation in Ray Data tasks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from s2s_ray import storage
from s2s_ray.config import Config
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.prepare import prepare
from s2s_ray.errors import DamagedError, StorageError
from s2s_ray.index.parts import Build, PartWriter, Plan, build_in_parts
from s2s_ray.index.tiles import DatasetTiles
from s2s_ray.model.checkpoint import save_model
from s2s_ray.model.s2s import S2S
from tests.support.models import tiny_model
from tests.support.processes import kill, processes_of, wait_for_the_end_of

if TYPE_CHECKING:
    from tests.support.pair_folder import PairFolder

WORKER_BYTES = 2_000_000_000

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),  # Ray Data sets its own old options
]


@pytest.fixture
def filled(pairs: PairFolder) -> PairFolder:
    """Twenty pairs, two of them unusable."""
    for k in range(16):
        pairs.add(f"train{k}", latitude=47 + k / 100, longitude=11)
    for k in range(4):
        pairs.add(f"test{k}", "test")
    (pairs.path / "train5-street.png").unlink()
    os.truncate(pairs.path / "test2-satellite.png", 200)
    return pairs


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.usefixtures("ray_cluster")
def test_ray_and_a_plain_loop_write_the_same_bytes(
    filled: PairFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with_ray = prepare(filled.config("with-ray", shard_mb=0.02, parallel=True))  # relative: the tasks run elsewhere
    plain = prepare(filled.config("plain", shard_mb=0.02, parallel=False))
    assert with_ray == plain
    assert len(plain.split("train").shards) > 2
    assert [entry.id for entry in plain.quarantine] == ["train5", "test2"]
    assert content(tmp_path / "with-ray") == content(tmp_path / "plain")


@pytest.mark.usefixtures("ray_cluster")
def test_ray_resumes_a_stopped_run(filled: PairFolder, tmp_path: Path) -> None:
    config = filled.config(tmp_path / "set", shard_mb=0.02, parallel=True)
    prepare(config)
    whole = content(tmp_path / "set")
    (tmp_path / "set" / "dataset.json").unlink()
    (tmp_path / "set" / "train-00001.json").unlink()
    kept = (tmp_path / "set" / "train-00000.arrow").stat().st_ino
    replaced = (tmp_path / "set" / "train-00001.arrow").stat().st_ino
    prepare(config)
    assert content(tmp_path / "set") == whole
    assert (tmp_path / "set" / "train-00000.arrow").stat().st_ino == kept
    assert (tmp_path / "set" / "train-00001.arrow").stat().st_ino != replaced


@pytest.mark.usefixtures("ray_cluster")
def test_an_error_in_a_task_keeps_its_class_and_message(filled: PairFolder, tmp_path: Path) -> None:
    """The target fails while shards are being written: a directory has the name of one."""
    (tmp_path / "set" / "train-00001.arrow").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"^.*train-00001.arrow: Is a directory; expected a file$") as caught:
        prepare(filled.config(tmp_path / "set", shard_mb=0.02, parallel=True))
    assert type(caught.value) is StorageError
    assert not (tmp_path / "set" / "dataset.json").exists()


def test_a_killed_job_is_resumed_with_the_missing_shards(pairs: PairFolder, tmp_path: Path) -> None:
    """First a worker is killed, which Ray replaces, then the whole job; every shard is written exactly once."""
    for k in range(36):
        pairs.add(f"train{k}", tile=700)
    for k in range(8):
        pairs.add(f"test{k}", "test", tile=700)
    config = pairs.config(tmp_path / "set", parallel=True, shard_mb=0.6).model_dump(mode="json")
    config["model"] |= {"height": 112, "width": 616}
    settings = Config.from_tree(config)
    (tmp_path / "config.yaml").write_text(settings.to_yaml())
    command = [
        sys.executable,
        str(Path(__file__).parents[2] / "jobs" / "prepare.py"),
        "-c",
        str(tmp_path / "config.yaml"),
    ]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    log = (tmp_path / "log").open("w")
    job = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    killed_worker, most = None, 0
    try:
        deadline = time.monotonic() + 120
        while len(done := shards(tmp_path / "set")) < 6:
            assert job.poll() is None, (tmp_path / "log").read_text()[-3000:]
            assert time.monotonic() < deadline, "fewer than half of the shards after two minutes"
            workers = processes_of(job.pid, "ray::Map")
            for worker in workers:
                with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                    most = max(most, peak_memory(worker))
            if len(done) >= 2 and killed_worker is None and workers:
                killed_worker = workers[0]
                kill([killed_worker])
            time.sleep(0.02)
    finally:
        job.kill()
        job.wait()
        log.close()
    assert killed_worker is not None
    assert 0 < most < WORKER_BYTES
    wait_for_the_end_of(job.pid)
    finished = shards(tmp_path / "set")
    assert 6 <= len(finished) < 16, "killed too late to matter"
    assert not (tmp_path / "set" / "dataset.json").exists()
    stamps = {name: (tmp_path / "set" / f"{name}.arrow").stat().st_mtime_ns for name in finished}

    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0, again.stderr[-3000:]
    assert f"{len(finished)} of " in again.stderr
    assert {name: (tmp_path / "set" / f"{name}.arrow").stat().st_mtime_ns for name in finished} == stamps
    plain = settings.model_copy(
        update={
            "data": settings.data.model_copy(update={"uri": str(tmp_path / "plain")}),
            "prepare": settings.prepare.model_copy(update={"parallel": False}),
        }
    )
    prepare(plain)
    assert content(tmp_path / "set") == content(tmp_path / "plain")
    print(f"\nlargest worker: {most / 1e6:.0f} MB")


def shards(folder: Path) -> list[str]:
    """Return the names of the finished shards, which have a side-car."""
    if not folder.is_dir():
        return []
    return sorted(
        path.stem for path in folder.iterdir() if path.suffix == ".json" and path.stem.partition("-")[2].isdigit()
    )


def peak_memory(process: psutil.Process) -> int:
    """Return the largest resident size of a process so far, in bytes; 0 when it is about to end."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


@pytest.mark.usefixtures("ray_cluster")
def test_an_index_is_built_in_parts_by_ray_and_goes_on(filled: PairFolder, tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    prepare(filled.config(data, parallel=False))
    tiny = tiny_model()
    save_model(S2S(tiny).eval(), {"run": "r", "step": 1, "metrics": {}}, tmp_path / "local")
    storage.publish(tmp_path / "local", str(tmp_path / "checkpoint"))
    source = DatasetTiles(PairDataset(data, "train"), "train")
    with_ray = Build(str(tmp_path / "checkpoint"), source, str(tmp_path / "with-ray"), batch=2, part=4)
    plan = Plan.of(with_ray, range(13))
    kept = PartWriter(plan)({"item": 1})  # as if an earlier run had been stopped
    written = Path(plan.descriptors_file(1))
    before = written.stat().st_mtime_ns
    seen: list[int] = []

    @contextmanager
    def watched(total: int, _label: str, _unit: str) -> Iterator[Callable[[int], None]]:
        assert total == 9, "one of four parts exists"
        yield seen.append
        assert written.stat().st_mtime_ns == before

    index, left_out = build_in_parts(with_ray, parallel=True, progress=watched)
    assert (len(index), left_out, kept["tiles"], sum(seen)) == (13, [], 4, 9)
    plain = Build(with_ray.checkpoint, source, str(tmp_path / "plain"), batch=2, part=6)
    build_in_parts(plain, parallel=False)
    assert content(tmp_path / "with-ray") == content(tmp_path / "plain")

    [shard] = (tmp_path / "data").glob("train-00000.arrow")
    shard.write_bytes(shard.read_bytes()[::-1])
    damaged = Build(with_ray.checkpoint, source, str(tmp_path / "damaged"), batch=2, part=4)
    with pytest.raises(DamagedError, match="fails its checksum"):  # the class that the worker raised
        build_in_parts(damaged, parallel=True)

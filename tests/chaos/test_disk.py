"""A disk of the shard cache that fills up. The tests mount a small disk, so they need root."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from s2s_ray import storage
from s2s_ray.config import Config
from s2s_ray.data.description import read_dataset_info
from s2s_ray.errors import DiskFullError
from s2s_ray.training.loop import Trainer
from tests.support.folder_store import serve_folder
from tests.support.killed_runs import Ending, configured

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
PAGE = 4096


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> None:
    """Map s3:// to this machine's directories, so that the data set is read through the cache."""
    serve_folder(monkeypatch, Path("/"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread, as the undisturbed runs do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@contextmanager
def disk(folder: Path, size: int) -> Iterator[Path]:
    """Mount a file system of `size` bytes."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # shards may still be mapped


def needed(sharded: Config, shards: int) -> int:
    """Return the bytes that the largest `shards` shards take on a disk."""
    sizes = sorted(
        info.bytes for split in ("train", "val") for info in read_dataset_info(sharded.data.uri).split(split).shards
    )
    return sum(-(-size // PAGE) * PAGE for size in sizes[-shards:])


def cached(settings: list[str], sharded: Config, storage: Path, folder: Path) -> Config:
    uris = [f"data.uri=s3:/{sharded.data.uri}", f"data.cache_dir={folder}"]
    return configured([*settings, *uris], storage)


def test_training_continues_on_a_disk_that_is_smaller_than_the_cache_limit(
    settings: list[str],
    sharded: Config,
    undisturbed: Callable[[int], Ending],
    remote: None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with disk(
        tmp_path / "disk", needed(sharded, 5) + PAGE
    ) as folder:  # two open shards of each split, and the next one
        config = cached(settings, sharded, tmp_path, folder)
        Trainer(config).fit()
        assert f"the disk of the shard cache {folder}/s2s-shards is full: evicted an unused shard" in caplog.text
    Ending.of(config).assert_same(undisturbed(1))


def test_a_disk_without_room_for_the_open_shards_is_named_and_the_run_resumes_on_a_larger_one(
    settings: list[str], sharded: Config, undisturbed: Callable[[int], Ending], remote: None, tmp_path: Path
) -> None:
    with disk(tmp_path / "disk", needed(sharded, 1) + 2 * PAGE) as folder:
        config = cached(settings, sharded, tmp_path, folder)
        with pytest.raises(
            DiskFullError, match=rf"^the disk of the shard cache {folder}/s2s-shards is full, and all .*cache_dir"
        ):
            Trainer(config).fit()
        own = folder / "s2s-shards"
        for path in own.glob("*.arrow"):  # the shards on the disk are whole
            assert storage.sha256(path) == path.name.partition("-")[0]
        assert not [path for path in own.iterdir() if path.suffix not in (".arrow", ".lock", ".json")]
    Trainer(cached(settings, sharded, tmp_path, tmp_path / "larger")).fit()
    Ending.of(config).assert_same(undisturbed(1))

"""The cache of remote shards on this node; the remote store is a directory behind an s3:// URI."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from s2s_ray import storage
from s2s_ray.errors import ConfigError, DamagedError, DatasetError, NotFoundError, StorageError
from s2s_ray.storage import files
from s2s_ray.storage.cache import ShardCache
from s2s_ray.storage.cache_folder import FOLDER, MARKER, CacheFolder, HeldFile
from tests.support.remote_shards import SHARDS, URI, Info, RemoteShards


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RemoteShards:
    return RemoteShards(tmp_path, monkeypatch)


@pytest.fixture
def remote(made: RemoteShards) -> Path:
    """The directory that s3://bucket/set stands for."""
    return made.path


@pytest.fixture
def shards(made: RemoteShards) -> list[Info]:
    """Six shards of the same size; the one called k holds the numbers 10 k to 10 k + 9."""
    return made.shards


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def make(made: RemoteShards, folder: Path) -> Callable[..., ShardCache]:
    """A cache with room for some shards."""
    return partial(made.cache, folder)


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Names of the shards that all processes have downloaded so far."""
    log = tmp_path / "downloads"
    log.touch()
    download = files.download

    def logged(uri: str, path: Path, **options: bool) -> None:
        with log.open("a") as file:
            file.write(storage.name(uri) + "\n")
        download(uri, path, **options)

    monkeypatch.setattr(files, "download", logged)
    return lambda: log.read_text().split()


def kept(folder: Path) -> list[int]:
    """Numbers of the shards in the cache."""
    return sorted(int(path.stem[-5:]) for path in (folder / FOLDER).glob("*.arrow"))


def beside(folder: Path) -> list[str]:
    """Names in the cache's own folder, except for its locks and marker."""
    return [path.name for path in (folder / FOLDER).iterdir() if path.suffix != ".lock" and path.name != MARKER]


def numbers(table: pa.Table) -> list[int]:
    return list(table.column("number").to_pylist())


def test_a_shard_is_downloaded_once(
    make: Callable[..., ShardCache], shards: list[Info], downloads: Callable[[], list[str]]
) -> None:
    first, second = make(), make()
    for cache in (first, second, first):
        assert numbers(cache.table(shards[3])) == list(range(30, 40))
    assert downloads() == ["train-00003.arrow"]


def test_shards_of_two_data_sets_are_kept_apart(make: Callable[..., ShardCache], shards: list[Info]) -> None:
    cache = make()
    cache.table(shards[0])
    other = replace(shards[1], name=shards[0].name)
    storage.write_bytes(f"{URI}/{other.name}", storage.read_bytes(f"{URI}/{shards[1].name}"))
    assert numbers(make().table(other)) == list(range(10, 20))


def read_all(cache: ShardCache, shards: list[Info]) -> None:
    for info in shards:
        assert numbers(cache.table(info))[0] == int(info.name[6:11]) * 10


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12 of fork
def test_processes_share_their_downloads(
    make: Callable[..., ShardCache], shards: list[Info], downloads: Callable[[], list[str]]
) -> None:
    context = multiprocessing.get_context("fork")
    cache = make()
    cache.table(shards[0])  # an open shard in the parent does not disturb the children
    children = [context.Process(target=read_all, args=(cache, shards)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 4
    assert sorted(downloads()) == [info.name for info in shards]


def test_a_damaged_download_is_repeated(
    make: Callable[..., ShardCache], shards: list[Info], monkeypatch: pytest.MonkeyPatch
) -> None:
    download, attempts = files.download, []

    def damage_first(uri: str, path: Path, **options: bool) -> None:
        download(uri, path, **options)
        attempts.append(uri)
        if len(attempts) == 1:
            path.write_bytes(b"x" + path.read_bytes()[1:])

    monkeypatch.setattr(files, "download", damage_first)
    assert numbers(make().table(shards[0])) == list(range(10))
    assert len(attempts) == 2


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("fault", [flip, lambda path: os.truncate(path, 100), lambda path: os.truncate(path, 0)])
def test_a_damaged_shard_in_the_cache_is_replaced_when_a_process_first_opens_it(
    make: Callable[..., ShardCache],
    shards: list[Info],
    folder: Path,
    downloads: Callable[[], list[str]],
    fault: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    make().table(shards[3])
    fault(folder / FOLDER / f"{shards[3].sha256}-{shards[3].name}")
    cache = make()
    assert numbers(cache.table(shards[3])) == list(range(30, 40))
    assert downloads() == ["train-00003.arrow"] * 2
    assert caplog.text.count(f"{shards[3].name} is damaged (") == 1
    make().table(shards[3])
    assert len(downloads()) == 2


def test_a_damaged_shard_in_the_cache_of_a_store_that_is_away_is_not_used(
    make: Callable[..., ShardCache], shards: list[Info], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make().table(shards[3])
    flip(folder / FOLDER / f"{shards[3].sha256}-{shards[3].name}")

    def away(uri: str, path: Path, **options: bool) -> None:
        raise StorageError(f"{uri}: the store cannot be reached")

    monkeypatch.setattr(files, "download", away)
    with pytest.raises(StorageError, match="cannot be reached"):
        make().table(shards[3])


def test_a_cached_shard_is_hashed_once_in_a_process(
    make: Callable[..., ShardCache], shards: list[Info], monkeypatch: pytest.MonkeyPatch
) -> None:
    read_all(make(), shards)
    hashed: list[int] = []
    sha256 = HeldFile.sha256

    def counted(held: HeldFile) -> str:
        hashed.append(held.inode)
        return sha256(held)

    monkeypatch.setattr(HeldFile, "sha256", counted)
    cache = make()
    for _ in range(3):
        read_all(cache, shards)
    assert len(hashed) == SHARDS


@pytest.mark.parametrize("local", [False, True])
def test_a_shard_is_hashed_once_by_all_workers_that_a_process_forks(
    make: Callable[..., ShardCache],
    shards: list[Info],
    remote: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    local: bool,
) -> None:
    """The workers of a data loader are forked anew for every epoch."""
    read_all(make(), shards)
    hashed = tmp_path / "hashed"
    hashed.touch()
    sha256, of_held = files.sha256, HeldFile.sha256

    def noted(content: Path) -> str:
        with hashed.open("a") as file:
            file.write("x")
        return sha256(content)

    def noted_held(held: HeldFile) -> str:
        with hashed.open("a") as file:
            file.write("x")
        return of_held(held)

    monkeypatch.setattr(files, "sha256", noted)
    monkeypatch.setattr(HeldFile, "sha256", noted_held)
    cache = ShardCache(str(remote), shards, folder=folder, max_bytes=1, window=1) if local else make()
    cache.table(shards[0])
    for _ in range(2):
        worker = multiprocessing.get_context("fork").Process(target=read_all, args=(cache, shards))
        worker.start()
        worker.join()
        assert worker.exitcode == 0
    read_all(cache, shards)
    assert len(hashed.read_text()) == SHARDS
    read_all(pickle.loads(pickle.dumps(cache)), shards)
    assert len(hashed.read_text()) == 2 * SHARDS
    if local:
        flip(remote / shards[3].name)
        with pytest.raises(DamagedError, match="fails its checksum"):
            read_all(cache, shards)


@pytest.mark.parametrize("fault", ["flipped", "short"])
def test_a_shard_that_is_damaged_at_the_source_is_named(
    make: Callable[..., ShardCache],
    shards: list[Info],
    remote: Path,
    folder: Path,
    downloads: Callable[[], list[str]],
    fault: str,
) -> None:
    path = remote / shards[2].name
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data if fault == "flipped" else data[:-1])
    cache = make()
    with pytest.raises(DamagedError, match=r"s3://bucket/set/train-00002.arrow fails its checksum \("):
        cache.table(shards[2])
    assert len(downloads()) == 2
    assert kept(folder) == []
    assert beside(folder) == []
    assert numbers(cache.table(shards[1])) == list(range(10, 20))  # other shards are still served


def test_a_missing_shard_is_named(make: Callable[..., ShardCache], shards: list[Info], remote: Path) -> None:
    (remote / shards[4].name).unlink()
    with pytest.raises(NotFoundError, match=r"s3://bucket/set/train-00004.arrow does not exist"):
        make().table(shards[4])


def test_the_least_recently_used_shards_are_evicted(
    make: Callable[..., ShardCache], shards: list[Info], folder: Path, downloads: Callable[[], list[str]]
) -> None:
    cache = make(room=3, window=1)  # two shards stay open, one more fits
    for k in (0, 1, 0, 2, 3):  # 1 is the least recently used
        cache.table(shards[k])
        assert len(kept(folder)) <= 3
    assert kept(folder) == [0, 2, 3]
    cache.table(shards[4])
    assert kept(folder) == [2, 3, 4]
    assert len(downloads()) == 5
    cache.table(shards[2])
    assert len(downloads()) == 5


def test_a_whole_epoch_fits_through_two_windows(
    make: Callable[..., ShardCache], shards: list[Info], folder: Path, downloads: Callable[[], list[str]]
) -> None:
    cache = make(room=4, window=2)
    for window in ((4, 1), (0, 5), (3, 2)):
        for _ in range(3):
            for k in window:
                assert numbers(cache.table(shards[k]))[0] == 10 * k
                assert len(kept(folder)) <= 4
    assert len(downloads()) == SHARDS


def test_shards_that_another_process_has_open_are_not_evicted(
    make: Callable[..., ShardCache], shards: list[Info], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = make(room=2)
    tables = [other.table(shards[0]), other.table(shards[1])]
    cache = make(room=2)
    cache.table(shards[2])
    assert kept(folder) == [0, 1, 2]
    assert "grows to" in caplog.text
    assert [numbers(table)[0] for table in tables] == [0, 10]
    del other, tables
    cache.table(shards[3])
    assert kept(folder) == [2, 3]


def test_the_rest_of_a_killed_download_is_deleted(
    make: Callable[..., ShardCache], shards: list[Info], folder: Path
) -> None:
    CacheFolder(folder).claim()
    size = shards[0].bytes
    for name in (f"{shards[5].sha256}-x.arrow.part", f".{shards[5].sha256}-x.arrow.part.0123.tmp~"):
        with (folder / FOLDER / name).open("wb") as file:
            file.truncate(10 * size)
    make(room=3).table(shards[0])
    assert beside(folder) == [f"{shards[0].sha256}-{shards[0].name}"]


def test_a_cache_smaller_than_two_windows_is_refused(make: Callable[..., ShardCache]) -> None:
    make(room=4, window=2)
    make(room=6, window=100)  # more than all shards is never needed
    message = (
        r"data.cache_gb=\S+ is less than two windows of shards, which need \S+ GB with data.window=2: "
        r"raise data.cache_gb or lower data.window"
    )
    with pytest.raises(ConfigError, match=f"^{message}$"):
        make(room=3, window=2)


def test_open_shards_are_not_pickled(make: Callable[..., ShardCache], shards: list[Info]) -> None:
    cache = make()
    cache.table(shards[0])
    assert numbers(pickle.loads(pickle.dumps(cache)).table(shards[0])) == list(range(10))


def test_a_local_data_set_is_read_where_it_is(
    remote: Path, shards: list[Info], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ShardCache(str(remote), shards, folder=folder, max_bytes=1, window=1)
    read_all(cache, shards)
    assert not folder.exists()
    hashed: list[Path] = []
    monkeypatch.setattr(files, "sha256", lambda path: hashed.append(path))
    read_all(cache, shards)
    assert hashed == []  # once per process is enough


def test_a_damaged_local_shard_is_named(remote: Path, shards: list[Info], folder: Path) -> None:
    data = bytearray((remote / shards[1].name).read_bytes())
    data[200] ^= 1
    (remote / shards[1].name).write_bytes(data)
    os.truncate(remote / shards[2].name, 100)
    (remote / shards[3].name).unlink()
    cache = ShardCache(str(remote), shards, folder=folder, max_bytes=1, window=1)
    for k, message, kind in (
        (1, "fails its checksum .sha256", DamagedError),
        (2, "fails its checksum .100 bytes", DamagedError),
        (3, "does not exist", NotFoundError),
    ):
        with pytest.raises(kind, match=rf"{remote}/train-0000{k}.arrow {message}"):
            cache.table(shards[k])
    assert (remote / shards[1].name).exists()


def test_a_shard_with_another_number_of_pairs_is_refused(remote: Path, shards: list[Info], folder: Path) -> None:
    wrong = replace(shards[0], count=11)
    cache = ShardCache(str(remote), [wrong], folder=folder, max_bytes=1, window=1)
    with pytest.raises(DatasetError, match="holds 10 pairs, its data set lists 11"):
        cache.table(wrong)

"""The shard cache's own folder: it leaves everything else in `data.cache_dir` as it was, and shares it with nobody."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2s_ray.errors import DiskFullError, StorageError
from s2s_ray.storage import cache_folder, files
from s2s_ray.storage.cache import ShardCache
from s2s_ray.storage.cache_folder import FOLDER, MARKER, CacheFolder, default_cache_dir
from tests.support.remote_shards import SHARDS, RemoteShards

KINDS = ("file", "empty", "unreadable", "folder", "deep", "fifo", "socket", "link", "dangling", "link to a folder")
DIGEST = "0123456789abcdef" * 4
LIKE_SHARDS = (
    f"{DIGEST}-train-00000.arrow",
    f"{DIGEST}-train-00000.arrow.part",
    f".{DIGEST}-train-00000.arrow.part.0a1b.tmp~",
    f"{DIGEST}.lock",
    "cache.lock",
)
NAMES = st.one_of(
    st.sampled_from([*LIKE_SHARDS, "thesis.docx", "results.arrow", "lost+found", "x.part", ".hidden", "-rf", "a b\n"]),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
        lambda name: name not in (".", "..", FOLDER)
    ),
)


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RemoteShards:
    return RemoteShards(tmp_path / "store", monkeypatch)


def plant(path: Path, kind: str, outside: Path) -> None:
    """Put something foreign at a path."""
    if kind in ("file", "unreadable"):
        path.write_bytes(b"somebody's work")
        path.chmod(0 if kind == "unreadable" else 0o644)
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "deep":
        (path / "a" / f"{DIGEST}-b.arrow" / "c").mkdir(parents=True)
        (path / "a" / f"{DIGEST}-c.arrow").write_bytes(b"deep")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with tempfile.TemporaryDirectory() as short:  # the address of a socket is at most 107 bytes
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(f"{short}/s")
            os.rename(f"{short}/s", path) if os.stat(short).st_dev == path.parent.stat().st_dev else path.touch()
    elif kind == "link":
        path.symlink_to(outside / "precious")
    elif kind == "dangling":
        path.symlink_to(outside / "nowhere")
    else:
        path.symlink_to(outside, target_is_directory=True)


def snapshot(folder: Path, but: Callable[[Path], bool]) -> dict[Path, object]:
    """Return what `lstat` and the content say of everything below a folder, except for some paths."""
    found: dict[Path, object] = {}
    for path in sorted(folder.rglob("*")):
        if but(path):
            continue
        info = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(info.st_mode) and os.access(path, os.R_OK) else None
        link = os.readlink(path) if path.is_symlink() else None
        times = None if stat.S_ISDIR(info.st_mode) else info.st_mtime_ns
        found[path] = (info.st_mode, info.st_ino, info.st_size, info.st_uid, times, content, link)
    return found


def epoch(remote: RemoteShards, folder: Path) -> ShardCache:
    """Read all shards through a cache with room for three, so that most are evicted, and repair a damaged one."""
    cache = remote.cache(folder, room=3)
    for info in [*remote.shards, *remote.shards[::-1]]:
        assert cache.table(info)[0][0].as_py() == remote.first(info)
    for path in (folder / FOLDER).glob("*-train-0000[0-9].arrow"):
        if any(info.sha256 in path.name for info in remote.shards):
            os.truncate(path, 100)
    again = remote.cache(folder, room=3)
    for info in remote.shards:
        again.table(info)
    return again


@settings(max_examples=25)
@given(planted=st.dictionaries(NAMES, st.sampled_from(KINDS), max_size=8))
def test_nothing_foreign_in_the_cache_directory_is_touched(planted: dict[str, str]) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as place:
        remote = RemoteShards(Path(place) / "store", patch)
        folder, outside = Path(place) / "cache", Path(place) / "outside"
        for each in (folder, outside):
            each.mkdir()
        (outside / "precious").write_bytes(b"precious")
        for name, kind in planted.items():
            if len(os.fsencode(name)) < 250:
                plant(folder / name, kind, outside)

        def own(path: Path) -> bool:
            return path == folder / FOLDER or folder / FOLDER in path.parents

        before = snapshot(folder, own) | snapshot(outside, own)
        epoch(remote, folder)
        assert snapshot(folder, own) | snapshot(outside, own) == before


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_foreign_in_the_folder_itself_is_touched(
    kind: str, remote: RemoteShards, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, outside = tmp_path / "cache", tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"precious")
    CacheFolder(folder).claim()
    # a regular file that is named as the cache names its own is the cache's
    names = ["notes.txt", "results.arrow", "x.part", "ab.arrow", "weights"]
    if kind not in ("file", "empty", "unreadable"):
        names += [f"{DIGEST}-train-00000.arrow", f"{DIGEST}-x.arrow.part"]
    for name in names:
        plant(folder / FOLDER / name, kind, outside)
    before = snapshot(tmp_path, lambda path: not any(name in path.parts for name in (*names, "outside")))
    epoch(remote, folder)
    assert snapshot(tmp_path, lambda path: not any(name in path.parts for name in (*names, "outside"))) == before


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("file", "empty", "unreadable")])
@pytest.mark.parametrize("suffix", ["", ".part", ".lock"])
def test_what_takes_the_place_of_a_shard_is_refused_and_left_alone(
    kind: str, suffix: str, remote: RemoteShards, tmp_path: Path
) -> None:
    folder, outside = tmp_path / "cache", tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"precious")
    CacheFolder(folder).claim()
    info = remote.shards[0]
    name = f"{info.sha256}.lock" if suffix == ".lock" else f"{info.sha256}-{info.name}{suffix}"
    plant(folder / FOLDER / name, kind, outside)
    before = snapshot(tmp_path, lambda path: name not in path.parts and "outside" not in path.parts)
    with pytest.raises(StorageError, match="is not a file that the shard cache wrote"):
        remote.cache(folder).table(info)
    assert snapshot(tmp_path, lambda path: name not in path.parts and "outside" not in path.parts) == before


def test_a_folder_that_somebody_else_made_is_refused(remote: RemoteShards, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    (folder / FOLDER).mkdir(parents=True)
    (folder / FOLDER / LIKE_SHARDS[0]).write_bytes(b"theirs")
    with pytest.raises(StorageError, match=rf"{folder}/{FOLDER} was not made by s2s-ray: it has no {MARKER}"):
        epoch(remote, folder)
    assert (folder / FOLDER / LIKE_SHARDS[0]).read_bytes() == b"theirs"


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ('{"format": 1, "owner": "another program"}', "belongs to 'another program'"),
        ("", "has a damaged"),
        ('{"format": 9}', "upgrade s2s-ray"),
        (None, "is not a file"),
    ],
)
def test_a_marker_of_another_kind_is_refused(
    marker: str | None, message: str, remote: RemoteShards, tmp_path: Path
) -> None:
    path = tmp_path / "cache" / FOLDER / MARKER
    path.parent.mkdir(parents=True)
    path.mkdir() if marker is None else path.write_text(marker)
    with pytest.raises(StorageError, match=message):
        epoch(remote, tmp_path / "cache")


def test_a_file_or_a_link_with_the_folders_name_is_refused(remote: RemoteShards, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / FOLDER).write_bytes(b"a file")
    with pytest.raises(StorageError, match=f"{FOLDER} is not a directory"):
        epoch(remote, folder)
    (folder / FOLDER).unlink()
    CacheFolder(tmp_path / "other").claim()
    (folder / FOLDER).symlink_to(tmp_path / "other" / FOLDER)
    with pytest.raises(StorageError, match=f"{FOLDER} is a symbolic link"):
        epoch(remote, folder)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"data.cache_dir='.*/file' is not a directory"):
        epoch(remote, tmp_path / "file")
    with pytest.raises(StorageError, match="Not a directory"):
        epoch(remote, tmp_path / "file" / "below")


def test_the_cache_directory_itself_may_be_a_link(remote: RemoteShards, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    epoch(remote, tmp_path / "link")
    assert (tmp_path / "disk" / FOLDER / MARKER).is_file()


def test_the_folder_of_another_user_is_refused(
    remote: RemoteShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    CacheFolder(tmp_path / "cache").claim()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    real = Path.stat

    def owned_by_me(path: Path, **options: bool) -> os.stat_result:
        info = real(path, **options)
        return os.stat_result([*info[:4], 12345, *info[5:]]) if path == tmp_path / "cache" else info

    monkeypatch.setattr(Path, "stat", owned_by_me)
    with pytest.raises(StorageError, match=rf"{FOLDER} belongs to another user \(uid {os.getuid()}\)"):
        epoch(remote, tmp_path / "cache")


class TestTheDefaultDirectory:
    @pytest.fixture(autouse=True)
    def temporary(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def test_it_is_made_for_its_owner_alone(self, remote: RemoteShards) -> None:
        before = os.umask(0)
        try:
            remote.cache(None).table(remote.shards[0])
        finally:
            os.umask(before)
        for path in (default_cache_dir(), default_cache_dir() / FOLDER):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700

    @pytest.mark.parametrize("mode", [0o770, 0o775, 0o702, 0o777])
    def test_one_of_this_user_that_others_may_write_is_closed_to_them(
        self, mode: int, remote: RemoteShards, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An earlier version made it as the umask said."""
        default_cache_dir().mkdir()
        default_cache_dir().chmod(mode)
        for _ in range(2):
            remote.cache(None).table(remote.shards[0])
        assert stat.S_IMODE(default_cache_dir().stat().st_mode) == 0o700
        assert caplog.text.count(f"(mode {mode:o}): it is open to you alone now") == 1

    def test_one_that_is_not_a_directory_of_this_user_is_refused(
        self, remote: RemoteShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache = remote.cache(None)
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        default_cache_dir().symlink_to(tmp_path / "elsewhere")
        with pytest.raises(StorageError, match="is a symbolic link"):
            cache.table(remote.shards[0])
        default_cache_dir().unlink()
        default_cache_dir().touch()
        with pytest.raises(StorageError, match="is not a directory"):
            cache.table(remote.shards[0])
        default_cache_dir().unlink()
        default_cache_dir().mkdir(mode=0o700)
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        with pytest.raises(StorageError, match="belongs to another user"):
            cache.table(remote.shards[0])

    def test_one_of_an_earlier_version_is_used_and_its_shards_are_reported_once(
        self, remote: RemoteShards, caplog: pytest.LogCaptureFixture
    ) -> None:
        default_cache_dir().mkdir(mode=0o755)
        (default_cache_dir() / LIKE_SHARDS[0]).write_bytes(b"old")
        for _ in range(2):
            remote.cache(None).table(remote.shards[0])
        assert caplog.text.count("holds 1 shards of an earlier version, which are not used any more") == 1
        assert (default_cache_dir() / LIKE_SHARDS[0]).read_bytes() == b"old"


def test_a_killed_process_leaves_no_folder_without_a_marker(
    remote: RemoteShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            CacheFolder(tmp_path / "cache").claim()
    epoch(remote, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [FOLDER]


def test_another_process_may_make_the_folder_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def after_another(old: Path, new: Path) -> None:
        monkeypatch.setattr(os, "rename", rename)
        CacheFolder(tmp_path / "cache").claim()
        rename(old, new)

    monkeypatch.setattr(os, "rename", after_another)
    CacheFolder(tmp_path / "cache").claim()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [FOLDER]


def test_a_folder_that_is_deleted_while_it_is_used_is_made_again(
    remote: RemoteShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "cache"
    cache = remote.cache(folder)
    kept = cache.table(remote.shards[0])
    shutil.rmtree(folder)
    assert cache.table(remote.shards[1])[0][0].as_py() == 10
    download = files.download

    def deleted_meanwhile(uri: str, path: Path, **options: bool) -> None:
        monkeypatch.setattr(files, "download", download)
        shutil.rmtree(folder)
        download(uri, path, **options)  # makes the directories above it

    monkeypatch.setattr(files, "download", deleted_meanwhile)
    assert cache.table(remote.shards[2])[0][0].as_py() == 20
    assert "was deleted while it was in use" in caplog.text
    assert (folder / FOLDER / MARKER).is_file()
    assert kept[0][0].as_py() == 0  # an open shard stays readable


def test_a_folder_that_keeps_disappearing_is_an_error(
    remote: RemoteShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download = files.download

    def deleted(uri: str, path: Path, **options: bool) -> None:
        shutil.rmtree(tmp_path / "cache")
        download(uri, path, **options)

    monkeypatch.setattr(files, "download", deleted)
    with pytest.raises(StorageError, match=r"is deleted again and again: set data\.cache_dir"):
        remote.cache(tmp_path / "cache").table(remote.shards[0])


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_named(
    code: int, remote: RemoteShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StorageError, match=r"cannot be locked \(.*\): the file system of data.cache_dir has no locks"):
        remote.cache(tmp_path / "cache").table(remote.shards[0])


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (errno.EROFS, StorageError, "Read-only file system"),
        (errno.EACCES, StorageError, "Permission denied"),
        (errno.ENOSPC, DiskFullError, "No space left"),
    ],
)
@pytest.mark.parametrize("call", ["mkdir", "open", "rename", "replace"])
def test_a_directory_that_cannot_be_written_is_named(
    code: int,
    kind: type[StorageError],
    message: str,
    call: str,
    remote: RemoteShards,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if call in ("open", "replace"):
        CacheFolder(tmp_path / "cache").claim()
    real = getattr(os, call)

    def refuse(path: object, *args: object, **options: object) -> object:
        if str(path).startswith(str(tmp_path / "cache")) and not str(path).endswith(".json"):
            raise OSError(code, os.strerror(code), str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(kind, match=message):
        remote.cache(tmp_path / "cache").table(remote.shards[0])


def test_a_forked_process_does_not_keep_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inherited: list[int]
) -> None:
    folder = CacheFolder(tmp_path / "cache")
    folder.claim()
    shard = folder.path / LIKE_SHARDS[0]
    shard.touch()

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        assert not folder.evict(shard)
    with folder.locked():
        pass
    names = {os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")) for descriptor in inherited}
    assert names == {f"{DIGEST}.lock", shard.name, "cache.lock"}
    for name in names:
        with (folder.path / name).open("rb") as other:
            fcntl.flock(other.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_support_has_enough_shards_to_evict(remote: RemoteShards, tmp_path: Path) -> None:
    epoch(remote, tmp_path / "cache")
    assert len(list((tmp_path / "cache" / FOLDER).glob("*.arrow"))) == 3 < SHARDS


def test_the_names_of_the_cache() -> None:
    assert all(cache_folder._SHARD.fullmatch(name) for name in LIKE_SHARDS[:2])
    others = (
        "results.arrow",
        f"{DIGEST[:-1]}-x.arrow",
        f"{DIGEST}.arrow",
        f"{DIGEST}-x.arrow.gz",
        f"x{DIGEST}-x.arrow",
    )
    assert not any(cache_folder._SHARD.fullmatch(name) for name in others)

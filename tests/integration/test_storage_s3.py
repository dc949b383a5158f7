"""Storage, the data set and its cache on an S3 server: Ceph where it is installed, moto's elsewhere."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import pytest
import torch
from torch.utils.data import DataLoader

from s2s_ray import storage
from s2s_ray.data.batch import Batch
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.prepare import prepare
from s2s_ray.data.sampler import GlobalBatchSampler
from s2s_ray.data.verify import verify
from s2s_ray.errors import ConflictError, DamagedError, NotFoundError, StorageError
from s2s_ray.storage import conditional, retries, s3_upload
from s2s_ray.uri import Uri

if TYPE_CHECKING:
    from tests.support.faulty_proxy import FaultyProxy
    from tests.support.pair_folder import PairFolder

pytestmark = pytest.mark.integration


@pytest.fixture
def root(s3: str, request: pytest.FixtureRequest) -> str:
    """The URI of a prefix in the bucket that only this test uses."""
    return storage.join(s3, request.node.name)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use short pauses between attempts and short waits for a store that does not respond."""
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(retries, "STALL_TIMEOUT_S", 1)


def test_write_read_list_delete(root: str, tmp_path: Path) -> None:
    assert storage.list_names(root) == []
    assert not storage.exists(root)
    big = os.urandom(23_000_000)  # several parts
    storage.write_bytes(storage.join(root, "a/big"), big)
    storage.write_bytes(storage.join(root, "a/empty"), b"")
    storage.write_json(storage.join(root, "b é+ 100%.json"), [1])
    assert storage.list_names(root) == ["a", "b é+ 100%.json"]
    assert storage.list_names(storage.join(root, "a")) == ["big", "empty"]
    assert storage.list_folders(root) == ["a"]
    assert storage.list_folders(storage.join(root, "a")) == storage.list_folders(storage.join(root, "none")) == []
    assert abs(storage.modified(storage.join(root, "a/big")) - time.time()) < 60
    assert storage.exists(storage.join(root, "a"))
    assert storage.exists(storage.join(root, "a/big"))
    assert not storage.exists(storage.join(root, "a/bi"))
    assert storage.size(storage.join(root, "a/big")) == len(big)
    assert storage.read_bytes(storage.join(root, "a/big")) == big
    assert storage.read_bytes(storage.join(root, "a/empty")) == b""
    assert storage.read_json(storage.join(root, "b é+ 100%.json")) == [1]
    storage.download(storage.join(root, "a/big"), tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == big
    storage.upload(tmp_path / "big", storage.join(root, "c/copy"))
    with storage.open_input(storage.join(root, "c/copy")) as file:
        file.seek(-10, 2)
        assert file.read() == big[-10:]
    storage.delete(storage.join(root, "a/empty"))
    storage.delete(storage.join(root, "a/empty"))
    assert storage.list_names(storage.join(root, "a")) == ["big"]
    storage.delete(root)
    assert storage.list_names(root) == []


def test_boto3_reads_what_storage_writes_and_the_reverse(root: str) -> None:
    client = boto3.client("s3")
    bucket, _, prefix = root.removeprefix("s3://").partition("/")
    client.put_object(Bucket=bucket, Key=f"{prefix}/theirs", Body=b"one")
    assert storage.read_bytes(storage.join(root, "theirs")) == b"one"
    storage.write_bytes(storage.join(root, "ours"), b"two")
    assert client.get_object(Bucket=bucket, Key=f"{prefix}/ours")["Body"].read() == b"two"


def test_publish_and_fetch(root: str, tmp_path: Path) -> None:
    (tmp_path / "local" / "sub").mkdir(parents=True)
    (tmp_path / "local" / "a").write_bytes(b"a" * 100_000)
    (tmp_path / "local" / "sub" / "b").write_bytes(b"b")
    assert not storage.is_complete(root)
    storage.publish(tmp_path / "local", root)
    assert storage.is_complete(root)
    found = storage.fetch(root, tmp_path / "into")
    assert (found / "a").read_bytes() == b"a" * 100_000
    assert (found / "sub" / "b").read_bytes() == b"b"
    storage.write_bytes(storage.join(root, "a"), b"c" * 100_000)
    with pytest.raises(DamagedError, match=rf"^{root}/a fails its checksum"):
        storage.fetch(root, tmp_path / "again")


def test_a_missing_object_or_bucket_is_named(root: str) -> None:
    with pytest.raises(NotFoundError, match=rf"^{root}/none does not exist$"):
        storage.read_bytes(storage.join(root, "none"))
    with pytest.raises(NotFoundError, match=r"^s3://s2s-none/x: there is no bucket 's2s-none' at http://127.0.0.1"):
        storage.read_bytes("s3://s2s-none/x")
    with pytest.raises(StorageError, match=r"^s3://s2s-none/x: there is no bucket 's2s-none' at http://127.0.0.1"):
        storage.write_bytes("s3://s2s-none/x", b"")


def test_missing_and_wrong_credentials_are_distinguished(
    root: str, ceph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match=rf"^{root}/x: http://\S+ refuses these credentials"):
        storage.read_bytes(storage.join(root, "x"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    for attempt in (lambda: storage.read_bytes(storage.join(root, "x")), lambda: storage.write_bytes(root, b"")):
        with pytest.raises(StorageError, match=rf"^{root}\S*: no credentials for http://\S+: set AWS_ACCESS_KEY_ID"):
            attempt()


def test_an_endpoint_that_is_silent_is_named(root: str, monkeypatch: pytest.MonkeyPatch, impatient: None) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(StorageError, match=rf"^{root}/x: {endpoint} cannot be reached; check AWS_ENDPOINT_URL"):
            storage.read_bytes(storage.join(root, "x"))


def test_a_file_whose_size_was_cut_off_is_not_read_as_empty(root: str, proxy: FaultyProxy, impatient: None) -> None:
    storage.write_bytes(storage.join(root, "x"), b"long content")
    for method, ask, right in (
        ("GET", storage.read_bytes, b"long content"),
        ("GET", lambda uri: storage.open_input(uri).read(), b"long content"),
        ("HEAD", storage.size, 12),
    ):
        proxy.faults[method] += ["behead", "shorten"]
        assert ask(storage.join(root, "x")) == right
        assert proxy.faults[method] == []


def test_content_that_was_changed_on_its_way_is_read_again(
    root: str, proxy: FaultyProxy, tmp_path: Path, impatient: None
) -> None:
    storage.write_bytes(storage.join(root, "x"), b"content")
    proxy.faults["GET"] += ["corrupt", "corrupt"]
    assert storage.read_bytes(storage.join(root, "x")) == b"content"
    proxy.faults["GET"] += ["corrupt"]
    storage.download(storage.join(root, "x"), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"content"
    proxy.choose = lambda method, path: "corrupt"
    with pytest.raises(DamagedError, match=rf"^{root}/x fails its checksum .MD5"):
        storage.read_bytes(storage.join(root, "x"))


@pytest.mark.parametrize("fault", ["refuse", "drop", "reset", "lose", "stall"])
def test_transient_faults_are_survived(
    root: str, proxy: FaultyProxy, tmp_path: Path, impatient: None, fault: str
) -> None:
    data = os.urandom(300_000)
    proxy.faults["PUT"] += [fault] * 2
    storage.write_bytes(storage.join(root, "x"), data)
    proxy.faults["HEAD"] += [fault]
    assert storage.size(storage.join(root, "x")) == len(data)
    proxy.faults["GET"] += [fault] * 2
    assert storage.read_bytes(storage.join(root, "x")) == data
    proxy.faults["GET"] += [fault]
    storage.download(storage.join(root, "x"), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == data
    assert not any(proxy.faults.values()), "every fault occurred"


def test_a_large_upload_survives_lost_responses(
    root: str, proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its parts is retried for itself, and its end is recognised after the response was lost."""
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(s3_upload, "PART", 5 << 20)  # the least that S3 accepts
    data = os.urandom(12 << 20)
    (tmp_path / "big").write_bytes(data)
    ends = ["lose"]
    proxy.faults["PUT"] += ["drop", "refuse", "lose"]
    proxy.choose = lambda method, path: ends.pop() if method == "POST" and "uploadId=" in path and ends else ""
    with (tmp_path / "big").open("rb") as file:
        s3_upload.upload_parts(Uri(f"{root}/big"), *f"{root}/big".removeprefix("s3://").split("/", 1), file)
    assert +proxy.met == {"drop": 1, "refuse": 1, "lose": 2}
    assert storage.read_bytes(f"{root}/big") == data


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12 of fork
def test_a_data_set_in_a_bucket(root: str, pairs: PairFolder, tmp_path: Path) -> None:
    for k in range(12):
        pairs.add(f"train{k}")
    for k in range(4):
        pairs.add(f"test{k}", "test")
    config = pairs.config(root, shard_mb=0.02)
    manifest = prepare(config)
    assert manifest == prepare(config)
    prepare(pairs.config(tmp_path / "local", shard_mb=0.02))
    for name in storage.list_names(str(tmp_path / "local")):
        assert storage.read_bytes(storage.join(root, name)) == (tmp_path / "local" / name).read_bytes()
    assert verify(root).ok

    local = PairDataset(str(tmp_path / "local"), "train", flip=0.5)
    largest = max(shard.bytes for shard in manifest.split("train").shards)
    sampler = GlobalBatchSampler(local.shard_sizes, seed=0, window=1, batch=3)
    for workers in (0, 1):
        remote = PairDataset(root, "train", flip=0.5, window=1, cache_dir=tmp_path / "cache", cache_bytes=2 * largest)
        loader: DataLoader[Batch] = DataLoader(
            remote,  # type: ignore[arg-type]
            batch_sampler=sampler,
            collate_fn=remote.collate,
            num_workers=workers,
        )
        for batch, keys in zip(loader, sampler, strict=True):
            assert torch.equal(batch.street, torch.stack([local[key].street for key in keys]))
        kept = [path.stat().st_size for path in (tmp_path / "cache" / "s2s-shards").glob("*.arrow")]
        assert len(remote.shard_sizes) > len(kept)
        assert sum(kept) <= 2 * largest


def test_the_server_refuses_the_second_of_two_conditional_writes(root: str) -> None:
    uri = storage.join(root, "registry", "current.json")
    assert conditional.read(uri) == (None, None)
    conditional.write(uri, b"one", None)
    content, version = conditional.read(uri)
    assert content == storage.read_bytes(uri) == b"one"
    with pytest.raises(ConflictError):
        conditional.write(uri, b"two", None)
    conditional.write(uri, b"two", version)
    with pytest.raises(ConflictError):
        conditional.write(uri, b"three", version)
    assert storage.read_bytes(uri) == b"two"

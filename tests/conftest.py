"""Fixtures shared by all tests; the real things among them are for integration and chaos tests."""

from __future__ import annotations

import csv
import logging
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from s2s_ray.config import Config, ManifestSourceConfig
from tests.support.faulty_proxy import FaultyProxy

BUCKET = "s2s-tests"

# Ray reads these once, when it is first imported: every cluster of this session is closed to those without its token.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)

# the same examples everywhere, however slow the machine
settings.register_profile("s2s", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("s2s")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of several tests with one id pytest-xdist runs one and says nothing."""
    assert len({item.nodeid for item in items}) == len(items), "two tests have one id"


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """A command run in a test sends the library's log to that test's own stream, which ends with it."""
    logger = logging.getLogger("s2s_ray")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the project with the authors' conformance numbers and the real sample pairs."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder.name}/ is not beside the project: conformance numbers and sample pairs are not at hand")
    return folder


class PairFolder:
    """Small random images on disk and the manifest that lists them: the user's own data, in miniature."""

    columns = ("id", "satellite", "street", "split", "latitude", "longitude", "heading")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []
        path.mkdir()

    def add(self, id: str, split: str = "train", tile: int = 24, **columns: object) -> None:
        """List a pair, with a `tile` x `tile` satellite image and a 20 x 44 panorama drawn from its id."""
        generator = np.random.default_rng(list(id.encode()))
        row = {"id": id, "split": split}
        for column, shape in (("satellite", (tile, tile, 3)), ("street", (20, 44, 3))):
            row[column] = f"{id}-{column}.png"
            pixels = generator.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(self.path / row[column])
        self.rows.append(row | {column: str(value) for column, value in columns.items()})

    def source(self) -> ManifestSourceConfig:
        """Write the manifest as it stands."""
        with (self.path / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)
        return ManifestSourceConfig(uri=str(self.path / "pairs.csv"))

    def config(self, uri: object, **prepare: object) -> Config:
        """Write the manifest, and the configuration that prepares it to a URI at 32 x 40."""
        tree = {
            "model": {"height": 32, "width": 40},
            "source": self.source().model_dump(),
            "data": {"uri": str(uri)},
            "prepare": {"parallel": False, **prepare},
        }
        return Config.from_tree(tree)


@pytest.fixture
def pairs(tmp_path: Path) -> PairFolder:
    """An empty folder of pairs to add to."""
    return PairFolder(tmp_path / "pairs")


@pytest.fixture(scope="session")
def pair_folder() -> type[PairFolder]:
    """`PairFolder` itself, for fixtures that outlive one test."""
    return PairFolder


@pytest.fixture(scope="session")
def s3(shared: Path) -> Iterator[str]:
    """A bucket's URI on a real S3 server of this session's own, with the AWS variables set.

    Needs Ceph from Debian's packages (`real-s3.sh install`, as root, once); skips where they are absent.
    """
    script = shared / "tools" / "real-s3.sh"
    programs = ("ceph", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "monmaptool")
    absent = [program for program in programs if shutil.which(program) is None]
    if not script.exists() or absent:
        pytest.skip(f"no S3 server to test with: {', '.join(absent) or script} absent (see `real-s3.sh install`)")
    import boto3

    folder = tempfile.mkdtemp(prefix="s3-")  # a short path: the server's sockets are in it
    with pytest.MonkeyPatch.context() as patch:
        try:
            started = subprocess.run(
                [script, "start", folder, str(_free_ports(20))], capture_output=True, text=True, timeout=180
            )
            assert started.returncode == 0, started.stderr
            patch.delenv("AWS_PROFILE", raising=False)
            patch.delenv("AWS_SESSION_TOKEN", raising=False)
            for line in started.stdout.splitlines():
                key, _, value = line.partition("=")
                patch.setenv(key, value)
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            yield f"s3://{BUCKET}"
        finally:
            subprocess.run([script, "wipe", folder], check=True, timeout=180)
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def proxy(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """The S3 server behind a proxy with no faults yet."""
    proxy = FaultyProxy(os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    yield proxy
    proxy.stop()


@pytest.fixture(scope="session")
def narrow(tmp_path_factory: pytest.TempPathFactory, pair_folder: type[PairFolder]) -> list[str]:
    """Settings for a prepared data set of 13 random pairs and a model narrow enough to train in seconds."""
    from s2s_ray.data.prepare import prepare

    folder = tmp_path_factory.mktemp("narrow")
    pairs = pair_folder(folder / "pairs")
    for split, count in (("train", 13), ("val", 5), ("test", 2)):
        for number in range(count):
            pairs.add(f"{split}-{number}", split)
    prepare(pairs.config(folder / "data"))
    return [
        "model.height=32",
        "model.width=40",
        "model.channels=4",
        "model.residual_blocks=1",
        "model.discriminator_channels=4",
        "model.masks=2",
        f"data.uri={folder / 'data'}",
        "train.batch=5",
        "train.checkpoint_every=1",
    ]


def _free_ports(count: int) -> int:
    """The first of so many free ports in a row, below the system's own range and Ray's workers."""
    for first in range(4000 + os.getpid() % 100 * count, 9900, count):
        taken = []
        try:
            for port in range(first, first + count):
                taken.append(socket.socket())
                taken[-1].bind(("127.0.0.1", port))
            return first
        except OSError:
            continue
        finally:
            for one in taken:
                one.close()
    raise AssertionError(f"no {count} free ports in a row")

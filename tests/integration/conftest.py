"""Real things for integration tests: an S3 server, a Ray cluster."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import pytest

from s2s_ray.data.prepare import prepare

if TYPE_CHECKING:
    from tests.conftest import PairFolder

BUCKET = "s2s-tests"
# Ray reads these once, when it is first imported: every cluster of this session is closed to those without its token.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


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


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray cluster of two CPUs."""
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def narrow(tmp_path_factory: pytest.TempPathFactory, pair_folder: type[PairFolder]) -> list[str]:
    """Settings for a prepared data set of 13 random pairs and a model narrow enough to train in seconds."""
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

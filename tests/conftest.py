"""Fixtures shared by all tests; the real things among them are for integration and chaos tests."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support.faulty_proxy import FaultyProxy
from tests.support.models import TINY
from tests.support.pair_folder import PairFolder
from tests.support.s3_server import ceph_script, ceph_server, moto_server

BUCKET = "s2s-tests"
TESTS = Path(__file__).resolve().parent
SHARED = TESTS.parents[1] / "shared"

# Ray reads these once, when it is first imported: every cluster of this session is closed to those without its token.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)

# the same examples everywhere, however slow the machine
settings.register_profile("s2s", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("s2s")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first, so that both processes of pytest-xdist end together.

    Two tests with the same id are refused: pytest-xdist would silently run one of them.
    """
    assert len({item.nodeid for item in items}) == len(items), "two tests have one id"
    long = [TESTS / folder for folder in ("integration", "gpu", "chaos")]
    items.sort(key=lambda item: long.index(item.path.parent) if item.path.parent in long else len(long))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many schedules of simultaneous processes were tried, in all of which nothing was lost."""
    found = {
        report.nodeid: value
        for report in terminalreporter.stats.get("passed", [])
        for name, value in report.user_properties
        if name == "schedules"
    }
    if found:
        terminalreporter.write_line(f"{sum(found.values())} schedules tried in {len(found)} tests of interleavings")


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """Restore the library's log: a command run in a test sends it to the stream of that test."""
    logger = logging.getLogger("s2s_ray")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the project with real sample pairs; skips where it is missing."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED.name}/ is not beside the project, so its sample pairs are missing")
    return SHARED


@pytest.fixture
def pairs(tmp_path: Path) -> PairFolder:
    """An empty folder of pairs to add to."""
    return PairFolder(tmp_path / "pairs")


@pytest.fixture(scope="session")
def pair_folder() -> type[PairFolder]:
    """`PairFolder` itself, for fixtures that outlive one test."""
    return PairFolder


@pytest.fixture(scope="session")
def ceph() -> Path:
    """The script that starts Ceph, a real S3 server; skips where it or a program of Ceph is missing."""
    script = ceph_script(SHARED)
    if script is None:
        pytest.skip("Ceph is not installed, and moto's server does not behave like a real one here")
    return script


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The URI of a bucket on an S3 server that this session started, with the AWS variables set.

    The server is Ceph where it is installed (`real-s3.sh install`, as root, once), moto's elsewhere.
    """
    import boto3

    script = ceph_script(SHARED)
    server = moto_server() if script is None else ceph_server(script)
    with pytest.MonkeyPatch.context() as patch, server as variables:
        patch.delenv("AWS_PROFILE", raising=False)
        patch.delenv("AWS_SESSION_TOKEN", raising=False)
        for name, value in variables.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield f"s3://{BUCKET}"


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
        *(f"model.{key}={value}" for key, value in TINY.items() if key != "street_blocks"),
        f"data.uri={folder / 'data'}",
        "train.batch=5",
        "train.checkpoint_every=1",
    ]

"""A run whose cache lies among files of others, and one whose permissions are taken away in the middle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from s2s_ray.config import Config
from s2s_ray.data.prepare import prepare
from s2s_ray.errors import NotFoundError, RefusedError
from s2s_ray.training.loop import Trainer
from tests.support.faulty_proxy import FaultyProxy
from tests.support.killed_runs import Ending, before_step, configured, on_s3

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

FOREIGN = {
    "thesis.docx": b"my thesis",
    "model.pt": b"weights",
    "results.arrow": b"a table of another program",
    "results.arrow.part": b"",
    "results.arrow.lock": b"4711",
    "lost+found/#1234": b"",
    "photos/2024/beach.jpg": b"\xff\xd8",
    "shards/train-00000.arrow": b"shards of another program",
    f"{'0' * 64}.arrow": b"named by a digest",
    f"{'0' * 64}-train-00000.arrow": b"named as a shard",
    ".hidden": b"",
}


@pytest.fixture(autouse=True)
def one_thread() -> object:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_cache_among_files_of_others_leaves_them_alone(
    settings: list[str], sharded: Config, undisturbed: Callable[[int], Ending], s3: str, tmp_path: Path
) -> None:
    """The cache is so small that each shard has to make room."""
    folder = tmp_path / "disk"
    for name, content in FOREIGN.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "link").symlink_to(tmp_path)
    (folder / "lost+found").chmod(0o700)
    before = {path: path.stat().st_mtime_ns for path in (folder / name for name in FOREIGN)}
    config = on_s3(configured([*settings, "data.cache_gb=0.00005"], tmp_path), f"{s3}/foreign", folder)
    prepare(sharded.model_copy(update={"data": config.data}))
    Trainer(config).fit()
    Ending.of(config).assert_same(undisturbed(1))
    assert {name: (folder / name).read_bytes() for name in FOREIGN} == FOREIGN
    assert {path: path.stat().st_mtime_ns for path in before} == before
    ours = [path for path in folder.iterdir() if not any(name.startswith(path.name) for name in (*FOREIGN, "link"))]
    assert len(ours) == 1, "the cache has one folder of its own"
    assert ours[0].is_dir()


def test_permissions_taken_away_end_the_run_with_a_sentence_and_it_resumes_when_they_are_back(
    settings: list[str],
    sharded: Config,
    undisturbed: Callable[[int], Ending],
    s3: str,
    proxy: FaultyProxy,
    tmp_path: Path,
) -> None:
    config = on_s3(configured(settings, tmp_path), f"{s3}/forbidden", tmp_path / "cache")
    prepare(sharded.model_copy(update={"data": config.data}))
    trainer = Trainer(config)
    before_step(trainer, 4, lambda: setattr(proxy, "choose", lambda method, path: "forbid"))
    with pytest.raises(RefusedError, match=rf"^{config.train.storage}/run/\S+: .*refuses these credentials"):
        trainer.fit()
    proxy.choose = lambda method, path: ""
    Trainer(config).fit()
    Ending.of(config).assert_same(undisturbed(1))


@pytest.mark.parametrize("method", ["PUT", "GET", "HEAD"])
def test_one_permission_taken_away(
    method: str,
    settings: list[str],
    sharded: Config,
    undisturbed: Callable[[int], Ending],
    s3: str,
    proxy: FaultyProxy,
    tmp_path: Path,
) -> None:
    """Credentials that may only read, or only write, from some moment on.

    Without permission to read or list, an object that exists and one that does not look alike, so the error names both.
    """
    config = on_s3(configured(settings, tmp_path), f"{s3}/forbidden-{method}", tmp_path / "cache")
    prepare(sharded.model_copy(update={"data": config.data}))
    trainer = Trainer(config)
    refuse = lambda asked, path: "forbid" if asked == method else ""  # noqa: E731
    before_step(trainer, 4, lambda: setattr(proxy, "choose", refuse))
    try:
        trainer.fit()
    except (RefusedError, NotFoundError) as error:
        assert str(error).startswith(f"{config.train.storage}/run/")  # noqa: PT017
        assert "credentials" in str(error)  # noqa: PT017
    proxy.choose = lambda method, path: ""
    Trainer(config).fit()
    Ending.of(config).assert_same(undisturbed(1))

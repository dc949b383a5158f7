"""Releases on a local directory; every refusal changes nothing."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from s2s_ray import registry, storage
from s2s_ray.errors import CheckpointError, RegistryError
from s2s_ray.index import IndexInfo, ReferenceIndex
from s2s_ray.model.checkpoint import load_checkpoint, save_model
from s2s_ray.model.s2s import S2S
from tests.support.models import tiny_model

TINY = tiny_model(width=72)


def checkpoint(folder: Path, step: int) -> str:
    """A published checkpoint with a trainer's state beside the model."""
    torch.manual_seed(step)
    local, uri = folder / f"local-{step}", folder / f"checkpoint-{step}"
    save_model(S2S(TINY), {"run": "city", "step": step, "epoch": 1, "metrics": {}}, local)
    (local / "trainer.pt").write_bytes(b"state of the optimisers")
    storage.publish(local, str(uri))
    return str(uri)


def index(folder: Path, checkpoint_uri: str, count: int = 3) -> str:
    digest = registry.fingerprint(checkpoint_uri)
    info = IndexInfo(dimension=2, count=count, checkpoint=digest, dataset="d", dataset_digest="x", split="test")
    columns: dict[str, Any] = {"id": [str(row) for row in range(count)]}
    columns |= {name: [0.0] * count for name in ("latitude", "longitude", "easting", "northing")}
    table = pa.table({**columns, "zone": pa.array([1] * count, pa.int32())})
    uri = str(folder / f"index-{digest[:8]}-{count}")
    ReferenceIndex.build(info, np.ones((count, 2), np.float32), table).save(uri)
    return uri


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "registry")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> str:
    return checkpoint(tmp_path_factory.mktemp("first"), 10)


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> str:
    return checkpoint(tmp_path_factory.mktemp("second"), 20)


def test_a_release_holds_the_model_without_the_trainer(root: str, first: str, tmp_path: Path) -> None:
    release = registry.publish(root, "demo", first, index(tmp_path, first))
    digest = storage.sha256(Path(first) / "model.safetensors")
    assert (release.id, release.fingerprint, release.run, release.step) == (f"city-10-{digest[:8]}", digest, "city", 10)
    assert registry.fingerprint(release.checkpoint_uri) == digest
    assert storage.list_names(release.checkpoint_uri) == ["manifest.json", "meta.json", "model.safetensors"]
    theirs, ours = load_checkpoint(first).state_dict(), load_checkpoint(release.checkpoint_uri).state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    assert release.index_uri is not None
    assert len(ReferenceIndex.load(release.index_uri)) == 3
    assert registry.list_releases(root, "demo") == [release]


def test_publishing_again_changes_nothing(root: str, first: str, tmp_path: Path) -> None:
    release = registry.publish(root, "demo", first)
    assert release.index_uri is None
    assert registry.publish(root, "demo", first) == release
    with_index = registry.publish(root, "demo", first, index(tmp_path, first))
    assert with_index.created == release.created
    assert with_index.index_uri is not None
    assert registry.publish(root, "demo", first) == with_index


def test_publication_cut_short_is_not_a_release_and_is_repaired(root: str, first: str) -> None:
    release = registry.publish(root, "demo", first)
    storage.delete(storage.join(release.uri, "release.json"))
    assert registry.list_releases(root, "demo") == []
    with pytest.raises(RegistryError, match="has no releases of 'demo'; it holds: demo"):
        registry.resolve(root, "demo", release.id)
    assert registry.publish(root, "demo", first).id == release.id


def test_promote_resolve_and_roll_back(root: str, first: str, second: str, tmp_path: Path) -> None:
    assert registry.current(root, "demo") is None
    one = registry.publish(root, "demo", first, index(tmp_path, first))
    two = registry.publish(root, "demo", second, index(tmp_path, second))
    with pytest.raises(RegistryError, match=f"no current release; promote one of: {one.id}, {two.id}"):
        registry.resolve(root, "demo")
    for release in (one, two, two):
        assert registry.promote(root, "demo", release.id) == release
        assert registry.current(root, "demo") == release.id
        assert registry.resolve(root, "demo") == release
    assert registry.resolve(root, "demo", one.id) == one
    assert registry.rollback(root, "demo") == one == registry.resolve(root, "demo")
    with pytest.raises(RegistryError, match=rf"no earlier release to go back to \(current: {one.id}\)"):
        registry.rollback(root, "demo")
    assert registry.resolve(root, "demo") == one


def test_a_release_without_an_index_is_not_promoted(root: str, first: str, tmp_path: Path) -> None:
    release = registry.publish(root, "demo", first)
    with pytest.raises(RegistryError, match=r"has no index.*s2s build-index --checkpoint"):
        registry.promote(root, "demo", release.id)
    assert not storage.exists(storage.join(root, "demo", "current.json"))
    registry.attach_index(root, "demo", release.id, index(tmp_path, first))
    assert registry.promote(root, "demo", release.id).index_uri is not None


def test_an_index_of_another_checkpoint_is_refused(root: str, first: str, second: str, tmp_path: Path) -> None:
    wrong = index(tmp_path, second)
    with pytest.raises(RegistryError, match=f"built with checkpoint {registry.fingerprint(second)[:8]}, not"):
        registry.publish(root, "demo", first, wrong)
    assert registry.list_releases(root, "demo") == []
    release = registry.publish(root, "demo", first)
    with pytest.raises(RegistryError, match="build it with this one"):
        registry.attach_index(root, "demo", release.id, wrong)


def test_an_index_is_not_replaced_but_may_be_released_under_another_id(root: str, first: str, tmp_path: Path) -> None:
    small, large = index(tmp_path, first, 3), index(tmp_path, first, 4)
    release = registry.publish(root, "demo", first, small)
    assert registry.attach_index(root, "demo", release.id, small) == release
    with pytest.raises(RegistryError, match="already has another index"):
        registry.attach_index(root, "demo", release.id, large)
    other = registry.publish(root, "demo", first, large, release="city-10-wide")
    assert {item.id for item in registry.list_releases(root, "demo")} == {release.id, other.id}


def test_an_id_of_another_checkpoint_is_refused(root: str, first: str, second: str) -> None:
    registry.publish(root, "demo", first, release="best")
    with pytest.raises(RegistryError, match="release 'best' of 'demo' holds checkpoint"):
        registry.publish(root, "demo", second, release="best")


def test_errors_name_what_the_registry_holds(root: str, first: str, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=f"registry {re.escape(root)} has no releases of 'demo'; it holds: nothing"):
        registry.resolve(root, "demo")
    release = registry.publish(root, "demo", first)
    with pytest.raises(RegistryError, match="has no releases of 'other'; it holds: demo"):
        registry.resolve(root, "other")
    with pytest.raises(RegistryError, match=f"no release 'city-99'; it has: {release.id}"):
        registry.promote(root, "demo", "city-99")
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        registry.publish(root, "demo", str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="is not a checkpoint: it has entries"):
        registry.publish(root, "demo", index(tmp_path, first))


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden"])
def test_names_stay_inside_the_registry(root: str, first: str, name: str) -> None:
    with pytest.raises(RegistryError, match="expected letters, digits"):
        registry.publish(root, name, first)
    with pytest.raises(RegistryError, match="expected letters, digits"):
        registry.resolve(root, "demo", name)


def test_the_best_release_is_promoted_only_if_it_is_better(root: str, tmp_path: Path) -> None:
    def published(step: int, recall: float | None, indexed: bool = True) -> str:
        torch.manual_seed(step)
        metrics = {} if recall is None else {"recall_at_1": recall}
        save_model(S2S(TINY), {"run": "city", "step": step, "metrics": metrics}, tmp_path / f"m-{step}")
        uri = str(tmp_path / f"c-{step}")
        storage.publish(tmp_path / f"m-{step}", uri)
        return registry.publish(root, "demo", uri, index(tmp_path, uri) if indexed else None).id

    def best() -> str | None:
        return registry.promote_best(root, "demo", "recall_at_1")

    first = published(1, 0.4)
    assert best() == first, "without a current release the best one is promoted"
    published(2, 0.9, indexed=False)
    published(3, None)
    assert best() == first
    better = published(4, 0.6)
    assert best() == best() == better
    assert registry.lineage(root, "demo") == (better, first)
    published(5, 0.5)
    assert best() == better


def test_concurrent_promotions_are_applied_one_after_the_other(root: str, first: str, second: str) -> None:
    for checkpoint_uri in (first, second):
        registry.publish(root, "demo", checkpoint_uri, index(Path(checkpoint_uri).parent, checkpoint_uri))
    ids = [release.id for release in registry.list_releases(root, "demo")]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda turn: registry.promote(root, "demo", ids[turn % 2]), range(24)))
    history = registry.lineage(root, "demo")
    assert len(history) <= 24
    assert all(one != other for one, other in pairwise(history)), "every change saw the one before"


def test_reading_a_release_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    root = str(Path(__file__).parents[1] / "fixtures" / "written_by_0.1.0" / "registry")
    with caplog.at_level("WARNING"):
        registry.resolve(root, "city")
    assert not caplog.records

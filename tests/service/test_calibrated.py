"""Calibrations: found with their release, described, and used by the search."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from s2s_ray import registry
from s2s_ray.errors import RegistryError, StorageError
from s2s_ray.index import ReferenceIndex
from s2s_ray.localization import Turned
from s2s_ray.service.replicas.replica import ReleaseSlots
from s2s_ray.service.replicas.search import Search
from s2s_ray.service.rollout.releases import ReleaseKey, locate
from s2s_ray.service.rollout.rollout import Rollout
from s2s_ray.service.rollout.served_release import resolve
from s2s_ray.service.settings import ServeArgs
from tests.support.calibrations import calibration
from tests.support.stored_model import TINY, stored_model


def by_registry(folder: Path, *, calibrated: bool) -> ServeArgs:
    """Publish a release, calibrated or not, and return settings that serve it."""
    checkpoint, index = stored_model(folder)
    root = str(folder / "registry")
    found = calibration(registry.fingerprint(checkpoint)) if calibrated else None
    release = registry.publish(root, "demo", checkpoint, index, calibration=found)
    registry.promote(root, "demo", release.id)
    return ServeArgs(registry=root, name="demo")


def searched(key: ReleaseKey) -> dict[str, object]:
    """Return the fix that a search replica makes for some descriptor."""
    return fix_of(replica(), key)


def replica() -> Search:
    """Return a search replica that holds nothing yet."""
    search = Search.__new__(Search)
    search._hold()
    return search


def fix_of(search: Search, key: ReleaseKey) -> dict[str, object]:
    descriptor = np.full((1, TINY.descriptor_size), TINY.descriptor_size**-0.5, np.float32)
    picture = Turned(descriptor, np.array([0.0]))
    tree: dict[str, dict[str, object]] = asyncio.run(search(key, [picture], 1, None, True)).result
    assert tree["surface"]["points"] == [{"latitude": 1.0, "longitude": 2.0, "probability": 1.0}]
    return tree["fix"]


class Direct:
    """A deployment of one replica in this process."""

    def __init__(self, replica: Search) -> None:
        self._replica = replica

    def broadcast(self, method: str, *args: Any) -> Any:
        async def results_async(**_options: Any) -> list[Any]:
            return [await getattr(self._replica, method)(*args)]

        return SimpleNamespace(results_async=results_async)


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_release_has_its_calibration(tmp_path: Path, calibrated: bool) -> None:
    args = by_registry(tmp_path, calibrated=calibrated)
    release = resolve(args)
    assert release.description.calibrated == calibrated
    fix = searched(release.key)
    assert fix["calibrated"] == calibrated
    assert [fix[name] is not None for name in ("radius_m", "radius_95_m", "confidence", "in_region")] == [
        calibrated
    ] * 4


def test_a_checkpoint_by_uri_has_the_calibration_of_the_settings(tmp_path: Path) -> None:
    checkpoint, index = stored_model(tmp_path)
    path = str(tmp_path / "calibration.json")
    plain = ServeArgs(checkpoint=checkpoint, index=index)
    assert locate(plain).key.calibration_uri is None
    args = plain.model_copy(update={"calibration": path})
    with pytest.raises(StorageError, match=r"calibration\.json does not exist"):
        locate(args)
    calibration("0" * 64).write(path)
    with pytest.raises(RegistryError, match="was made with checkpoint 00000000"):
        locate(args)
    calibration(registry.fingerprint(checkpoint)).write(path)
    assert searched(locate(args).key)["calibrated"]
    (tmp_path / "calibration.json").write_text("{")
    with pytest.raises(StorageError, match=r"calibration\.json"):
        locate(args)


def test_a_calibration_that_is_added_to_the_served_release_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = by_registry(tmp_path, calibrated=False)
    loaded: list[str] = []
    load = ReferenceIndex.load

    def counted(uri: str) -> ReferenceIndex:
        loaded.append(uri)
        return load(uri)

    monkeypatch.setattr(ReferenceIndex, "load", counted)
    search, changes = replica(), list[str]()
    rollout = Rollout(args, {"search": Direct(search)}, lambda release, _previous: changes.append(release.id))

    def step() -> tuple[bool, object]:
        asyncio.run(rollout.step())
        assert rollout.current is not None
        fix = fix_of(search, rollout.current.key)
        return rollout.current.description.calibrated, fix["calibrated"]

    assert [step(), step()] == [(False, False)] * 2
    assert rollout.current is not None
    before = rollout.current
    registry.attach_calibration(
        str(args.registry), "demo", before.id, calibration(registry.fingerprint(before.key.checkpoint_uri))
    )
    assert [step(), step()] == [(True, True)] * 2
    assert not fix_of(search, before.key)["calibrated"], "a request that carries the stamp from before"
    assert (changes, len(loaded)) == ([before.id], 1), "nothing is loaded again, and the release is the same one"


def test_a_damaged_calibration_keeps_the_release_as_it_was(tmp_path: Path) -> None:
    args = by_registry(tmp_path, calibrated=False)
    rollout = Rollout(args, {"search": Direct(replica())}, lambda _release, _previous: None)
    asyncio.run(rollout.step())
    assert rollout.current is not None
    served = rollout.current
    path = Path(registry.resolve(str(args.registry), "demo", served.id).calibration_uri)
    path.write_text("{")
    asyncio.run(rollout.step())
    assert rollout.current is served
    assert "calibration.json" in str(rollout.fault)
    path.unlink()
    asyncio.run(rollout.step())
    assert rollout.fault is None


def test_a_pinned_release_gets_its_calibration(tmp_path: Path) -> None:
    args = by_registry(tmp_path, calibrated=False)
    pinned = args.model_copy(update={"release": resolve(args).id})
    rollout = Rollout(pinned, {"search": Direct(replica())}, lambda _release, _previous: None)
    asyncio.run(rollout.step())
    assert rollout.current is not None
    found = calibration(registry.fingerprint(rollout.current.key.checkpoint_uri))
    registry.attach_calibration(str(args.registry), "demo", rollout.current.id, found)
    asyncio.run(rollout.step())
    assert rollout.current.description.calibrated


def test_a_model_does_not_depend_on_the_calibration() -> None:
    loaded: list[ReleaseKey] = []

    async def scenario() -> None:
        slots = ReleaseSlots(lambda key: loaded.append(key), ReleaseKey.uncalibrated)
        for uri in (None, "calibration.json"):
            await slots.get(ReleaseKey("a", "checkpoint", "index", uri))

    asyncio.run(scenario())
    assert loaded == [ReleaseKey("a", "checkpoint", "index")]

"""Calibrations: found with their release, described, and used by the search."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from s2s_ray import registry
from s2s_ray.errors import RegistryError, StorageError
from s2s_ray.localization import Turned
from s2s_ray.service.replicas.replica import ReleaseSlots
from s2s_ray.service.replicas.search import Search
from s2s_ray.service.rollout.releases import ReleaseKey, locate
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
    search = Search.__new__(Search)
    search._slots = ReleaseSlots(search._load)
    descriptor = np.full((1, TINY.descriptor_size), TINY.descriptor_size**-0.5, np.float32)
    picture = Turned(descriptor, np.array([0.0]))
    tree: dict[str, dict[str, object]] = asyncio.run(search(key, [picture], 1, None, True)).result
    assert tree["surface"]["points"] == [{"latitude": 1.0, "longitude": 2.0, "probability": 1.0}]
    return tree["fix"]


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

"""Calibrations of releases: written once, and read with the release."""

from __future__ import annotations

from pathlib import Path

import pytest

from s2s_ray import registry, storage
from s2s_ray.errors import DamagedError, RegistryError
from tests.support.calibrations import calibration
from tests.support.small_releases import NAME, checkpoint, index


@pytest.fixture
def root(tmp_path: Path) -> str:
    """A registry, and two checkpoints beside it."""
    for step in (1, 2):
        index(str(tmp_path / f"index-{step}"), checkpoint(str(tmp_path / f"checkpoint-{step}"), step), "only")
    return str(tmp_path / "registry")


def publish(root: str, step: int = 1, release: str = "one", error: float | None = 0.05) -> registry.Release:
    folder = Path(root).parent
    uri = str(folder / f"checkpoint-{step}")
    made = None if error is None else calibration(registry.fingerprint(uri), calibration_error=error)
    return registry.publish(root, NAME, uri, str(folder / f"index-{step}"), release=release, calibration=made)


def test_it_is_read_with_the_release(root: str) -> None:
    release = publish(root)
    assert registry.read_calibration(release) == calibration(release.fingerprint)
    assert registry.read_calibration(registry.resolve(root, NAME, "one")) == calibration(release.fingerprint)
    assert publish(root) == release, "publishing the same again changes nothing"


def test_a_release_without_one_stays_valid_and_gets_one_later(root: str) -> None:
    release = publish(root, error=None)
    assert registry.read_calibration(release) is None
    assert registry.promote(root, NAME, "one").id == "one"
    made = calibration(release.fingerprint)
    for _ in range(2):
        assert registry.attach_calibration(root, NAME, "one", made).id == "one"
        assert registry.read_calibration(release) == made
    assert publish(root, error=None) == publish(root) == release


def test_another_one_is_refused(root: str) -> None:
    release = publish(root)
    other = calibration(release.fingerprint, calibration_error=0.3)
    refused = r"release 'one' of 'city' already has another calibration"
    with pytest.raises(RegistryError, match=refused):
        registry.attach_calibration(root, NAME, "one", other)
    with pytest.raises(RegistryError, match=refused):
        publish(root, error=0.3)
    assert registry.read_calibration(release) == calibration(release.fingerprint)


def test_that_of_another_checkpoint_is_refused_before_anything_is_written(root: str) -> None:
    folder = Path(root).parent
    other = calibration(registry.fingerprint(str(folder / "checkpoint-2")))
    with pytest.raises(RegistryError, match=r"^the calibration was made with checkpoint \w{8}, not \w{8}"):
        registry.publish(root, NAME, str(folder / "checkpoint-1"), calibration=other)
    assert registry.list_releases(root, NAME) == []
    release = publish(root, error=None)
    with pytest.raises(RegistryError, match="the calibration was made with checkpoint"):
        registry.attach_calibration(root, NAME, "one", other)
    storage.write_bytes(release.calibration_uri, other.to_bytes())
    with pytest.raises(RegistryError, match=f"^{release.calibration_uri} was made with checkpoint"):
        registry.read_calibration(release)


def test_a_damaged_one_is_named(root: str) -> None:
    release = publish(root)
    storage.write_bytes(release.calibration_uri, b"{")
    with pytest.raises(DamagedError, match=f"^{release.calibration_uri} "):
        registry.read_calibration(release)


def test_a_release_that_is_not_there(root: str) -> None:
    publish(root)
    with pytest.raises(RegistryError, match="no release 'two'; it has: one"):
        registry.attach_calibration(root, NAME, "two", calibration("0" * 64))

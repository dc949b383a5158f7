"""The floor of a name: what a release must reach to become the current one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from s2s_ray import registry, storage
from s2s_ray.errors import BelowFloorError, DamagedError, InputError, RegistryError
from tests.support.calibrations import calibration
from tests.support.small_releases import NAME, checkpoint, index

RECALLS = {1: 0.4, 2: 0.6, 3: None, 4: 0.5}
ERRORS = {1: 0.05, 2: 0.2, 3: 0.05, 4: None}


@pytest.fixture
def root(tmp_path: Path) -> str:
    """A registry of four releases with different figures, one of them without recall and one without calibration."""
    root = str(tmp_path / "registry")
    for step, recall in RECALLS.items():
        uri = checkpoint(str(tmp_path / f"checkpoint-{step}"), step, recall=recall)
        built, error = index(str(tmp_path / f"index-{step}"), uri, "only"), ERRORS[step]
        made = None if error is None else calibration(registry.fingerprint(uri), calibration_error=error)
        registry.publish(root, NAME, uri, built, release=f"r{step}", calibration=made)
    return root


def refused(root: str, release: str) -> str:
    with pytest.raises(BelowFloorError) as raised:
        registry.promote(root, NAME, release)
    assert raised.value.http_status == 409
    message = str(raised.value)
    assert message.startswith(f"registry {root}: release {release!r} of 'city' is not promoted: ")
    return message


def test_without_a_floor_everything_is_promoted(root: str) -> None:
    assert registry.read_floor(root, NAME) == registry.Floor()
    for step in RECALLS:
        assert registry.promote(root, NAME, f"r{step}").id == f"r{step}"


def test_recall(root: str) -> None:
    registry.set_floor(root, NAME, recall=0.5)
    assert "its validation R@1 is 40.0%, below the floor of 50.0%" in refused(root, "r1")
    assert "it has no validation recall, and the floor is R@1 50.0%" in refused(root, "r3")
    assert registry.current(root, NAME) is None
    for release in ("r2", "r4"):
        assert registry.promote(root, NAME, release).id == release, "at the floor is not below it"


def test_calibration_error(root: str) -> None:
    registry.set_floor(root, NAME, calibration_error=0.15)
    assert "its calibration error is 0.200, above the 0.150 that the floor allows" in refused(root, "r2")
    assert "it has no calibration, and the floor is a calibration error of 0.150" in refused(root, "r4")
    registry.promote(root, NAME, "r1")
    registry.set_floor(root, NAME, recall=0.5, calibration_error=0.15)
    assert "R@1 is 40.0%" in refused(root, "r1")
    assert registry.current(root, NAME) == "r1", "what is current stays"


def test_force_and_the_way_back(root: str) -> None:
    registry.promote(root, NAME, "r1")
    registry.promote(root, NAME, "r2")
    registry.set_floor(root, NAME, recall=0.9)
    assert registry.promote(root, NAME, "r3", force=True).id == "r3"
    assert registry.rollback(root, NAME).id == "r2"
    assert registry.rollback(root, NAME).id == "r1"


def test_the_best_is_the_best_of_those_that_reach_it(root: str, caplog: pytest.LogCaptureFixture) -> None:
    registry.set_floor(root, NAME, recall=0.3, calibration_error=0.15)
    with caplog.at_level("WARNING"):
        assert registry.promote_best(root, NAME, "recall_at_1") == "r1"
    assert "release r2 of city is not promoted: its calibration error is 0.200" in caplog.text
    registry.set_floor(root, NAME)
    assert registry.promote_best(root, NAME, "recall_at_1") == "r2"
    registry.set_floor(root, NAME, recall=0.99)
    assert registry.promote_best(root, NAME, "recall_at_1") == "r2", "none reaches it"


def test_a_damaged_calibration_does_not_reach_a_floor_of_it(root: str) -> None:
    storage.write_bytes(registry.resolve(root, NAME, "r1").calibration_uri, b"{")
    registry.set_floor(root, NAME, calibration_error=0.5)
    assert registry.promote_best(root, NAME, "recall_at_1") == "r2"
    with pytest.raises(DamagedError, match=r"calibration\.json"):
        registry.promote(root, NAME, "r1")


@pytest.mark.parametrize("value", [-0.1, 1.5, 50.0, float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["recall", "calibration_error"])
def test_values_out_of_range_are_named(root: str, field: str, value: float) -> None:
    with pytest.raises(InputError, match=f"^{field}={value}: expected 0 to 1$"):
        registry.set_floor(root, NAME, **{field: value})
    assert registry.read_floor(root, NAME) == registry.Floor()


def test_the_file(root: str) -> None:
    registry.set_floor(root, NAME, recall=0.5)
    path = Path(root) / NAME / registry.FLOOR_FILE
    assert json.loads(path.read_text()) == {"format": 1, "recall": 0.5, "calibration_error": None}
    path.write_text('{"format": 2}')
    with pytest.raises(RegistryError, match=f"^{path} has format 2"):
        registry.promote(root, NAME, "r2")
    path.write_text("[]")
    with pytest.raises(DamagedError, match=f"^{path} "):
        registry.promote(root, NAME, "r2")
    assert registry.promote(root, NAME, "r2", force=True).id == "r2"

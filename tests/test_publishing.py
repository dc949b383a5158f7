"""Publication with a calibration: what becomes of it where there are no pictures to calibrate with."""

from __future__ import annotations

from pathlib import Path

import pytest

from s2s_ray import publishing, registry, storage
from s2s_ray.errors import DatasetError, S2SError, StorageError
from s2s_ray.localization import Calibration
from s2s_ray.publishing import publish_calibrated
from tests.support.calibrations import calibration
from tests.support.stored_model import stored_model


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Calibration | Exception]:
    """What each calibration of a checkpoint gives, in turn."""
    results: list[Calibration | Exception] = []

    def calibrate_checkpoint(embedder: object, checkpoint: str) -> Calibration:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(publishing, "calibrate_checkpoint", calibrate_checkpoint)
    return results


def test_the_calibration_is_stored_and_made_once(tmp_path: Path, made: list[Calibration | Exception]) -> None:
    checkpoint, index = stored_model(tmp_path)
    root, mine = str(tmp_path / "registry"), calibration(registry.fingerprint(checkpoint))
    made.append(mine)
    release = publish_calibrated(root, "city", checkpoint, index)
    assert registry.read_calibration(release) == mine
    assert publish_calibrated(root, "city", checkpoint, index) == release, "without calibrating again"


def test_a_publication_that_was_cut_short_keeps_its_calibration(
    tmp_path: Path, made: list[Calibration | Exception]
) -> None:
    """The next one does not make another, which would be refused, and completes the release."""
    checkpoint, index = stored_model(tmp_path)
    root, mine = str(tmp_path / "registry"), calibration(registry.fingerprint(checkpoint))
    made.append(mine)
    release = publish_calibrated(root, "city", checkpoint, index)
    storage.delete(storage.join(release.uri, "release.json"))
    assert registry.list_releases(root, "city") == []
    made.append(mine.model_copy(update={"tiles": mine.tiles + 1}))
    again = publish_calibrated(root, "city", checkpoint, index)
    assert (again.id, registry.read_calibration(again)) == (release.id, mine)
    assert len(made) == 1


@pytest.mark.parametrize("error", [DatasetError("too few"), StorageError("gone")])
def test_a_release_without_pictures_to_calibrate_with(
    tmp_path: Path, made: list[Calibration | Exception], error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint, index = stored_model(tmp_path)
    root, mine = str(tmp_path / "registry"), calibration(registry.fingerprint(checkpoint))
    made += [error, mine]
    release = publish_calibrated(root, "city", checkpoint, index)
    assert registry.read_calibration(release) is None
    assert f"release {release.id} is published without a calibration" in caplog.text
    assert str(error) in caplog.text
    assert registry.read_calibration(publish_calibrated(root, "city", checkpoint, index)) == mine, "added later"


@pytest.mark.parametrize("wrong", ["name", "index"])
def test_what_is_wrong_is_found_before_the_calibration(
    tmp_path: Path, made: list[Calibration | Exception], wrong: str
) -> None:
    checkpoint, index = stored_model(tmp_path)
    name, index = ("a/b", index) if wrong == "name" else ("city", checkpoint)
    with pytest.raises(S2SError, match="expected letters" if wrong == "name" else "index"):
        publish_calibrated(str(tmp_path / "registry"), name, checkpoint, index)
    assert made == []
    assert not (tmp_path / "registry").exists()


def test_a_checkpoint_that_names_no_data_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint, index = stored_model(tmp_path)
    release = publish_calibrated(str(tmp_path / "registry"), "city", checkpoint, index)
    assert registry.read_calibration(release) is None
    assert f"checkpoint {checkpoint} does not say which data set" in caplog.text

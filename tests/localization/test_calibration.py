"""The file of a calibration, and the parameters between its kinds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from s2s_ray.errors import DamagedError, RegistryError
from s2s_ray.localization.calibration import Calibration, Parameters, mean_of
from tests.support.calibrations import kind, reliability

CALIBRATION = Calibration(
    checkpoint="ab" * 32,
    dataset="s3://bucket/data",
    dataset_digest="cd",
    tiles=1200,
    spacing_m=8.0,
    kinds=(
        kind(360.0, True, scale=60.0, outside=10.0),
        kind(90.0, True, scale=30.0, outside=4.0),
        kind(180.0, True, scale=40.0, outside=6.0),
        kind(360.0, False, scale=50.0, outside=20.0),
        kind(90.0, False, scale=20.0, outside=2.0),
    ),
)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = str(tmp_path / "calibration.json")
    CALIBRATION.write(path)
    assert Calibration.read(path) == CALIBRATION
    assert Calibration.read(path).to_bytes() == CALIBRATION.to_bytes()


@pytest.mark.parametrize(
    ("fov", "unknown", "scale", "outside"),
    [
        (360.0, 0.0, 60.0, 10.0),
        (180.0, 0.0, 40.0, 6.0),
        (135.0, 0.0, 35.0, 5.0),
        (270.0, 0.0, 50.0, 8.0),
        (20.0, 0.0, 30.0, 4.0),
        (225.0, 1.0, 35.0, 11.0),
        (360.0, 0.25, 57.5, 12.5),
    ],
)
def test_parameters_between_the_kinds(fov: float, unknown: float, scale: float, outside: float) -> None:
    found = CALIBRATION.parameters(fov, unknown)
    assert (found.scale, found.outside) == pytest.approx((scale, outside))
    assert (*found.region, *found.confidence) == pytest.approx((0.0, 0.6, 0.0, 0.0, 0.0, 1.0))


def test_one_kind_of_heading_serves_for_the_other() -> None:
    known = Calibration(kinds=CALIBRATION.kinds[:3])
    assert known.parameters(180.0, 1.0) == known.parameters(180.0)


def test_the_mean_over_pictures() -> None:
    found = mean_of([Parameters(scale=value, confidence=(value, 1.0, 0.0)) for value in (10.0, 20.0, 60.0)])
    assert (found.scale, found.confidence[0]) == pytest.approx((30.0, 30.0))


def test_the_calibration_error_is_the_worst_of_the_whole_horizon() -> None:
    kinds = tuple(
        kind(fov, known).model_copy(update={"reliability": reliability(calibration_error=error)})
        for fov, known, error in ((360.0, True, 0.02), (360.0, False, 0.07), (70.0, True, 0.3))
    )
    assert Calibration(kinds=kinds).calibration_error == 0.07
    assert Calibration(kinds=kinds[2:]).calibration_error == 0.3


def test_that_of_another_checkpoint_is_refused() -> None:
    CALIBRATION.require("ab" * 32)
    with pytest.raises(RegistryError, match=r"^it was made with checkpoint abababab, not 12121212: run"):
        CALIBRATION.require("12" * 32, "it")


def test_damaged_files_and_those_of_a_newer_version(tmp_path: Path) -> None:
    path, tree = tmp_path / "calibration.json", CALIBRATION.tree()
    for damaged in ("{", "[]", "{}", json.dumps({**tree, "kinds": []}), json.dumps({**tree, "kinds": [{"fov": "x"}]})):
        path.write_text(damaged)
        with pytest.raises(DamagedError, match=f"^{path} "):
            Calibration.read(str(path))
    path.write_text(json.dumps({**tree, "format": 2}))
    with pytest.raises(RegistryError, match=f"^{path} has format 2"):
        Calibration.read(str(path))

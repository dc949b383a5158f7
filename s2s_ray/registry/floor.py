"""The floor of a name: what a release must reach on the validation data to become the current one.

`REGISTRY/NAME/floor.json` holds it. It is read when a release is promoted, so it holds for releases that were published
before it as well; the current release stays, and so does the way back to former ones.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from s2s_ray import storage
from s2s_ray.errors import BelowFloorError, InputError, NotFoundError, RegistryError, S2SError
from s2s_ray.model.checkpoint_meta import read_meta
from s2s_ray.registry.attachments import read_calibration
from s2s_ray.registry.releases import Release, name_uri
from s2s_ray.storage.documents import Document

FLOOR_FILE = "floor.json"
RECALL = "recall_at_1"


class Floor(Document):
    """The content of `floor.json`; None asks for nothing."""

    ERROR: ClassVar[type[S2SError]] = RegistryError
    NOUN: ClassVar[str] = "floor of a name"

    recall: float | None = None
    """Smallest recall at 1 on the validation data, 0 to 1."""
    calibration_error: float | None = None
    """Largest expected calibration error of the confidence, 0 to 1."""

    def missed(self, release: Release) -> str | None:
        """Say what a release does not reach, with the figure and the floor; None if it reaches everything.

        Raises:
            RegistryError, StorageError: its metadata or its calibration cannot be read.
        """
        if self.recall is not None:
            recall = _number((read_meta(release.checkpoint_uri).get("metrics") or {}).get(RECALL))
            if recall is None:
                return f"it has no validation recall, and the floor is R@1 {self.recall:.1%}"
            if recall < self.recall:
                return f"its validation R@1 is {recall:.1%}, below the floor of {self.recall:.1%}"
        if self.calibration_error is not None:
            calibration = read_calibration(release)
            if calibration is None:
                return f"it has no calibration, and the floor is a calibration error of {self.calibration_error:.3f}"
            if calibration.calibration_error > self.calibration_error:
                return (
                    f"its calibration error is {calibration.calibration_error:.3f}, above the "
                    f"{self.calibration_error:.3f} that the floor allows"
                )
        return None


def set_floor(
    registry: str, name: str, *, recall: float | None = None, calibration_error: float | None = None
) -> Floor:
    """Write the floor of a name in the place of any former one; without values nothing is asked for.

    Args:
        recall: smallest recall at 1 on the validation data, 0 to 1.
        calibration_error: largest expected calibration error, 0 to 1.

    Raises:
        InputError: a value outside of 0 to 1.
        RegistryError: a name that is not letters, digits, `.`, `_` and `-`.
        StorageError: the file cannot be written.
    """
    for field, value in (("recall", recall), ("calibration_error", calibration_error)):
        if value is not None and not 0 <= value <= 1:
            raise InputError(f"{field}={value}: expected 0 to 1")
    floor = Floor(recall=recall, calibration_error=calibration_error)
    floor.write(_uri(registry, name))
    return floor


def read_floor(registry: str, name: str) -> Floor:
    """Return the floor of a name; one that asks for nothing if none was set. Raises RegistryError, StorageError."""
    try:
        return Floor.read(_uri(registry, name))
    except NotFoundError:
        return Floor()


def require_floor(registry: str, release: Release) -> None:
    """Refuse a release that does not reach the floor of its name.

    Raises:
        BelowFloorError: it does not.
        RegistryError, StorageError: the floor, or what it is about, cannot be read.
    """
    missed = read_floor(registry, release.name).missed(release)
    if missed is not None:
        raise BelowFloorError(
            f"registry {registry}: release {release.id!r} of {release.name!r} is not promoted: {missed}. Promote "
            "another one, change the floor with `s2s checkpoint floor`, or promote it with --force"
        )


def _uri(registry: str, name: str) -> str:
    return storage.join(name_uri(registry, name), FLOOR_FILE)


def _number(value: Any) -> float | None:
    """Return a finite number; None for anything else."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

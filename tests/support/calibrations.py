"""Calibrations that were not fitted to anything."""

from __future__ import annotations

from s2s_ray.localization.calibration import Calibration, Kind, Reliability


def reliability(**changes: float) -> Reliability:
    """Return the figures of some calibration."""
    return Reliability(
        **{
            "pictures": 200,
            "right": 0.6,
            "bins": ((0.2, 0.25, 80), (0.9, 0.85, 120)),
            "calibration_error": 0.05,
            "risk_coverage": 0.2,
            "auroc_right": 0.8,
            "auroc_region": 0.75,
            "within_68": 0.67,
            "within_95": 0.94,
            "heading_within": None,
            "median_m": 6.0,
            **changes,
        }
    )


def kind(fov: float, heading_known: bool, **changes: float) -> Kind:
    """Return a calibration that suits the landscape of the tests."""
    return Kind(
        **{
            "fov": fov,
            "heading_known": heading_known,
            "scale": 50.0,
            "outside": 20.0 if heading_known else 18.0,
            "blur_m": 1.0,
            "mass_68": 0.68,
            "mass_95": 0.95,
            "heading_factor": 1.0,
            "region": (0.0, 0.6, 0.0),
            "confidence": (0.0, 0.0, 1.0),
            "reliability": reliability(),
            **changes,
        }
    )


def calibration(checkpoint: str, *, calibration_error: float = 0.05) -> Calibration:
    """Return the calibration of a checkpoint, given its fingerprint."""
    figures = reliability(calibration_error=calibration_error)
    kinds = tuple(kind(360.0, known).model_copy(update={"reliability": figures}) for known in (True, False))
    return Calibration(checkpoint=checkpoint, dataset="data", tiles=100, kinds=kinds)

"""The places of a data set's pairs, and the rule by which metres between them are measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.schema import Metres, Record
from s2s_ray.geo.places import Places
from s2s_ray.geo.utm import with_degrees


def metres_rule(dataset: PairDataset) -> Metres:
    """Return the rule for a data set: `utm` for CVACT, which is published in one zone, otherwise `geodesic`."""
    return "utm" if dataset.info.source.get("kind") == "cvact" else "geodesic"


def places_of(dataset: PairDataset, rule: Metres | None = None) -> Places:
    """Return the places of all pairs of a split.

    Args:
        dataset: the split.
        rule: default: `metres_rule`.
    """
    if (rule or metres_rule(dataset)) == "utm":
        return Places(dataset.positions, dataset.zones)
    return Places.on_ellipsoid(degrees_of(dataset))


def degrees_of(dataset: PairDataset) -> NDArray[np.float64]:
    """Return the latitude and longitude of all pairs of a split in degrees, N 2; NaN if unknown."""
    return with_degrees(dataset.latlon, dataset.positions, dataset.zones)


def latlon_of(records: Sequence[Record]) -> NDArray[np.float64]:
    """Return the latitude and longitude of records in degrees, N 2; NaN if unknown."""
    degrees = np.array([(record.latitude, record.longitude) for record in records], np.float64)
    positions = np.array([(record.easting, record.northing) for record in records], np.float64)
    return with_degrees(degrees, positions, np.array([record.zone or 0 for record in records], np.int64))

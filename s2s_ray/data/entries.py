"""The tiles of a data set as a table: one row per pair, with its id and position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
from numpy.typing import NDArray

if TYPE_CHECKING:  # a process that only searches an index must not import PyTorch through the data set
    import numpy as np

    from s2s_ray.data.dataset import PairDataset

COLUMNS = pa.schema(
    [
        ("id", pa.string()),
        ("latitude", pa.float64()),
        ("longitude", pa.float64()),
        ("easting", pa.float64()),
        ("northing", pa.float64()),
        ("zone", pa.int32()),
    ]
)


def entries_table(dataset: PairDataset) -> pa.Table:
    """Return a row of `COLUMNS` for each pair, in the order of the split; unknown values are null."""
    columns = {
        "id": list(dataset.ids),
        "latitude": _nullable(dataset.latlon[:, 0]),
        "longitude": _nullable(dataset.latlon[:, 1]),
        "easting": _nullable(dataset.positions[:, 0]),
        "northing": _nullable(dataset.positions[:, 1]),
        "zone": [int(zone) or None for zone in dataset.zones],
    }
    return pa.table(columns, schema=COLUMNS)


def _nullable(values: NDArray[np.float64]) -> Sequence[float | None]:
    return [None if math.isnan(value) else float(value) for value in values]

"""A landscape without images: descriptors that change smoothly with the place and turn with the heading."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from s2s_ray.geo.offsets import moved
from s2s_ray.index import COLUMNS, IndexInfo, ReferenceIndex
from s2s_ray.localization import Turned

ORIGIN = (47.05, 8.3)
COLUMNS_OF_A_VIEW = 12
_PER_COLUMN = 6


class Landscape:
    """Random smooth functions of the place, six for each of twelve directions.

    A picture whose middle column looks `n` columns clockwise of north has the descriptor of the place with its columns
    rolled by -n; noise makes it unlike the tile.
    """

    def __init__(self, seed: int = 0, *, correlation_m: float = 12.0) -> None:
        random = np.random.default_rng(seed)
        size = COLUMNS_OF_A_VIEW * _PER_COLUMN
        self._frequencies = random.normal(size=(size, 2)) / correlation_m
        self._phases = random.uniform(0, 2 * np.pi, size)

    def tiles(self, points: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the descriptors of places in metres, N 2."""
        return unit(np.cos(points @ self._frequencies.T + self._phases))

    def picture(
        self, point: NDArray[np.float64], random: np.random.Generator, *, noise: float, turn: int | None = None
    ) -> Turned:
        """Return a picture taken at a place with its middle column `turn` columns clockwise of north.

        Args:
            point: metres east and north, 2.
            random: draws the noise.
            noise: its size compared with the descriptor.
            turn: None: the heading is known to be 0.
        """
        clean = self.tiles(point[None])[0]
        seen = clean + noise * random.normal(size=clean.shape) / np.sqrt(len(clean))
        if turn is None:
            return Turned(unit(seen[None]), np.zeros(1))
        columns = np.roll(seen.reshape(COLUMNS_OF_A_VIEW, _PER_COLUMN), -turn, axis=0)
        turned = [np.roll(columns, number, axis=0).ravel() for number in range(COLUMNS_OF_A_VIEW)]
        return Turned(unit(np.stack(turned)), np.arange(COLUMNS_OF_A_VIEW) * 360.0 / COLUMNS_OF_A_VIEW)


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return rows of unit length."""
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), np.float32)


def grid(count: int, every_m: float) -> NDArray[np.float64]:
    """Return the points of a square grid in metres, count * count x 2."""
    steps = np.arange(count) * every_m
    return np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)


def degrees(points: NDArray[np.float64], origin: tuple[float, float] = ORIGIN) -> NDArray[np.float64]:
    """Return latitudes and longitudes of points in metres from an origin, N 2."""
    return np.stack(moved(*origin, points[:, 0], points[:, 1]), axis=-1)


def index_of(descriptors: NDArray[np.float32], positions: NDArray[np.float64]) -> ReferenceIndex:
    """Return an index in memory of tiles at latitudes and longitudes, N 2; NaN if unknown."""
    count = len(positions)
    info = IndexInfo(
        dimension=descriptors.shape[1], count=count, checkpoint="0" * 64, dataset="landscape", dataset_digest="0"
    )
    known = [[None if np.isnan(one) else float(one) for one in column] for column in positions.T]
    entries = pa.table(
        {
            "id": [f"tile-{row}" for row in range(count)],
            "latitude": known[0],
            "longitude": known[1],
            **{name: [None] * count for name in ("easting", "northing", "zone")},
        },
        schema=COLUMNS,
    )
    return ReferenceIndex.build(info, descriptors, entries)

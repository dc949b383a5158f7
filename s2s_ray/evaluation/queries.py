"""The results of an evaluation for each query, as a Parquet table."""

from __future__ import annotations

import io
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import Tensor

from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.entries import entries_table
from s2s_ray.data.places import places_of
from s2s_ray.evaluation.outcome import Outcome
from s2s_ray.evaluation.recall import RecallResult

QUERIES = "queries.parquet"


def queries_table(
    dataset: PairDataset,
    to_satellite: RecallResult,
    to_street: RecallResult,
    nearest: tuple[Tensor, Tensor],
    values: Mapping[str, Tensor],
    outcomes: Mapping[str, Outcome] = MappingProxyType({}),
) -> pa.Table:
    """Return one row per pair, in the order of the split.

    Columns: `id` and the position; `rank_street_to_satellite` and `rank_satellite_to_street` (see `RecallResult`);
    `correct_tiles`; `top_ids`, `top_descriptor_distances` (squared) and `top_metres` (null if a position is unknown)
    of the closest tiles, closest first; the quality of the synthesised view; and of each protocol, with its first seed,
    `PROTOCOL.rank`, `PROTOCOL.heading_error` of the first match in degrees (null if the heading is known) and
    `PROTOCOL.metres` (null if a position is unknown).

    Args:
        dataset: the split.
        to_satellite, to_street: recall in both directions.
        nearest: squared distances and gallery indices of the closest tiles, N k each.
        values: image quality by name, N each.
        outcomes: of protocols, by name.
    """
    distances, tiles = (part.cpu().numpy() for part in nearest)
    metres = metres_between(dataset, np.arange(len(dataset))[:, None], tiles)
    ids, places = np.array(dataset.ids, dtype=object), entries_table(dataset)
    columns = {
        **dict(zip(places.column_names, places.columns, strict=True)),
        "rank_street_to_satellite": to_satellite.ranks.numpy(),
        "rank_satellite_to_street": to_street.ranks.numpy(),
        "correct_tiles": to_satellite.correct.numpy(),
        "top_ids": pa.array(ids[tiles].tolist(), pa.list_(pa.string())),
        "top_descriptor_distances": pa.array(list(distances.clip(0)), pa.list_(pa.float64())),
        "top_metres": pa.array(
            [[None if np.isnan(m) else float(m) for m in row] for row in metres], pa.list_(pa.float64())
        ),
        **{name: found.cpu().numpy() for name, found in values.items()},
    }
    for name, outcome in outcomes.items():
        columns[f"{name}.rank"] = pa.array(outcome.ranks, mask=outcome.ranks == 0)
        columns[f"{name}.heading_error"] = pa.array(outcome.heading_errors, from_pandas=True)
        columns[f"{name}.metres"] = pa.array(outcome.metres, from_pandas=True)
    return pa.table(columns)


def parquet_bytes(table: pa.Table) -> bytes:
    """Return the content of a Parquet file of the table."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def metres_between(dataset: PairDataset, queries: NDArray[np.int64], tiles: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the metres between pairs of a data set (indices broadcast); NaN if a position is unknown."""
    places = places_of(dataset)
    queries, tiles = np.broadcast_arrays(queries, tiles)
    return places[queries.ravel()].metres_to(places[tiles.ravel()]).reshape(queries.shape)

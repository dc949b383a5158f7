"""A checkpoint and an index that fit each other, in storage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from s2s_ray import registry, storage
from s2s_ray.index import IndexInfo, ReferenceIndex
from s2s_ray.model.checkpoint import save_model
from s2s_ray.model.s2s import S2S
from tests.support.models import tiny_model

TINY = tiny_model(width=72)


def stored_model(
    folder: Path,
    dimension: int = TINY.descriptor_size,
    fingerprint: str | None = None,
    meta: Mapping[str, Any] | None = None,
) -> tuple[str, str]:
    """Store a checkpoint and an index, by default of that checkpoint; return their URIs."""
    checkpoint, index = str(folder / "checkpoint"), str(folder / "index")
    stored = {"run": "city", "step": 4, "metrics": {"psnr": float("inf")}, **(meta or {})}
    save_model(S2S(TINY), stored, folder / "local")
    storage.publish(folder / "local", checkpoint)
    info = IndexInfo(
        dimension=dimension, count=1, checkpoint=fingerprint or registry.fingerprint(checkpoint),
        dataset="d", dataset_digest="x", split="test",
    )  # fmt: skip
    columns = {"id": ["t"], "latitude": [1.0], "longitude": [2.0], "easting": [3.0], "northing": [4.0]}
    table = pa.table({**columns, "zone": pa.array([32632], pa.int32())})
    ReferenceIndex.build(info, np.ones((1, dimension), np.float32), table).save(index)
    return checkpoint, index

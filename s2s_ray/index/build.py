"""Making a reference index: of a data set's tiles or of a region's own list, from nothing or added to one there is.

`s2s_ray.index.parts` does the same for a large data set, on many nodes.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from s2s_ray import storage
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.entries import COLUMNS, entries_table
from s2s_ray.data.schema import Split
from s2s_ray.data.sources.manifest import ManifestSource
from s2s_ray.errors import ReferenceIndexError, UnreadableImageError, ViewError
from s2s_ray.geo.views import (
    ViewGeometry,
)
from s2s_ray.index.index import (
    IndexInfo,
    ReferenceIndex,
)
from s2s_ray.model.s2s import S2S
from s2s_ray.runtime.progress import progress


@torch.inference_mode()
def build_index(
    model: S2S,
    dataset: PairDataset,
    *,
    checkpoint_fingerprint: str,
    batch: int = 64,
    device: str | torch.device = "cpu",
    split: Split | None = None,
    extends: ReferenceIndex | None = None,
) -> ReferenceIndex:
    """Embed every satellite tile of a data set and index the descriptors.

    Args:
        model: in evaluation mode; it is moved to `device`.
        checkpoint_fingerprint: of the checkpoint the model was loaded from (`registry.fingerprint`).
        batch: tiles embedded at a time.
        split: which one of the data set this is, for the record.
        extends: an index of the same checkpoint. The tiles that are not in it are added at its end, the others are
            not embedded again; pictures are not carried over.

    Raises:
        ReferenceIndexError: a data set without tiles, or an index of another checkpoint.
    """
    assert not model.training, "descriptors of a model in training mode depend on the batch"
    if not len(dataset):
        raise ReferenceIndexError(f"data set {dataset.uri} has no pairs to index (split: {split})")
    model.to(device)
    known = _known(extends, model, checkpoint_fingerprint)
    new = [row for row, id in enumerate(dataset.ids) if id not in known]
    descriptors = np.empty((len(new), model.config.descriptor_size), np.float32)
    with progress(len(new), "index", "tiles") as advance:
        for start in range(0, len(new), batch):
            rows = new[start : start + batch]
            polar = torch.stack([dataset[row].polar for row in rows]).to(device)
            descriptors[start : start + len(rows)] = model.embed_satellite(polar).float().cpu().numpy()
            advance(len(rows))
    if extends is not None:
        return extends.with_more(descriptors, entries_table(dataset).take(pa.array(new, pa.int64())))
    info = IndexInfo(
        dimension=model.config.descriptor_size,
        count=len(dataset),
        checkpoint=checkpoint_fingerprint,
        dataset=dataset.uri,
        dataset_digest=dataset.manifest.digest,
        split=split,
    )
    index = ReferenceIndex.build(info, descriptors, entries_table(dataset))
    index.draw_from(dataset)
    return index


@torch.inference_mode()
def index_tiles(
    model: S2S,
    views: ViewGeometry,
    source: ManifestSource,
    *,
    checkpoint_fingerprint: str,
    batch: int = 64,
    device: str | torch.device = "cpu",
    extends: ReferenceIndex | None = None,
) -> tuple[ReferenceIndex, list[str]]:
    """Index the satellite tiles of a region's own list, without panoramas and without a data set.

    Args:
        model: in evaluation mode; it is moved to `device`.
        views: of the model's checkpoint.
        source: opened with `panoramas=False`.
        checkpoint_fingerprint, batch, extends: as in `build_index`.

    Returns: the index, and a line for each tile that is not in it because it cannot be read.

    Raises:
        ManifestError: a list that cannot be used.
        ReferenceIndexError: not one tile can be read, or an index of another checkpoint.
    """
    assert not model.training, "descriptors of a model in training mode depend on the batch"
    model.to(device)
    known = _known(extends, model, checkpoint_fingerprint)
    records = [record for record in source.records() if record.id not in known]
    faults, parts, kept = [], [np.empty((0, model.config.descriptor_size), np.float32)], []
    with progress(len(records), "index", "tiles") as advance:
        for start in range(0, len(records), batch):
            polar = []
            for record in records[start : start + batch]:
                try:
                    polar.append(views.satellite(source.tile(record), "north-up"))
                    kept.append(record)
                except (UnreadableImageError, ViewError) as error:
                    faults.append(f"{record.id}: {error}")
            if polar:
                parts.append(model.embed_satellite(torch.stack(polar).to(device)).float().cpu().numpy())
            advance(len(records[start : start + batch]))
    if not kept and extends is None:
        raise ReferenceIndexError(f"{source.uri}: not one tile can be read; the first: {'; '.join(faults[:3])}")
    columns = {name: [getattr(record, name) for record in kept] for name in COLUMNS.names}
    entries, descriptors = pa.table(columns, schema=COLUMNS), np.concatenate(parts)
    if extends is not None:
        return extends.with_more(descriptors, entries), faults
    info = IndexInfo(
        dimension=model.config.descriptor_size,
        count=len(kept),
        checkpoint=checkpoint_fingerprint,
        dataset=source.uri,
        dataset_digest=storage.sha256(storage.read_bytes(source.uri)),
    )
    return ReferenceIndex.build(info, descriptors, entries), faults


def _known(extends: ReferenceIndex | None, model: S2S, checkpoint_fingerprint: str) -> frozenset[str]:
    """Ids of the tiles that need not be embedded."""
    if extends is None:
        return frozenset()
    extends.info.require(model.config.descriptor_size, checkpoint_fingerprint)
    return extends.ids()

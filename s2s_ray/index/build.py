"""Building a reference index over a tile source, or adding its new tiles to an existing index.

The tiles are embedded in batches of consecutive rows, however the work is divided, so that an index built in parts
(`s2s_ray.index.parts`) has the same bytes as one built at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.schema import Split
from s2s_ray.errors import ReferenceIndexError, UnreadableImageError, ViewError
from s2s_ray.geo.images import Descriptors
from s2s_ray.index import vectors
from s2s_ray.index.index import ReferenceIndex
from s2s_ray.index.info import IndexInfo
from s2s_ray.index.tiles import DatasetTiles, TileSource
from s2s_ray.model.s2s import S2S
from s2s_ray.runtime.progress import progress

BATCH = 64


class Block(NamedTuple):
    """Descriptors of the readable tiles among some rows, and the reason for each unreadable one by its row."""

    descriptors: Descriptors
    faults: dict[int, str]


def build_index(
    model: S2S,
    dataset: PairDataset,
    *,
    checkpoint_fingerprint: str,
    batch: int = BATCH,
    device: str | torch.device = "cpu",
    split: Split | None = None,
    extends: ReferenceIndex | None = None,
) -> ReferenceIndex:
    """Embed every satellite tile of a data set and index the descriptors.

    Args:
        model: in evaluation mode; it is moved to `device`.
        checkpoint_fingerprint: of the checkpoint the model was loaded from (`registry.fingerprint`).
        batch: tiles embedded at a time.
        split: the split of the data set, recorded in `index.json`.
        extends: an index of the same checkpoint. Tiles that are not in it are added at its end, the others are
            not embedded again; pictures are not carried over.

    Raises:
        ReferenceIndexError: a data set without tiles, or an index of another checkpoint.
    """
    return build(
        model,
        DatasetTiles(dataset, split),
        checkpoint_fingerprint=checkpoint_fingerprint,
        batch=batch,
        device=device,
        extends=extends,
    )[0]


def build(
    model: S2S,
    source: TileSource,
    *,
    checkpoint_fingerprint: str,
    batch: int = BATCH,
    device: str | torch.device = "cpu",
    extends: ReferenceIndex | None = None,
) -> tuple[ReferenceIndex, list[str]]:
    """Embed the tiles of a source in this process and index the descriptors.

    Args:
        model, checkpoint_fingerprint, batch, extends: as in `build_index`.

    Returns:
        The index, and one line for each tile that was left out because it cannot be read.

    Raises:
        ReferenceIndexError: no tile can be read, or an index of another checkpoint.
    """
    rows = rows_to_embed(source, model.config.descriptor_size, checkpoint_fingerprint, extends)
    blocks = []
    with progress(len(rows), "index", "tiles") as advance:
        for block in embed(model.to(device), source, rows, batch, device):
            blocks.append(block)
            advance(len(block.descriptors) + len(block.faults))
    faults = {row: reason for block in blocks for row, reason in block.faults.items()}
    parts = (block.descriptors for block in blocks)
    return assemble(source, rows, parts, faults, model.config.descriptor_size, checkpoint_fingerprint, extends)


def rows_to_embed(
    source: TileSource, dimension: int, checkpoint: str, extends: ReferenceIndex | None = None
) -> list[int]:
    """Return the rows of the source that are not in the index to extend.

    Raises:
        ReferenceIndexError: an index of another checkpoint or descriptor size, or of other tiles than a region's.
    """
    if extends is None:
        return list(range(len(source.ids)))
    extends.info.require(dimension, checkpoint)
    extends.info.with_region(source.region)
    known = extends.ids()
    return [row for row, id in enumerate(source.ids) if id not in known]


@torch.inference_mode()
def embed(
    model: S2S, source: TileSource, rows: Sequence[int], batch: int, device: str | torch.device
) -> Iterator[Block]:
    """Embed tiles in batches; yield a block for each.

    Args:
        model: in evaluation mode, on `device`.
        rows: of the source; a batch takes consecutive ones.
    """
    assert not model.training, "descriptors of a model in training mode depend on the batch"
    for start in range(0, len(rows), batch):
        polar, faults = [], {}
        for row in rows[start : start + batch]:
            try:
                polar.append(source.polar(row))
            except (UnreadableImageError, ViewError) as error:
                faults[row] = str(error)
        descriptors = np.empty((0, model.config.descriptor_size), np.float32)
        if polar:
            descriptors = model.embed_satellite(torch.stack(polar).to(device)).float().cpu().numpy()
        yield Block(descriptors, faults)


def assemble(
    source: TileSource,
    rows: Sequence[int],
    parts: Iterable[Descriptors],
    faults: Mapping[int, str],
    dimension: int,
    checkpoint: str,
    extends: ReferenceIndex | None = None,
) -> tuple[ReferenceIndex, list[str]]:
    """Make an index of embedded tiles, or add them to an existing one.

    Args:
        rows: of the source that were to be embedded.
        parts: descriptors of those that could be read, in the order of `rows`.
        faults: the reason for each row that could not.

    Returns:
        The index, and one line for each tile that was left out.

    Raises:
        ReferenceIndexError: no tile could be read, or the parts are those of other tiles.
    """
    ids = source.ids
    lines = [f"{ids[row]}: {reason}" for row, reason in faults.items()]
    kept = [row for row in rows if row not in faults]
    if not kept and extends is None:
        first = "; ".join(lines[:3])
        raise ReferenceIndexError(f"{source.uri}: none of the {len(rows)} tiles could be read; first errors: {first}")
    dtype = vectors.stored_dtype(len(kept)) if extends is None else np.float32
    descriptors = vectors.allocate((len(kept), dimension), dtype)
    misfit = ReferenceIndexError(
        f"{source.uri}: the stored parts do not fit the {len(kept)} tiles to index: delete them and build again"
    )
    filled = 0
    for part in parts:
        if part.shape[1:] != (dimension,) or filled + len(part) > len(kept):
            raise misfit
        descriptors[filled : filled + len(part)] = part
        filled += len(part)
    if filled != len(kept):
        raise misfit
    entries = source.entries(kept)
    if extends is not None:
        return extends.with_more(descriptors, entries, source.region), lines
    info = IndexInfo(
        dimension=dimension,
        count=len(kept),
        checkpoint=checkpoint,
        dataset=source.uri,
        dataset_digest=source.digest,
        split=source.split,
        region=source.region,
    )
    return ReferenceIndex.build(info, descriptors, entries, source.pictures(kept)), lines

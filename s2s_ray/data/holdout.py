"""The validation split: training pairs that training does not see, for choosing a checkpoint."""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from s2s_ray.data.schema import Record

log = logging.getLogger(__name__)


def hold_out(records: Sequence[Record], fraction: float, block_m: float) -> tuple[list[Record], str]:
    """Move about `fraction` of the training records to the validation split, unless the source has one.

    If all training records have coordinates, whole blocks of `block_m` metres are moved (neighbours look alike), in
    the order of their hashes, until the fraction is reached; a block that would exceed twice the fraction is skipped.
    Otherwise, and if the blocks are too coarse, single records are moved, in the order of their ids' hashes.
    The result depends on the records and the two numbers alone.

    Returns: the records in their order, and how the validation split was chosen, in words.
    """
    train = [record for record in records if record.split == "train"]
    if any(record.split == "val" for record in records):
        return list(records), "named by the source"
    if len(train) < 2:
        return list(records), "none: fewer than two training pairs"
    target = max(1, round(fraction * len(train)))
    chosen = _blocks(train, target, block_m)
    if chosen:
        how = f"whole blocks of {block_m:g} m"
    else:
        ranked = sorted(train, key=lambda record: _hash(record.id))
        chosen = {record.id for record in ranked[: min(target, len(train) - 1)]}
        how = "by the hash of the id"
    how = f"{len(chosen)} of {len(train)} training pairs, {how}"
    log.info("validation split: %s", how)
    return [replace(record, split="val") if record.id in chosen else record for record in records], how


def _blocks(train: Sequence[Record], target: int, side: float) -> set[str]:
    """Return the ids in the held-out blocks; empty if there are no positions or no suitable blocks."""
    block_of = {}
    for record in train:
        if record.easting is None or record.northing is None or record.zone is None:
            return set()
        corner = (math.floor(record.easting / side), math.floor(record.northing / side))
        block_of[record.id] = f"{record.zone}/{corner[0]}/{corner[1]}"
    sizes = Counter(block_of.values())
    held: set[str] = set()
    count = 0
    for block in sorted(sizes, key=_hash):
        if count < target and count + sizes[block] <= min(2 * target, len(train) - 2):
            held.add(block)
            count += sizes[block]
    if not held:
        log.info("the %d blocks of %g m are too few or too large to hold out whole blocks", len(sizes), side)
    return {id for id, block in block_of.items() if block in held}


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()

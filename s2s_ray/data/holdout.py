"""The validation split: training pairs that training does not see, for choosing a checkpoint."""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from s2s_ray.data.places import latlon_of
from s2s_ray.data.schema import Metres, Record
from s2s_ray.errors import DatasetError
from s2s_ray.geo.places import Places
from s2s_ray.geo.prior import ellipsoid

log = logging.getLogger(__name__)

_ZONES = 60  # of UTM, 6 degrees each


def hold_out(
    records: Sequence[Record], fraction: float, block_m: float, metres: Metres = "geodesic"
) -> tuple[list[Record], str]:
    """Move about `fraction` of the training records to the validation split, unless the source has one.

    If all training records have coordinates, whole blocks of `block_m` metres are moved (neighbours look alike), in
    the order of their hashes, until the fraction is reached; a block that would exceed twice the fraction is skipped.
    Otherwise, and if the blocks are too coarse, single records are moved, in the order of their ids' hashes. Those of
    one `place` are always moved together; they lie in the block of the first of their ids.
    The result depends on the records and the arguments alone.

    Training records that lie in one UTM zone are divided along its easting and northing, others by a grid around the
    Earth, in which neither a border of zones nor the equator nor the date line is the border of a block. With
    `metres="utm"` each zone has blocks of its own, which are cut off at the zone's borders.

    Returns: the records in their order, and how the validation split was chosen, in words.

    Raises:
        DatasetError: pictures of one place in several splits.
    """
    _require_whole_places(records)
    train = [record for record in records if record.split == "train"]
    if any(record.split == "val" for record in records):
        return list(records), "named by the source"
    if len(train) < 2:
        return list(records), "none: fewer than two training pairs"
    target = max(1, round(fraction * len(train)))
    chosen = _blocks(train, target, block_m, metres)
    if chosen:
        how = f"whole blocks of {block_m:g} m"
    else:
        chosen = _by_hash(train, target)
        how = "by the hash of the id"
    how = f"{len(chosen)} of {len(train)} training pairs, {how}"
    log.info("validation split: %s", how)
    return [replace(record, split="val") if record.id in chosen else record for record in records], how


def _require_whole_places(records: Sequence[Record]) -> None:
    first: dict[str, Record] = {}
    for record in records:
        if record.place is None:
            continue
        other = first.setdefault(record.place, record)
        if other.split != record.split:
            raise DatasetError(
                f"place {record.place!r} is in several splits, with {other.id} in {other.split} and {record.id} in "
                f"{record.split}: pictures of one place must be in one split"
            )


def _by_hash(train: Sequence[Record], target: int) -> set[str]:
    """Return the ids that are held out in the order of their hashes; pictures of one place go together."""
    groups: dict[str, list[str]] = {}
    for record in train:
        groups.setdefault(record.id if record.place is None else f"place {record.place}", []).append(record.id)
    held: set[str] = set()
    for name in sorted(groups, key=_hash):
        if len(held) < target and len(held) + len(groups[name]) < len(train):
            held.update(groups[name])
    return held


def _blocks(train: Sequence[Record], target: int, side: float, metres: Metres) -> set[str]:
    """Return the ids in the held-out blocks; empty if there are no positions or no suitable blocks."""
    one_zone = len({record.zone for record in train}) == 1 and train[0].zone is not None
    names = _in_zones(train, side) if one_zone or metres == "utm" else _around_the_earth(train, side)
    if names is None:
        return set()
    block_of = dict(zip((record.id for record in train), names, strict=True))
    first: dict[str, str] = {}
    for record in train:
        if record.place is not None:
            first[record.place] = min(record.id, first.get(record.place, record.id))
    block_of |= {record.id: block_of[first[record.place]] for record in train if record.place is not None}
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


def _in_zones(train: Sequence[Record], side: float) -> list[str] | None:
    """Return each record's block in the plane of its UTM zone; None if a position is unknown."""
    names = []
    for record in train:
        if record.easting is None or record.northing is None or record.zone is None:
            return None
        corner = (math.floor(record.easting / side), math.floor(record.northing / side))
        names.append(f"{record.zone}/{corner[0]}/{corner[1]}")
    return names


def _around_the_earth(train: Sequence[Record], side: float) -> list[str] | None:
    """Return each record's block on the ellipsoid; None if a position is unknown.

    Bands of `side` metres run along the parallels, the middle one along the equator. Each is divided into blocks of
    about `side` metres, a multiple of the 60 UTM zones, so that the meridians between zones pass through their middles.
    """
    latlon = latlon_of(train)
    if not np.isfinite(latlon).all():
        return None
    latitudes, longitudes = latlon.T
    origin = np.zeros(len(latlon))
    from_equator = np.copysign(ellipsoid().inv(origin, origin, origin, latitudes)[2], latitudes)
    bands = np.floor(from_equator / side + 0.5)
    middles = ellipsoid().fwd(origin, origin, origin, bands * side)[1]
    parallels = np.hypot(*Places.on_ellipsoid(np.stack([middles, origin], axis=-1)).points.T[:2]) * 2 * math.pi
    counts = np.maximum(np.round(parallels / side), 1)
    counts = np.where(counts < _ZONES, counts, _ZONES * np.round(counts / _ZONES))
    columns = np.floor(counts * (longitudes + 180) / 360 + 0.5) % counts
    return [f"{band:.0f}/{column:.0f}" for band, column in zip(bands.tolist(), columns.tolist(), strict=True)]


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()

"""The plan of a data set: the layout of records in shards, and `plan.json`, by which a later run recognises it."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import Any, ClassVar

from pydantic import PositiveInt

from s2s_ray import storage
from s2s_ray.config import Config
from s2s_ray.data.description import DATASET_FILE, SCHEMA_VERSION, margin_px
from s2s_ray.data.schema import SPLITS, Metres, Record, Source
from s2s_ray.data.shard import Plan, ShardPlan, encode_record
from s2s_ray.errors import ConfigError, DatasetError, NotFoundError, S2SError, UnreadableImageError
from s2s_ray.geo.views import ViewGeometry
from s2s_ray.storage import conditional
from s2s_ray.storage.documents import Document, Tree

log = logging.getLogger(__name__)

PLAN = "plan.json"
_SAMPLES = 8
_RUN = 16  # neighbours in a source are often neighbours on the ground, and cheap to read together
_SHOWN = 5
_DEFAULTS = {each.name: each.default for each in fields(Record)}
_LATER = ("fov", "projection", "pitch", "roll", "place")


class StoredPlan(Document):
    """The content of `plan.json`. Version 1 has no key `format`."""

    ERROR: ClassVar[type[S2SError]] = DatasetError
    NOUN: ClassVar[str] = "plan of a data set"

    digest: str
    settings: dict[str, Any]
    records: int
    pairs_per_shard: PositiveInt
    metres: Metres = "utm"
    """How metres between pairs are measured when pairs are held out for validation."""
    masked: bool = False
    """Whether what panoramas with a part of the horizon do not show is marked; earlier versions left it black."""

    def tree(self) -> Tree:
        """Return the content of the file."""
        omitted = {"format"} if self.masked else {"format", "masked"}
        return {key: value for key, value in super().tree().items() if key not in omitted}


def metres_rule(uri: str) -> Metres:
    """Return how to measure metres for the data set at a URI: by its plan if it has one, else along the ellipsoid.

    Raises:
        DatasetError: the data set has no `plan.json`.
        DamagedError: `plan.json` is damaged.
    """
    stored = _read_plan(storage.absolute(uri))
    return "geodesic" if stored is None else stored.metres


def make_plan(config: Config, source: Source, records: Sequence[Record], metres: Metres) -> Plan:
    """Lay the records out in shards of about `prepare.shard_mb`, and claim `data.uri` for this data set.

    The training split consists of short runs in the source's order, sorted by the hash of each run's first id, so
    that pairs that are shuffled together come from all over the data set; the other splits keep the source's order.
    The number of pairs in a shard follows from the sizes of a few encoded ones and is stored in `plan.json`, by which
    a later run recognises its own work. That file is written once: of two preparations of different data sets at the
    same moment one is refused before it writes anything, and two of the same data set work together.

    Raises:
        ConfigError: a margin, and a source whose tiles are files.
        DatasetError: an empty split, no readable pair, or another data set at `data.uri`.
        DamagedError: `plan.json` is damaged.
    """
    size = source.tile_size
    if size is None and config.prepare.margin_m:
        raise ConfigError(
            f"prepare.margin_m={config.prepare.margin_m:g} needs a source that cuts or renders its tiles: "
            f"source.kind=synthetic, or manifest with source.tiles or source.geotiff; the tiles of this source "
            f"(source.kind={config.source.kind}) are files, which have no imagery around them: set prepare.margin_m=0, "
            "and augmentation.offcentre_m=0 here and in training"
        )
    for split in config.prepare.splits:
        if not any(record.split == split for record in records):
            raise DatasetError(f"{split} split is empty: the source has no pair for it")
    views = source.views(config.model.height, config.model.width)
    settings = _settings(config, views)
    digest = _digest(settings, records)
    plan = Plan(
        uri=storage.absolute(config.data.uri),
        digest=digest,
        source=config.source.located(),
        geometry=views,
        encoding=config.prepare.encoding,
        keep_tiles=config.prepare.keep_tiles,
        shards=(),
        margin_px=0 if size is None else margin_px(config.prepare.margin_m, size.metres, size.px),
        masked=any(not record.is_panorama for record in records),
    )
    stored = _read_plan(plan.uri)
    if stored is None:
        per_shard = _pairs_per_shard(plan, source, records, config.prepare.shard_mb * 1e6)
        mine = StoredPlan(
            digest=digest,
            settings=settings,
            records=len(records),
            pairs_per_shard=per_shard,
            metres=metres,
            masked=plan.masked,
        )
        uri = storage.join(plan.uri, PLAN)
        stored = StoredPlan.from_bytes(conditional.write_once(uri, mine.to_bytes()), uri)
    if stored.digest != digest:
        raise DatasetError(_difference(plan.uri, config.data.uri, stored, settings, len(records)))
    return replace(plan, masked=stored.masked, shards=tuple(_lay_out(records, stored.pairs_per_shard)))


def _settings(config: Config, views: ViewGeometry) -> dict[str, Any]:
    """Return the settings that determine the bytes of the data set, by their names in the configuration."""
    prepare, rows = config.prepare, views.panorama_rows
    settings = {
        "schema_version": SCHEMA_VERSION,
        "model.height": views.height,
        "model.width": views.width,
        "source": source_settings(config),
        "panorama_rows": None if rows is None else list(rows),
        "prepare.encoding": prepare.encoding,
        "prepare.shard_mb": prepare.shard_mb,
        "prepare.keep_tiles": prepare.keep_tiles,
        "prepare.validation_fraction": prepare.validation_fraction,
        "prepare.validation_block_m": prepare.validation_block_m,
    }
    if prepare.margin_m:
        settings["prepare.margin_m"] = prepare.margin_m
    if set(prepare.splits) != set(SPLITS):
        settings["prepare.splits"] = sorted(prepare.splits)
    return settings


def source_settings(config: Config) -> dict[str, Any]:
    """Return the section `source` as a data set stores it."""
    source = config.source.model_dump(mode="json")
    if source.get("query_heading") is None:  # data sets made before it existed keep their digest
        source.pop("query_heading", None)
    return source


def _digest(settings: dict[str, Any], records: Sequence[Record]) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for record in records:
        known = asdict(record)
        for name in _LATER:  # so that data sets made before these fields existed keep their digest
            if known[name] == _DEFAULTS[name]:
                del known[name]
        digest.update(json.dumps(known, sort_keys=True).encode())
    return digest.hexdigest()


def _read_plan(uri: str) -> StoredPlan | None:
    """Return the plan of an earlier run, or None if there is none."""
    complete = storage.exists(storage.join(uri, DATASET_FILE))  # asked first: a preparation writes its plan before it
    try:
        return StoredPlan.read(storage.join(uri, PLAN))
    except NotFoundError:
        if complete:
            raise DatasetError(
                f"{uri} has a {DATASET_FILE} without {PLAN}: it was not prepared here; choose another data.uri"
            ) from None
        return None


def _has_work(uri: str) -> bool:
    return any(name == DATASET_FILE or name.endswith(".arrow") for name in storage.list_names(uri))


def _difference(place: str, uri: str, stored: StoredPlan, settings: dict[str, Any], records: int) -> str:
    before = stored.settings
    changed = [
        f"{key} was {before.get(key)!r}, now {settings.get(key)!r}"
        for key in settings.keys() | before.keys()
        if before.get(key) != settings.get(key)
    ]
    if stored.records != records:
        changed.append(f"the source had {stored.records} pairs, now {records}")
    what = "; ".join(sorted(changed)) or "the source's records changed"
    if _has_work(place):
        return f"{uri} already holds another data set ({what}): choose another data.uri, or delete that data set first"
    return (
        f"{uri} already holds the plan of another data set ({what}), which may be in preparation: choose another "
        f"data.uri, or delete {PLAN} there if no process prepares that data set"
    )


def _pairs_per_shard(plan: Plan, source: Source, records: Sequence[Record], shard_bytes: float) -> int:
    """Return the number of pairs that fill a shard, from the first readable ones in the order of `_mixed`."""
    sizes: list[int] = []
    faults: list[str] = []
    for record in _mixed(records):
        try:
            sizes.append(sum(len(image) for image in encode_record(source, record, plan).images.values()))
        except UnreadableImageError as error:
            faults.append(f"{record.id}: {error}")
        if len(sizes) == _SAMPLES:
            break
    if not sizes:
        raise DatasetError(
            f"none of the {len(records)} pairs could be read; first errors: {'; '.join(faults[:_SHOWN])}"
        )
    return max(1, round(shard_bytes * len(sizes) / sum(sizes)))


def _lay_out(records: Sequence[Record], per_shard: int) -> list[ShardPlan]:
    shards = []
    for split in SPLITS:
        members = [record for record in records if record.split == split]
        if split == "train":
            members = _mixed(members)
        if not members:
            continue
        count = math.ceil(len(members) / per_shard)
        edges = [len(members) * k // count for k in range(count + 1)]
        shards += [ShardPlan(f"{split}-{k:05d}", split, tuple(members[edges[k] : edges[k + 1]])) for k in range(count)]
    return shards


def _mixed(records: Sequence[Record]) -> list[Record]:
    """Sort runs of `_RUN` neighbouring records by the hash of each run's first id."""
    runs = [records[first : first + _RUN] for first in range(0, len(records), _RUN)]
    runs.sort(key=lambda run: hashlib.blake2b(run[0].id.encode(), digest_size=16).digest())
    return [record for run in runs for record in run]

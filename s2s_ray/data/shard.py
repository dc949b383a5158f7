"""Shards: pairs of one split in an Arrow IPC file, as encoded images that are ready for the networks."""

from __future__ import annotations

import io
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field
from torch import Tensor

from s2s_ray import storage
from s2s_ray.config import SourceConfig
from s2s_ray.data.description import FileInfo, Quarantined
from s2s_ray.data.schema import Pair, Record, Source, Split
from s2s_ray.data.sources import open_source
from s2s_ray.errors import DamagedError, DatasetError, NotFoundError, S2SError, UnreadableImageError, ViewError
from s2s_ray.geo.images import Encoding, Pixels, encode
from s2s_ray.geo.metadata import PhotoMetadata
from s2s_ray.geo.query import Query
from s2s_ray.geo.views import PanoramaKind, View, ViewGeometry
from s2s_ray.storage.documents import Document, Tree

log = logging.getLogger(__name__)

_ATTEMPTS = 2
_REASONS = 5  # warnings that are logged for a shard, each with its count
RECORD_FIELDS = [
    pa.field("id", pa.string(), nullable=False),
    pa.field("latitude", pa.float64()),
    pa.field("longitude", pa.float64()),
    pa.field("easting", pa.float64()),
    pa.field("northing", pa.float64()),
    pa.field("zone", pa.int32()),
    pa.field("heading", pa.float64(), nullable=False),
]


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One shard to write, with its records."""

    name: str
    split: Split
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A data set to write: everything that determines its bytes. It is pickled for the workers."""

    uri: str
    digest: str
    source: SourceConfig
    geometry: ViewGeometry
    encoding: Encoding
    keep_tiles: bool
    shards: tuple[ShardPlan, ...]
    margin_px: int = 0
    masked: bool = False


@dataclass(frozen=True, slots=True)
class ShardReport:
    """A shard that was written; `file` is None if none of its records could be used."""

    name: str
    file: FileInfo | None
    quarantine: tuple[Quarantined, ...]
    panoramas: dict[PanoramaKind, int]


class _SideCar(Document):
    """The content of a shard's NAME.json. Version 1 has no key `format`."""

    ERROR: ClassVar[type[S2SError]] = DatasetError
    NOUN: ClassVar[str] = "record of a shard"

    digest: str
    file: FileInfo | None
    quarantine: tuple[Quarantined, ...]
    panoramas: dict[PanoramaKind, int] = Field(default_factory=dict)

    def tree(self) -> Tree:
        """Return the content of the file."""
        return {key: value for key, value in super().tree().items() if key != "format"}


@dataclass(frozen=True, slots=True)
class Encoded:
    """The encoded images of one record by column, and the kind of its panorama."""

    images: dict[str, bytes]
    panorama: PanoramaKind


def prepare_pair(pair: Pair, record: Record, views: ViewGeometry) -> tuple[Pixels, Pixels]:
    """Return both images of a pair at height x width: the tile unrolled, the panorama turned north and cropped.

    A part of the horizon is placed on black at its bearing; `prepare_views` marks what is unseen instead.

    Returns: polar and street, H W 3, values rounded to nearest.

    Raises:
        UnreadableImageError: a tile that is not square, a panorama that cannot show the whole horizon although its
            record says so, or images that are too small.
    """
    polar, view = prepare_views(pair, record, views, masked=False)
    return polar, _pixels(view.pixels)


def prepare_views(
    pair: Pair,
    record: Record,
    views: ViewGeometry,
    photo: PhotoMetadata | None = None,
    *,
    masked: bool,
    warnings: Counter[str] | None = None,
) -> tuple[Pixels, View]:
    """Return the tile of a pair unrolled, H W 3, and the view of its picture.

    Args:
        photo: what the file of the picture says of it, if the record needs that.
        masked: mark what a picture that shows a part of the horizon does not show. False: as versions did that had no
            marks, for records with numbers alone.
        warnings: counts what was ignored or is doubtful in the file.

    Raises:
        UnreadableImageError: as `prepare_pair`; also for a picture whose file does not say what its record needs.
    """
    rows, columns = pair.satellite.shape[:2]
    if rows != columns or rows < 2:
        raise UnreadableImageError(f"satellite tile is {columns} x {rows} pixels (width x height), expected a square")
    try:
        polar = views.north_up(pair.satellite)
        if record.is_panorama or not masked:
            return _pixels(polar), View(views.street(pair.street, record.bearing, fov=_fov(record), smallest=1))
        known = views.settle(_query(record, views), pair.street, photo)
        if warnings is not None:
            warnings.update(known.warnings)
        if known.heading is None and record.heading == "auto":
            raise UnreadableImageError("the heading is unknown: the panorama's file does not say it; give a number")
        return _pixels(polar), views.of_query(pair.street, known)
    except ViewError as error:
        raise UnreadableImageError(str(error)) from None


def _query(record: Record, views: ViewGeometry) -> Query:
    """Return what a record says of its picture; rows of its own data set count for panoramas."""
    rows = views.panorama_rows if record.projection == "equirectangular" else None
    heading = record.heading if isinstance(record.heading, str) else record.bearing % 360
    return Query(heading, record.fov, record.projection, record.pitch, record.roll, rows)


def encode_record(source: Source, record: Record, plan: Plan, warnings: Counter[str] | None = None) -> Encoded:
    """Read, prepare and encode one record, counting the `warnings` on its file. Raises `UnreadableImageError`."""
    pair = source.read(record, plan.margin_px)
    stored = pair.satellite
    if plan.margin_px:
        inner = slice(plan.margin_px, -plan.margin_px)
        pair = pair._replace(satellite=stored[inner, inner])
    photo = source.photo(record) if plan.masked and record.reads_metadata else None
    polar, view = prepare_views(pair, record, plan.geometry, photo, masked=plan.masked, warnings=warnings)
    images = {"polar": encode(polar, plan.encoding), "street": encode(_pixels(view.pixels), plan.encoding)}
    if view.seen is not None:
        images["seen"] = encode(_grey(view.seen), "png")
    if plan.keep_tiles:
        images["satellite"] = encode(stored, plan.encoding)
    height, width = pair.street.shape[:2]
    return Encoded(images, "part" if view.seen is not None else plan.geometry.kind(height, width, _fov(record)))


def write_shard(plan: Plan, k: int) -> ShardReport:
    """Write shard `k` of a plan, unless it exists already. The same plan always gives the same bytes.

    The shard is written before its side-car NAME.json (count, size, checksum, quarantine), which marks it as finished:
    an incomplete shard is written again, a finished one is not.

    Raises:
        InputError: the source cannot be used.
        DamagedError: the storage returns other bytes than were written.
        StorageError: the source or the data set cannot be reached.
    """
    report = finished(plan, k)
    if report is not None:
        return report
    data, report = encode_shard(plan, k)
    if report.file is not None:
        write_file(storage.join(plan.uri, report.file.name), data)
    side_car = _SideCar(digest=plan.digest, file=report.file, quarantine=report.quarantine, panoramas=report.panoramas)
    write_file(storage.join(plan.uri, f"{report.name}.json"), side_car.to_bytes())
    return report


def encode_shard(plan: Plan, k: int) -> tuple[bytes, ShardReport]:
    """Return the file of shard `k` of a plan, and the report on it. Raises the errors of `write_shard`."""
    shard = plan.shards[k]
    source = _source(plan.digest, plan.source)
    rows: list[tuple[Record, dict[str, bytes]]] = []
    quarantine, panoramas, warnings = [], Counter[PanoramaKind](), Counter[str]()
    for record in shard.records:
        try:
            encoded = encode_record(source, record, plan, warnings)
            rows.append((record, encoded.images))
            panoramas[encoded.panorama] += 1
        except UnreadableImageError as error:
            quarantine.append(Quarantined(id=record.id, split=shard.split, reason=str(error)))
    for reason, count in warnings.most_common(_REASONS):
        log.warning("%s: %d pictures: %s", shard.name, count, reason)
    if len(warnings) > _REASONS:
        log.warning("%s: %d other warnings on pictures' files", shard.name, len(warnings) - _REASONS)
    data = shard_bytes(rows, keep_tiles=plan.keep_tiles) if rows else b""
    info = described(f"{shard.name}.arrow", len(rows), data) if rows else None
    return data, ShardReport(shard.name, info, tuple(quarantine), dict(sorted(panoramas.items())))


def described(name: str, count: int, data: bytes) -> FileInfo:
    """Return the entry of a file in `dataset.json`."""
    return FileInfo(name=name, count=count, bytes=len(data), sha256=storage.sha256(data))


def write_file(uri: str, data: bytes) -> None:
    """Write a file of a data set and read it back, twice if it was damaged on its way.

    Raises:
        DamagedError: the storage returns other bytes than were written.
        StorageError: the storage cannot be reached.
    """
    for _ in range(_ATTEMPTS):
        storage.write_bytes(uri, data)
        if storage.read_bytes(uri) == data:
            return
        log.warning("%s was damaged while it was written", uri)
    raise DamagedError(f"{uri} was damaged {_ATTEMPTS} times while it was written: check the storage and the network")


@lru_cache(maxsize=1)
def _source(digest: str, config: SourceConfig) -> Source:
    """Open the source of one plan, once for all its shards: files that it has read or drawn may serve the next one."""
    return open_source(config)


def finished(plan: Plan, k: int) -> ShardReport | None:
    """Return the report of a shard that an earlier run of the same plan finished, or None."""
    shard = plan.shards[k]
    try:
        found = _SideCar.read(storage.join(plan.uri, f"{shard.name}.json"))
        if found.digest != plan.digest:
            return None
        if found.file is not None and storage.size(storage.join(plan.uri, found.file.name)) != found.file.bytes:
            return None
    except (NotFoundError, DamagedError):
        return None
    return ShardReport(shard.name, found.file, found.quarantine, found.panoramas)


def shard_bytes(rows: Sequence[tuple[Record, dict[str, bytes]]], *, keep_tiles: bool) -> bytes:
    """Return a shard's file: the records' columns, then a column of encoded images for each view.

    The views are `polar`, `street` and, with `keep_tiles`, `satellite`; `seen`, null where all of the panorama is seen,
    is a column of shards in which any has an unseen part.
    """
    images = ["polar", "street", *(["satellite"] if keep_tiles else [])]
    fields, columns = record_columns([record for record, _ in rows])
    columns |= {image: [encoded[image] for _, encoded in rows] for image in images}
    fields += [pa.field(image, pa.large_binary(), nullable=False) for image in images]
    masks = [encoded.get("seen") for _, encoded in rows]
    if any(mask is not None for mask in masks):
        fields.append(pa.field("seen", pa.large_binary()))
        columns["seen"] = masks
    return arrow_bytes(pa.schema(fields), columns)


def encode_records(split: Split, records: Sequence[Record]) -> tuple[FileInfo, bytes]:
    """Return the file with the records of a split, and its entry in `dataset.json`."""
    fields, columns = record_columns(records)
    data = arrow_bytes(pa.schema(fields), columns)
    return described(f"{split}-records.arrow", len(records), data), data


def record_columns(records: Sequence[Record]) -> tuple[list[pa.Field[Any]], dict[str, list[Any]]]:
    """Return the fields of records and their columns: `RECORD_FIELDS` and those others that any record needs.

    `heading` is null where the record has no number, and `heading_origin` says why: `file` or `unknown`.
    """
    fields = list(RECORD_FIELDS)
    columns = {each.name: [getattr(record, each.name) for record in records] for each in fields}
    if any(isinstance(record.heading, str) for record in records):
        columns["heading"] = [None if isinstance(heading, str) else heading for heading in columns["heading"]]
        fields[-1] = pa.field("heading", pa.float64())
        fields.append(pa.field("heading_origin", pa.string(), nullable=False))
        origins = {"auto": "file", "unknown": "unknown"}
        columns["heading_origin"] = [
            origins[record.heading] if isinstance(record.heading, str) else "given" for record in records
        ]
    if any(record.place is not None for record in records):
        fields.append(pa.field("place", pa.string()))
        columns["place"] = [record.place for record in records]
    return fields, columns


def arrow_bytes(schema: pa.Schema, columns: dict[str, list[Any]]) -> bytes:
    """Return an Arrow IPC file of one record batch."""
    buffer = io.BytesIO()
    with pa.ipc.new_file(buffer, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_pydict(columns, schema=schema))
    return buffer.getvalue()


def _fov(record: Record) -> float:
    return record.fov if not isinstance(record.fov, str) else 360.0


def _grey(seen: Tensor) -> Pixels:
    return np.repeat(seen.numpy().astype(np.uint8)[..., None] * np.uint8(255), 3, axis=-1)


def _pixels(planes: Tensor) -> Pixels:
    return np.ascontiguousarray(planes.permute(1, 2, 0).numpy())

"""Verification of a data set: every file, checksum, record and image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pyarrow as pa

from s2s_ray import storage
from s2s_ray.data.description import DATASET_FILE, DatasetInfo, FileInfo, SplitInfo, read_dataset_info
from s2s_ray.data.plan import PLAN, StoredPlan
from s2s_ray.data.shard import RECORD_FIELDS
from s2s_ray.data.sources import published_counts
from s2s_ray.errors import DamagedError, NotFoundError, StorageError, UnreachableError, UnreadableImageError
from s2s_ray.geo.images import decode
from s2s_ray.runtime.progress import ProgressFactory, progress


@dataclass(frozen=True, slots=True)
class Comparison:
    """A split of a published data set: the numbers of pairs published, listed in the archive, and usable."""

    split: str
    published: int
    listed: int
    usable: int

    def line(self) -> str:
        """Return the comparison in words."""
        among = " (including validation)" if self.split == "train" else ""
        found = f"{self.split}{among}: {self.published:,} pairs published, the archive lists {self.listed:,}"
        if self.usable == self.published:
            return f"{found}, all usable"
        return f"{found}, {self.usable:,} usable: {self.published - self.usable:,} missing"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The result of `verify`. Quarantined pairs are known to be absent and do not count as faults."""

    uri: str
    info: DatasetInfo
    faults: list[str] = field(default_factory=list)
    published: list[Comparison] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if everything that `dataset.json` lists exists and is readable."""
        return not self.faults

    @property
    def complete(self) -> bool:
        """True if all pairs of a published data set are usable, and for every data set that is not a published one."""
        return all(part.usable == part.published for part in self.published)

    def lines(self) -> list[str]:
        """Return the report as text: counts, quarantined pairs with their reasons, faults."""
        shape = self.info.geometry
        lines = [f"{self.uri}: {shape.height} x {shape.width}, {self.info.encoding}"]
        lines += [
            f"{name}: {info.count} pairs in {len(info.shards)} shards, {sum(f.bytes for f in info.shards):,} bytes"
            for name, info in self.info.splits.items()
        ]
        lines.append(f"validation: {self.info.validation}")
        lines += self.info.panorama_lines()
        lines += [part.line() for part in self.published]
        lines += [f"quarantined: {entry.id} ({entry.split}): {entry.reason}" for entry in self.info.quarantine]
        lines += [f"fault: {fault}" for fault in self.faults]
        if self.faults:
            lines.append(f"{len(self.faults)} faults")
        else:
            lines.append("ok" if self.complete else "ok, but some published pairs are missing")
        return lines


def verify(uri: str, *, quick: bool = False, progress: ProgressFactory = progress) -> VerifyReport:
    """Check every file of a data set, and decode every image unless `quick`.

    A file must exist, have its size and checksum, and hold the pairs that the records list; `dataset.json` must agree
    with them and with `plan.json`. Everything is read from the storage itself, not from the shard cache. All faults are
    collected, each naming the file or the id.

    Raises:
        DatasetError: there is no complete data set.
        StorageError: the storage cannot be reached, or `dataset.json` is damaged.
    """
    dataset = read_dataset_info(uri)
    report = VerifyReport(uri, dataset, list(_described(uri, dataset)), list(_comparisons(dataset)))
    files = sum(len(info.shards) + 1 for info in dataset.splits.values())
    seen: set[str] = set()
    with progress(files, "verify", "files") as advance:
        for split, info in dataset.splits.items():
            listed = _records(_read(report, info.records))
            advance(1)
            held: list[dict[str, Any]] = []
            for shard in info.shards:
                held += _check_shard(report, shard, quick=quick)
                advance(1)
            report.faults.extend(_compare(split, info, listed, held, seen))
            seen.update(pair["id"] for pair in listed)
    return report


def _comparisons(info: DatasetInfo) -> Iterator[Comparison]:
    """Compare each existing split with what was published; pairs held out for validation count as training."""
    published = published_counts(info.source)
    for split, count in (published or {}).items():
        parts = ("train", "val") if split == "train" else (split,)
        if not all(part in info.splits for part in parts):
            continue
        usable = sum(info.split(part).count for part in parts)
        lost = sum(entry.split in parts for entry in info.quarantine)
        yield Comparison(split, count, usable + lost, usable)


def _read(report: VerifyReport, info: FileInfo, images: Sequence[str] = ()) -> pa.Table | None:
    """Return a file's table with ids and these columns of images; None if it cannot be read. Faults are recorded."""
    try:
        data = storage.read_bytes(storage.join(report.uri, info.name))
    except NotFoundError:
        report.faults.append(f"{info.name} is missing")
        return None
    except UnreachableError:
        raise
    except StorageError as error:
        report.faults.append(f"{info.name} cannot be read ({error})")
        return None
    if len(data) != info.bytes:
        report.faults.append(f"{info.name} fails its checksum ({len(data)} bytes, {info.bytes} expected)")
    elif storage.sha256(data) != info.sha256:
        report.faults.append(f"{info.name} fails its checksum (right size, different bytes)")
    try:
        table = pa.ipc.open_file(data).read_all()
        table.validate(full=True)  # reading damaged offsets would crash the process
    except (pa.ArrowException, OSError, ValueError) as error:
        report.faults.append(f"{info.name} is not an Arrow file ({error})")
        return None
    kinds = {**{each.name: each.type for each in RECORD_FIELDS}, **dict.fromkeys(images, pa.large_binary())}
    needed = ("id", *images)
    wrong = [name for name, kind in kinds.items() if name not in table.column_names or table[name].type != kind]
    wrong += [name for name in needed if name not in wrong and table[name].null_count]
    if wrong:
        report.faults.append(f"{info.name} has no usable column {', '.join(wrong)}")
    if set(wrong) & set(needed):
        return None
    if len(table) != info.count:
        report.faults.append(f"{info.name} holds {len(table)} pairs, {info.count} expected")
    return table


def _records(table: pa.Table | None) -> list[dict[str, Any]]:
    """Return the pairs in a table, without their images."""
    if table is None:
        return []
    columns = [each.name for each in RECORD_FIELDS if each.name in table.column_names]
    return cast(list[dict[str, Any]], table.select(columns).to_pylist())


def _check_shard(report: VerifyReport, shard: FileInfo, *, quick: bool) -> list[dict[str, Any]]:
    """Return the pairs in a shard without their images, and record its faults."""
    table = _read(report, shard, _images(report.info))
    if table is not None and not quick:
        report.faults.extend(_undecodable(report.info, shard, table, table["id"].to_pylist()))
    return _records(table)


def _images(info: DatasetInfo) -> list[str]:
    return ["polar", "street", *(["satellite"] if info.keep_tiles else [])]


def _undecodable(info: DatasetInfo, shard: FileInfo, table: pa.Table, ids: list[str]) -> Iterator[str]:
    shape = (info.geometry.height, info.geometry.width, 3)
    side = None if info.tile_px is None else info.tile_px + 2 * info.margin_px
    for column in [*_images(info), "seen"]:
        expected = shape if column != "satellite" else None if side is None else (side, side, 3)
        if column == "seen" and column not in table.column_names:
            continue
        for id, data in zip(ids, table.column(column), strict=True):
            if column == "seen" and data.as_py() is None:  # all of the panorama
                continue
            try:
                pixels = decode(data.as_py())
            except UnreadableImageError as error:
                yield f"{id}: {column} image in {shard.name} {error}"
                continue
            if expected is not None and pixels.shape != expected:
                yield f"{id}: {column} image in {shard.name} is {pixels.shape[1]} x {pixels.shape[0]}"


def _compare(
    split: str, info: SplitInfo, listed: list[dict[str, Any]], held: list[dict[str, Any]], seen: set[str]
) -> Iterator[str]:
    """Compare the pairs that the records list with those in the shards, and their numbers with `dataset.json`."""
    pairs = {pair["id"]: pair for pair in held}
    ids, found = [pair["id"] for pair in listed], [pair["id"] for pair in held]
    if len(ids) != info.count:
        yield f"{info.records.name} lists {len(ids)} pairs, {info.count} expected"
    if (count := sum(shard.count for shard in info.shards)) != info.count:
        yield f"{DATASET_FILE} lists {info.count} pairs of {split}, but its shards have {count} together"
    yield from (f"{id}: listed in {split}, but in none of its shards" for id in sorted(set(ids) - set(found)))
    yield from (f"{id}: in a shard of {split}, but not listed there" for id in sorted(set(found) - set(ids)))
    if set(ids) == set(found) and ids != found:
        yield f"{split}: the shards hold the pairs in a different order from {info.records.name}"
    for pair in listed:
        other = pairs.get(pair["id"], pair)
        if differing := [name for name in pair.keys() & other.keys() if pair[name] != other[name]]:
            yield f"{pair['id']}: {', '.join(sorted(differing))} in {info.records.name} differs from the shard"
    yield from (f"{id}: in more than one split" for id in ids if id in seen)


def _described(uri: str, info: DatasetInfo) -> Iterator[str]:
    """Compare `dataset.json` with `plan.json`, and its numbers with each other."""
    try:
        plan = StoredPlan.read(storage.join(uri, PLAN))
    except NotFoundError:
        yield f"{PLAN} is missing: `s2s prepare` does not recognise the data set as its own without it"
    except DamagedError as error:
        yield str(error)
    else:
        yield from _contradictions(info, plan)
    names = [file.name for split in info.splits.values() for file in (split.records, *split.shards)]
    yield from (f"{name} is listed more than once in {DATASET_FILE}" for name in sorted(_repeated(names)))
    pairs = sum(split.count for split in info.splits.values())
    if info.panoramas and sum(info.panoramas.values()) != pairs:
        yield f"{DATASET_FILE} counts {sum(info.panoramas.values())} panoramas for {pairs} pairs"


def _contradictions(info: DatasetInfo, plan: StoredPlan) -> Iterator[str]:
    rows = info.geometry.panorama_rows
    described = {
        "model.height": info.geometry.height,
        "model.width": info.geometry.width,
        "panorama_rows": None if rows is None else list(rows),
        "source": info.source,
        "prepare.encoding": info.encoding,
        "prepare.keep_tiles": info.keep_tiles,
        "prepare.margin_m": info.margin_m,
    }
    settings = {"prepare.margin_m": 0.0} | plan.settings
    for key, value in described.items():
        if key in settings and settings[key] != value:
            yield f"{DATASET_FILE} has {key}={value!r}, but {PLAN} has {settings[key]!r}"
    if info.digest != plan.digest:
        yield f"{DATASET_FILE} and {PLAN} have different digests: they describe different data sets"
    pairs = sum(split.count for split in info.splits.values()) + len(info.quarantine)
    if pairs != plan.records:
        yield f"{DATASET_FILE} lists {pairs} pairs with those in quarantine, but {PLAN} has {plan.records}"


def _repeated(names: Sequence[str]) -> set[str]:
    return {name for name, count in Counter(names).items() if count > 1}

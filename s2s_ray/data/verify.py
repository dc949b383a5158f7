"""Whether a data set is whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from s2s_ray import storage
from s2s_ray.data.description import DatasetInfo, FileInfo, SplitInfo, read_dataset_info
from s2s_ray.data.sources import published_counts
from s2s_ray.errors import NotFoundError, UnreadableImageError
from s2s_ray.geo.images import (
    decode,
)
from s2s_ray.runtime.progress import ProgressFactory, progress


@dataclass(frozen=True, slots=True)
class Comparison:
    """A split of a published data set: pairs that its authors published, that the archive lists, that can be used."""

    split: str
    published: int
    listed: int
    usable: int

    def line(self) -> str:
        """The comparison in words."""
        among = " (validation among them)" if self.split == "train" else ""
        found = f"{self.split}{among}: {self.published:,} pairs were published, the archive lists {self.listed:,}"
        if self.usable == self.published:
            return f"{found}, all of them usable"
        return f"{found}, {self.usable:,} of them usable: {self.published - self.usable:,} missing"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` found. Quarantined pairs are known to be absent and are no fault."""

    uri: str
    info: DatasetInfo
    faults: list[str] = field(default_factory=list)
    published: list[Comparison] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything that the manifest lists is there and readable."""
        return not self.faults

    @property
    def complete(self) -> bool:
        """Whether all pairs of a published data set can be used; true of data sets that are not published ones."""
        return all(part.usable == part.published for part in self.published)

    def lines(self) -> list[str]:
        """The report as text: counts, quarantined pairs with their reasons, faults."""
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
            lines.append("ok" if self.complete else "ok, but not all of the published pairs")
        return lines


def verify(uri: str, *, quick: bool = False, progress: ProgressFactory = progress) -> VerifyReport:
    """Check every file of a data set: there, of its size and checksum, with the pairs the records list; and decode
    every image, unless `quick`. All faults are collected, each naming the file or the id.

    Raises:
        DatasetError: there is no complete data set.
        StorageError: the storage cannot be reached.
    """
    info = read_dataset_info(uri)
    report = VerifyReport(uri, info, published=list(_comparisons(info)))
    files = sum(len(info.shards) + 1 for info in report.info.splits.values())
    seen: set[str] = set()
    with progress(files, "verify", "files") as advance:
        for split, info in report.info.splits.items():
            ids = _ids(report, info.records)
            advance(1)
            held: list[str] = []
            for shard in info.shards:
                held += _check_shard(report, shard, quick=quick)
                advance(1)
            report.faults.extend(_compare(split, info, ids, held, seen))
            seen.update(ids)
    return report


def _comparisons(info: DatasetInfo) -> Iterator[Comparison]:
    """Each split that is there against what was published. What was held out for validation counts as training."""
    published = published_counts(info.source)
    for split, count in (published or {}).items():
        parts = ("train", "val") if split == "train" else (split,)
        if not all(part in info.splits for part in parts):
            continue
        usable = sum(info.split(part).count for part in parts)
        lost = sum(entry.split in parts for entry in info.quarantine)
        yield Comparison(split, count, usable + lost, usable)


def _read(report: VerifyReport, info: FileInfo) -> pa.Table | None:
    """A file's table; None, with the fault noted, where it is not what the manifest lists."""
    try:
        data = storage.read_bytes(storage.join(report.uri, info.name))
    except NotFoundError:
        report.faults.append(f"{info.name} is missing")
        return None
    if len(data) != info.bytes:
        report.faults.append(f"{info.name} fails its checksum ({len(data)} bytes, {info.bytes} expected)")
    elif storage.sha256(data) != info.sha256:
        report.faults.append(f"{info.name} fails its checksum (of the right size, other bytes)")
    try:
        table = pa.ipc.open_file(data).read_all()
        table.validate(full=True)  # reading damaged offsets would end the process
        return table
    except (pa.ArrowInvalid, OSError) as error:
        report.faults.append(f"{info.name} is not an Arrow file ({error})")
        return None


def _ids(report: VerifyReport, info: FileInfo) -> list[str]:
    table = _read(report, info)
    return [] if table is None else list(table.column("id").to_pylist())


def _check_shard(report: VerifyReport, shard: FileInfo, *, quick: bool) -> list[str]:
    """Ids of the pairs in a shard, with its faults noted."""
    table = _read(report, shard)
    if table is None:
        return []
    ids: list[str] = table.column("id").to_pylist()
    if len(ids) != shard.count:
        report.faults.append(f"{shard.name} holds {len(ids)} pairs, {shard.count} expected")
    if not quick:
        report.faults.extend(_undecodable(report.info, shard, table, ids))
    return ids


def _undecodable(manifest: DatasetInfo, shard: FileInfo, table: pa.Table, ids: list[str]) -> Iterator[str]:
    shape = (manifest.geometry.height, manifest.geometry.width, 3)
    for column in ("polar", "street", *(["satellite"] if manifest.keep_tiles else [])):
        for id, data in zip(ids, table.column(column), strict=True):
            try:
                pixels = decode(data.as_py())
            except UnreadableImageError as error:
                yield f"{id}: {column} image in {shard.name} {error}"
                continue
            if column != "satellite" and pixels.shape != shape:
                yield f"{id}: {column} image in {shard.name} is {pixels.shape[1]} x {pixels.shape[0]}"


def _compare(split: str, info: SplitInfo, ids: list[str], held: list[str], seen: set[str]) -> Iterator[str]:
    if len(ids) != info.count:
        yield f"{info.records.name} lists {len(ids)} pairs, {info.count} expected"
    yield from (f"{id}: listed in {split}, but in none of its shards" for id in sorted(set(ids) - set(held)))
    yield from (f"{id}: in a shard of {split}, but not listed" for id in sorted(set(held) - set(ids)))
    if set(ids) == set(held) and ids != held:
        yield f"{split}: the shards hold the pairs in another order than {info.records.name}"
    yield from (f"{id}: in more than one split" for id in ids if id in seen)

"""Verification of a data set: every file, checksum, record and image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from s2s_ray import storage
from s2s_ray.data.description import DatasetInfo, FileInfo, SplitInfo, read_dataset_info
from s2s_ray.data.sources import published_counts
from s2s_ray.errors import NotFoundError, UnreadableImageError
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

    A file must exist, have its size and checksum, and hold the pairs that the records list. All faults are collected,
    each naming the file or the id.

    Raises:
        DatasetError: there is no complete data set.
        StorageError: the storage cannot be reached, or `dataset.json` is damaged.
    """
    dataset = read_dataset_info(uri)
    report = VerifyReport(uri, dataset, published=list(_comparisons(dataset)))
    files = sum(len(info.shards) + 1 for info in dataset.splits.values())
    seen: set[str] = set()
    with progress(files, "verify", "files") as advance:
        for split, info in dataset.splits.items():
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
    wanted = {"id": pa.string(), **dict.fromkeys(images, pa.large_binary())}
    wrong = [name for name, kind in wanted.items() if name not in table.column_names or table[name].type != kind]
    if wrong or table["id"].null_count:
        report.faults.append(f"{info.name} has no usable column {', '.join(wrong) or 'id'}")
        return None
    return table


def _ids(report: VerifyReport, info: FileInfo) -> list[str]:
    table = _read(report, info)
    return [] if table is None else list(table.column("id").to_pylist())


def _check_shard(report: VerifyReport, shard: FileInfo, *, quick: bool) -> list[str]:
    """Return the ids of the pairs in a shard, and record its faults."""
    table = _read(report, shard, _images(report.info))
    if table is None:
        return []
    ids: list[str] = table.column("id").to_pylist()
    if len(ids) != shard.count:
        report.faults.append(f"{shard.name} holds {len(ids)} pairs, {shard.count} expected")
    if not quick:
        report.faults.extend(_undecodable(report.info, shard, table, ids))
    return ids


def _images(info: DatasetInfo) -> list[str]:
    return ["polar", "street", *(["satellite"] if info.keep_tiles else [])]


def _undecodable(info: DatasetInfo, shard: FileInfo, table: pa.Table, ids: list[str]) -> Iterator[str]:
    shape = (info.geometry.height, info.geometry.width, 3)
    for column in _images(info):
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
    yield from (f"{id}: in a shard of {split}, but not listed there" for id in sorted(set(held) - set(ids)))
    if set(ids) == set(held) and ids != held:
        yield f"{split}: the shards hold the pairs in a different order from {info.records.name}"
    yield from (f"{id}: in more than one split" for id in ids if id in seen)

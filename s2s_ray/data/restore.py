"""Restoration of the files that a complete data set has lost."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from s2s_ray import storage
from s2s_ray.data.description import DatasetInfo, FileInfo, Quarantined
from s2s_ray.data.shard import Plan, encode_records, encode_shard, write_file
from s2s_ray.errors import DatasetError, NotFoundError

log = logging.getLogger(__name__)

_SHOWN = 3  # pairs in a message


def restore(plan: Plan, info: DatasetInfo) -> list[str]:
    """Write the files of a complete data set again that are missing or cut short; return their names.

    The source is read for them alone.

    Raises:
        DatasetError: the source or this version gives other bytes for a file than before. That file is not written; the
            lost files before it are.
        StorageError: the source or the data set cannot be reached.
    """
    lost = [
        file for split in info.splits.values() for file in (split.records, *split.shards) if not _is_there(plan, file)
    ]
    for file in lost:
        log.warning("%s/%s is missing or cut short: writing it again", plan.uri, file.name)
    known = {entry.id for entry in info.quarantine}
    for file, (found, data, quarantine) in zip(lost, _encoded(plan, info, lost), strict=True):
        if found != file:
            unreadable = [f"{entry.id}: {entry.reason}" for entry in quarantine if entry.id not in known]
            reason = (
                f"{len(unreadable)} of its pairs cannot be read any more ({'; '.join(unreadable[:_SHOWN])})"
                if unreadable
                else f"its images are not those from which {info.created_by} prepared it, or this version encodes "
                "them differently"
            )
            raise DatasetError(
                f"{plan.uri}/{file.name} cannot be written again, because {reason}: restore the images or "
                "this file, or delete the data set and prepare it again"
            )
        write_file(storage.join(plan.uri, file.name), data)
    return [file.name for file in lost]


def _is_there(plan: Plan, file: FileInfo) -> bool:
    try:
        return storage.size(storage.join(plan.uri, file.name)) == file.bytes
    except NotFoundError:
        return False


def _encoded(
    plan: Plan, info: DatasetInfo, lost: list[FileInfo]
) -> Iterator[tuple[FileInfo | None, bytes, tuple[Quarantined, ...]]]:
    """Yield what the plan gives for each file: its entry in `dataset.json`, its content, and its unreadable pairs."""
    quarantined = {entry.id for entry in info.quarantine}
    numbers = {f"{shard.name}.arrow": k for k, shard in enumerate(plan.shards)}
    splits = {part.records.name: split for split, part in info.splits.items()}
    for file in lost:
        if file.name in splits:
            members = [shard for shard in plan.shards if shard.split == splits[file.name]]
            records = [record for shard in members for record in shard.records if record.id not in quarantined]
            yield *encode_records(splits[file.name], records), ()
        elif file.name in numbers:
            data, report = encode_shard(plan, numbers[file.name])
            yield report.file, data, report.quarantine
        else:
            yield None, b"", ()

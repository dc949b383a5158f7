"""From a source to a data set: Arrow shards, one file of records a split, and `dataset.json`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from s2s_ray import storage
from s2s_ray.config import Config
from s2s_ray.data.description import (
    DATASET_FILE,
    DatasetInfo,
    FileInfo,
    SplitInfo,
    read_dataset_info,
)
from s2s_ray.data.holdout import hold_out
from s2s_ray.data.plan import make_plan
from s2s_ray.data.schema import SPLITS, Record, Split
from s2s_ray.data.shard import RECORD_SCHEMA, Plan, ShardReport, arrow_bytes, finished, record_columns, write_shard
from s2s_ray.data.sources import open_source
from s2s_ray.errors import DatasetError
from s2s_ray.runtime.cluster import ray_cluster
from s2s_ray.runtime.progress import ProgressFactory, progress
from s2s_ray.version import code_version

log = logging.getLogger(__name__)

_SHOWN = 5


def prepare(config: Config, *, progress: ProgressFactory = progress) -> DatasetInfo:
    """Make the data set at `data.uri` from `source`, or finish it where an earlier run was stopped.

    A pair with a missing or unreadable image goes to the quarantine list with its reason and does not stop the work.
    With `prepare.parallel` the shards are Ray Data tasks (of the cluster the caller has connected to; a local one
    otherwise); the result is the same byte for byte.

    Returns: the description of the data set that is now at `data.uri`.

    Raises:
        DatasetError: a split without a usable pair, or another data set at `data.uri`.
        StorageError: the source or `data.uri` cannot be reached.
        ValueError: a source that cannot be used.
    """
    source = open_source(config.source)
    records, validation = hold_out(
        source.records(), config.prepare.validation_fraction, config.prepare.validation_block_m
    )
    wanted = config.prepare.splits
    if "train" in wanted and sum(record.split == "train" for record in records) < 2:
        raise DatasetError("train split has fewer than 2 pairs (without those held out for validation): add some")
    records = [record for record in records if record.split in wanted]
    plan = make_plan(config, source, records)
    if storage.exists(storage.join(plan.uri, DATASET_FILE)):
        log.info("%s is complete already", config.data.uri)
        return read_dataset_info(plan.uri)
    reports = _write_shards(plan, config, progress)
    info = _finish(plan, config, reports, validation)
    log.info("%s: %s", config.data.uri, ", ".join(f"{split.count} {name}" for name, split in info.splits.items()))
    return info


def _write_shards(plan: Plan, config: Config, progress: ProgressFactory) -> list[ShardReport]:
    """Write what is not there yet and return the reports of all shards, in the order of the plan."""
    reports = {k: report for k in range(len(plan.shards)) if (report := finished(plan, k)) is not None}
    todo = [k for k in range(len(plan.shards)) if k not in reports]
    if reports:
        log.info("%d of %d shards are there already", len(reports), len(plan.shards))
    write = _with_ray if config.prepare.parallel else _in_process
    try:
        with progress(sum(len(plan.shards[k].records) for k in todo), "prepare", "pairs") as advance:
            for k in write(plan, todo, config.prepare.resources):
                advance(len(plan.shards[k].records))
    except KeyboardInterrupt:
        log.warning("interrupted; finished shards stay in %s, the same command goes on from there", config.data.uri)
        raise
    for k in todo:
        report = finished(plan, k)
        if report is None:
            raise DatasetError(
                f"shard {plan.shards[k].name} was written, but {config.data.uri} does not show it: with more than "
                "one machine data.uri must be a place that all of them share"
            )
        reports[k] = report
    for report in reports.values():
        for entry in report.quarantine:
            log.warning("quarantined: %s (%s): %s", entry.id, entry.split, entry.reason)
    return [reports[k] for k in range(len(plan.shards))]


def _in_process(plan: Plan, todo: Sequence[int], resources: Mapping[str, float]) -> Iterator[int]:
    for k in todo:
        write_shard(plan, k)
        yield k


def _with_ray(plan: Plan, todo: Sequence[int], resources: Mapping[str, float]) -> Iterator[int]:
    """The numbers of the shards as they are written, by Ray Data tasks of one shard each that ask for `resources`."""
    if not todo:
        return
    with ray_cluster():
        import ray.data

        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns of the line above
        logging.getLogger("ray.data._internal.execution.streaming_executor").setLevel(logging.WARNING)
        reference = ray.put(plan)

        def write(row: dict[str, Any]) -> dict[str, Any]:
            k = int(row["item"])
            try:
                write_shard(ray.get(reference), k)
            except ValueError as error:  # a user's error, to be told without the task's traceback
                return {"k": k, "fault": str(error)}
            return {"k": k, "fault": ""}

        shards = ray.data.from_items(list(todo), override_num_blocks=len(todo))
        others = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
        written = shards.map(
            write, num_cpus=resources.get("CPU"), num_gpus=resources.get("GPU"), resources=others or None
        )
        for row in written.iter_rows():
            if row["fault"]:
                raise DatasetError(row["fault"])
            yield int(row["k"])


def _finish(plan: Plan, config: Config, reports: Sequence[ShardReport], validation: str) -> DatasetInfo:
    """Write the splits' records and, last, the manifest."""
    quarantine = [entry for report in reports for entry in report.quarantine]
    lost = {entry.id for entry in quarantine}
    splits: dict[Split, SplitInfo] = {}
    for split in (split for split in SPLITS if split in config.prepare.splits):
        members = [(shard, report) for shard, report in zip(plan.shards, reports, strict=True) if shard.split == split]
        records = [record for shard, _ in members for record in shard.records if record.id not in lost]
        needed = 2 if split == "train" else 1
        if len(records) < needed:
            reasons = [f"{entry.id}: {entry.reason}" for entry in quarantine if entry.split == split]
            raise DatasetError(
                f"{split} split is empty: {len(records)} of its pairs can be used, {needed} needed "
                f"({'; '.join(reasons[:_SHOWN])})"
            )
        splits[split] = SplitInfo(
            count=len(records),
            records=_write_records(plan, split, records),
            shards=tuple(report.file for _, report in members if report.file is not None),
        )
    if quarantine:
        log.warning("%d of %d pairs are in quarantine, listed in %s", len(quarantine), _total(plan), DATASET_FILE)
    info = DatasetInfo(
        created_by=f"s2s-ray {code_version()}",
        digest=plan.digest,
        geometry=plan.geometry,
        encoding=plan.encoding,
        keep_tiles=plan.keep_tiles,
        source=config.source.model_dump(mode="json"),
        validation=validation,
        splits=splits,
        quarantine=tuple(quarantine),
        panoramas=dict(sorted(sum((Counter(report.panoramas) for report in reports), Counter()).items())),
    )
    for line in info.panorama_lines():
        log.info("%s", line)
    info.write(storage.join(plan.uri, DATASET_FILE))
    return info


def _write_records(plan: Plan, split: Split, records: Sequence[Record]) -> FileInfo:
    data = arrow_bytes(RECORD_SCHEMA, record_columns(records))
    name = f"{split}-records.arrow"
    storage.write_bytes(storage.join(plan.uri, name), data)
    return FileInfo(name=name, count=len(records), bytes=len(data), sha256=storage.sha256(data))


def _total(plan: Plan) -> int:
    return sum(len(shard.records) for shard in plan.shards)

"""Preparation of a data set from a source: Arrow shards, one file of records per split, and `dataset.json`."""

from __future__ import annotations

import logging
import pickle
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
from s2s_ray.data.plan import make_plan, metres_rule, source_settings
from s2s_ray.data.restore import restore
from s2s_ray.data.schema import SPLITS, Record, Split, TileSize
from s2s_ray.data.shard import Plan, ShardReport, encode_records, finished, write_file, write_shard
from s2s_ray.data.sources import open_source
from s2s_ray.errors import DatasetError, S2SError
from s2s_ray.runtime.cluster import ray_cluster
from s2s_ray.runtime.progress import ProgressFactory, progress
from s2s_ray.runtime.ray_settings import quieten_data
from s2s_ray.version import code_version

log = logging.getLogger(__name__)

_SHOWN = 5


def prepare(config: Config, *, progress: ProgressFactory = progress) -> DatasetInfo:
    """Make the data set at `data.uri` from `source`, or finish one that an earlier run left incomplete.

    Files that a complete data set has lost are written again.

    A pair with a missing or unreadable image goes to the quarantine list with its reason and does not stop the work.
    With `prepare.parallel` the shards are Ray Data tasks (on the cluster that the caller is connected to, otherwise on
    a local one); the result is the same byte for byte.

    Returns: the description of the data set at `data.uri`.

    Raises:
        InputError: a source that cannot be used: `ManifestError`, `ArchiveError`, `ConfigError`.
        DatasetError: a split without a usable pair, or another data set at `data.uri`.
        StorageError: the source or `data.uri` cannot be reached.
    """
    config.check_storable()
    source = open_source(config.source)
    metres = metres_rule(config.data.uri)
    records, validation = hold_out(
        source.records(), config.prepare.validation_fraction, config.prepare.validation_block_m, metres
    )
    wanted = config.prepare.splits
    if "train" in wanted and sum(record.split == "train" for record in records) < 2:
        raise DatasetError("train split has fewer than 2 pairs besides those held out for validation: add pairs")
    records = [record for record in records if record.split in wanted]
    plan = make_plan(config, source, records, metres)
    if storage.exists(storage.join(plan.uri, DATASET_FILE)):
        info = read_dataset_info(plan.uri)
        if not restore(plan, info):
            log.info("%s is already complete", config.data.uri)
        return info
    reports = _write_shards(plan, config, progress)
    info = _finish(plan, config, reports, validation, source.tile_size)
    log.info("%s: %s", config.data.uri, ", ".join(f"{split.count} {name}" for name, split in info.splits.items()))
    return info


def _write_shards(plan: Plan, config: Config, progress: ProgressFactory) -> list[ShardReport]:
    """Write the shards that are missing and return the reports of all shards, in the order of the plan."""
    reports = {k: report for k in range(len(plan.shards)) if (report := finished(plan, k)) is not None}
    todo = [k for k in range(len(plan.shards)) if k not in reports]
    if reports:
        log.info("%d of %d shards exist already", len(reports), len(plan.shards))
    write = _with_ray if config.prepare.parallel else _in_process
    try:
        with progress(sum(len(plan.shards[k].records) for k in todo), "prepare", "pairs") as advance:
            for k in write(plan, todo, config.prepare.resources):
                advance(len(plan.shards[k].records))
    except KeyboardInterrupt:
        log.warning("interrupted; finished shards stay in %s, and the same command resumes from them", config.data.uri)
        raise
    for k in todo:
        report = finished(plan, k)
        if report is None:
            raise DatasetError(
                f"shard {plan.shards[k].name} was written, but {config.data.uri} does not contain it: with more than "
                "one machine, data.uri must be storage that all of them share"
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
    """Write the shards in Ray Data tasks, one shard per task; yield the number of each when it is written.

    A task returns a known error instead of raising it, because Ray Data would log its traceback and wrap it.
    """
    if not todo:
        return
    with ray_cluster():
        import ray.data

        from s2s_ray.runtime.placement import Demand, require_room

        require_room(
            Demand("the preparation", 1, {"CPU": 1.0} | dict(resources), f"prepare.resources={dict(resources)!r}")
        )
        quieten_data()
        reference = ray.put(plan)

        def write(row: dict[str, Any]) -> dict[str, Any]:
            k = int(row["item"])
            try:
                write_shard(ray.get(reference), k)
            except S2SError as error:
                return {"k": k, "error": pickle.dumps(error)}
            return {"k": k, "error": b""}

        shards = ray.data.from_items(list(todo), override_num_blocks=len(todo))
        others = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
        written = shards.map(
            write, num_cpus=resources.get("CPU"), num_gpus=resources.get("GPU"), resources=others or None
        )
        for row in written.iter_rows():
            if row["error"]:
                error: S2SError = pickle.loads(row["error"])  # written by `write` above
                raise error
            yield int(row["k"])


def _finish(
    plan: Plan, config: Config, reports: Sequence[ShardReport], validation: str, size: TileSize | None
) -> DatasetInfo:
    """Write the splits' records and, last, `dataset.json`."""
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
                f"{split} split has too few usable pairs: {len(records)}, at least {needed} needed "
                f"({'; '.join(reasons[:_SHOWN])})"
            )
        splits[split] = SplitInfo(
            count=len(records),
            records=_write_records(plan, split, records),
            shards=tuple(report.file for _, report in members if report.file is not None),
        )
    if quarantine:
        log.warning(
            "%d of %d pairs are quarantined; they are listed in %s", len(quarantine), _total(plan), DATASET_FILE
        )
    panoramas = sum((Counter(report.panoramas) for report in reports), Counter())
    info = DatasetInfo(
        created_by=f"s2s-ray {code_version()}",
        digest=plan.digest,
        geometry=plan.geometry,
        encoding=plan.encoding,
        keep_tiles=plan.keep_tiles,
        source=source_settings(config),
        validation=validation,
        splits=splits,
        quarantine=tuple(quarantine),
        panoramas=dict(sorted(panoramas.items())),
        tile_m=None if size is None else size.metres,
        tile_px=None if size is None else size.px,
        margin_m=config.prepare.margin_m,
        masked=plan.masked and panoramas["part"] > 0,
    )
    for line in info.panorama_lines():
        log.info("%s", line)
    write_file(storage.join(plan.uri, DATASET_FILE), info.to_bytes())
    return info


def _write_records(plan: Plan, split: Split, records: Sequence[Record]) -> FileInfo:
    file, data = encode_records(split, records)
    write_file(storage.join(plan.uri, file.name), data)
    return file


def _total(plan: Plan) -> int:
    return sum(len(shard.records) for shard in plan.shards)

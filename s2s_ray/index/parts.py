"""Building an index in parts, with Ray Data on all nodes, resumable after an interruption.

A part is the descriptors of a number of consecutive tiles, one `.npy` file in a folder below `OUT.parts` and, if some
tiles cannot be read, a `.faults.json` beside it. The folder is named by everything that the descriptors depend on, so
that parts of another build are never mixed in. Writing a part is idempotent, and parts that exist are not made again.
When all exist, the index is assembled and published, and this build's folder of parts is deleted.
"""

from __future__ import annotations

import io
import json
import logging
import pickle
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from s2s_ray import storage
from s2s_ray.errors import DamagedError, NotFoundError, OptionError, ReferenceIndexError, S2SError, StorageError
from s2s_ray.geo.images import Descriptors
from s2s_ray.index.build import BATCH, assemble, embed, rows_to_embed
from s2s_ray.index.index import ReferenceIndex, require_place
from s2s_ray.index.tiles import TileSource
from s2s_ray.model.checkpoint import load_checkpoint
from s2s_ray.model.checkpoint_meta import fingerprint, model_config, read_meta
from s2s_ray.runtime.cluster import ray_cluster
from s2s_ray.runtime.progress import ProgressFactory, progress
from s2s_ray.runtime.ray_settings import quieten_data

log = logging.getLogger(__name__)

_FORMAT = "float32"  # of the parts; earlier versions rounded them to half precision, in folders of other names


@dataclass(frozen=True, slots=True)
class Build:
    """An index to build. URIs are absolute: workers have another working directory."""

    checkpoint: str
    source: TileSource
    out: str
    batch: int = BATCH
    device: str = "cpu"
    part: int = 1024
    """Tiles in a part, rounded up to whole batches."""
    extends: str | None = None
    """URI of an index to add the new tiles to."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A build divided into parts; everything that a worker needs."""

    checkpoint: str
    source: TileSource
    batch: int
    device: str
    rows: Sequence[int]
    size: int
    folder: str

    @classmethod
    def of(cls, build: Build, rows: Sequence[int]) -> Plan:
        """Divide the embedding of some rows of the source."""
        size = -(-build.part // build.batch) * build.batch
        chosen = storage.sha256(json.dumps(list(rows)).encode())
        names = (fingerprint(build.checkpoint), build.source.fingerprint, chosen)
        folder = "-".join([*(name[:16] for name in names), str(build.batch), str(size), _FORMAT])
        uri = storage.join(_parts_of(build.out), folder)
        return cls(build.checkpoint, build.source, build.batch, build.device, rows, size, uri)

    def __len__(self) -> int:
        return -(-len(self.rows) // self.size)

    def rows_of(self, part: int) -> Sequence[int]:
        """Return the rows of the source that a part covers."""
        return self.rows[part * self.size : (part + 1) * self.size]

    def descriptors_file(self, part: int) -> str:
        """Return the URI of a part's descriptors, which is written last."""
        return storage.join(self.folder, f"{part:06d}.npy")

    def faults_file(self, part: int) -> str:
        """Return the URI of the list of a part's unreadable tiles, which exists only if there are any."""
        return storage.join(self.folder, f"{part:06d}.faults.json")


class PartWriter:
    """Embeds the tiles of parts; one per worker, so that the model is loaded once."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._model = load_checkpoint(plan.checkpoint, plan.device)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write the part `row["item"]`; return its number and the number of its tiles."""
        part, plan = int(row["item"]), self._plan
        rows = plan.rows_of(part)
        blocks = list(embed(self._model, plan.source, rows, plan.batch, plan.device))
        storage.delete(plan.faults_file(part))  # of an attempt that ended before it wrote the descriptors
        if faults := {str(row): reason for block in blocks for row, reason in block.faults.items()}:
            storage.write_json(plan.faults_file(part), faults)
        buffer = io.BytesIO()
        np.save(buffer, np.concatenate([block.descriptors for block in blocks]), allow_pickle=False)
        storage.write_bytes(plan.descriptors_file(part), buffer.getvalue())
        return {"part": part, "tiles": len(rows)}


class _RayWorker:
    """`PartWriter` in an actor of Ray Data, which replaces errors by its own: they are returned instead of raised."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._writer: PartWriter | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            if self._writer is None:
                self._writer = PartWriter(self._plan)
            return {**self._writer(row), "error": b""}
        except S2SError as error:
            return {"part": row["item"], "tiles": 0, "error": pickle.dumps(error)}


def build_in_parts(
    build: Build, *, parallel: bool, progress: ProgressFactory = progress
) -> tuple[ReferenceIndex, list[str]]:
    """Embed what is not embedded yet, with Ray Data if `parallel`, and publish the index at `build.out`.

    Returns:
        The index, and one line for each tile that was left out because it cannot be read.

    Raises:
        ReferenceIndexError: no tile can be read, an index to extend of another checkpoint, `build.out` holds
            something else than an index, or another process has deleted the parts.
        OptionError: `build.out` cannot hold an index with its parts beside it.
        RegistryError, StorageError, CheckpointError, DatasetError, ManifestError: the checkpoint or the tiles cannot
            be read.
    """
    folder = _parts_of(build.out)
    require_place(build.out)
    checkpoint = fingerprint(build.checkpoint)
    dimension = model_config(read_meta(build.checkpoint), build.checkpoint).descriptor_size
    extends = None if build.extends is None else ReferenceIndex.load(build.extends)
    plan = Plan.of(build, rows_to_embed(build.source, dimension, checkpoint, extends))
    existing = set(storage.list_names(plan.folder))
    todo = [part for part in range(len(plan)) if storage.name(plan.descriptors_file(part)) not in existing]
    if len(todo) < len(plan):
        log.info("%d of %d parts exist already", len(plan) - len(todo), len(plan))
    try:
        with progress(sum(len(plan.rows_of(part)) for part in todo), "index", "tiles") as advance:
            for done in _with_ray(plan, todo) if parallel else map(PartWriter(plan), [{"item": part} for part in todo]):
                advance(done["tiles"])
    except KeyboardInterrupt:
        log.warning("interrupted; finished parts stay in %s, and the same command resumes", plan.folder)
        raise
    try:
        parts = (_read(plan.descriptors_file(part)) for part in range(len(plan)))
        index, lines = assemble(build.source, plan.rows, parts, _faults(plan), dimension, checkpoint, extends)
    except (NotFoundError, ReferenceIndexError):
        present = set(storage.list_names(plan.folder))
        if all(storage.name(plan.descriptors_file(part)) in present for part in range(len(plan))):
            raise
        return _built_by_another(build, plan, checkpoint, extends)
    index.save(build.out, replace=True)
    try:
        storage.delete(plan.folder)
    except StorageError as error:  # the index is complete all the same
        log.warning("could not delete the parts of the finished index: %s", error)
    if storage.is_local(build.out):
        with suppress(OSError):  # parts of other builds are there, or nothing is
            storage.local_path(folder).rmdir()
    return index, lines


def _faults(plan: Plan) -> dict[int, str]:
    """Return the reason for each row whose tile cannot be read."""
    faults: dict[int, str] = {}
    for name in storage.list_names(plan.folder):
        if name.endswith(".faults.json"):
            tree = storage.read_json(storage.join(plan.folder, name))
            faults.update({int(row): str(reason) for row, reason in tree.items()})
    return faults


def _built_by_another(
    build: Build, plan: Plan, checkpoint: str, extends: ReferenceIndex | None
) -> tuple[ReferenceIndex, list[str]]:
    """Return the index at `build.out` after another process has built it from the same parts and deleted them.

    Raises:
        ReferenceIndexError: it is another index.
        StorageError: it is missing or cannot be read.
    """
    error = ReferenceIndexError(
        f"the parts of this index in {plan.folder} were deleted while it was built, as another process does that "
        f"builds the same one, and {build.out} does not hold it: build it again, in one process at a time"
    )
    try:
        index = ReferenceIndex.load(build.out)
    except NotFoundError:
        raise error from None
    info, source, ids = index.info, build.source, index.ids()
    added = {source.ids[row] for row in plan.rows}
    before = frozenset[str]() if extends is None else extends.ids()
    origin = (source.digest, source.split) if extends is None else (extends.info.dataset_digest, extends.info.split)
    if (info.checkpoint, info.dataset_digest, info.split) != (
        checkpoint,
        *origin,
    ) or not before <= ids <= before | added:
        raise error
    log.warning("another process has built the same index at %s meanwhile", build.out)
    return index, [f"{id}: the process that built the index left it out" for id in sorted(added - ids)]


def _parts_of(out: str) -> str:
    """Return the folder beside an index for the parts of all its builds.

    Raises:
        OptionError: there is no place beside the index.
    """
    path = str(storage.local_path(out)) if storage.is_local(out) else out.partition("://")[2]
    above, _, name = path.rstrip("/").rpartition("/")
    if name in ("", "..") or not (above or storage.is_local(out)):
        raise OptionError(f"--out {out}: expected the name of a folder, with room for another one beside it")
    return f"{out.rstrip('/')}.parts"


def _with_ray(plan: Plan, todo: Sequence[int]) -> Iterator[dict[str, Any]]:
    if not todo:
        return
    with ray_cluster():
        import ray.data

        from s2s_ray.runtime.placement import Demand, require_room

        quieten_data()
        gpus = int(plan.device != "cpu")
        needed = {"GPU": 1.0} if gpus else {"CPU": 1.0}
        most = require_room(Demand("the index", 1, needed, f"device={plan.device!r}")) or len(todo)
        workers = ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(most, len(todo))))
        parts = ray.data.from_items(list(todo), override_num_blocks=len(todo))
        writers = parts.map(
            cast(Any, _RayWorker), fn_constructor_args=(plan,), compute=workers, num_cpus=1 - gpus, num_gpus=gpus
        )
        for row in writers.iter_rows():
            if row["error"]:
                error: S2SError = pickle.loads(row["error"])  # written by `_RayWorker`
                raise error
            yield row


def _read(uri: str) -> Descriptors:
    try:
        content: Descriptors = np.load(io.BytesIO(storage.read_bytes(uri)), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DamagedError(f"{uri} is not an array ({error}): delete it and build the index again") from None
    return content

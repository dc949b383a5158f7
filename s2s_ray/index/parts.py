"""Building an index in parts with Ray Data: on all nodes, and from where it was stopped.

A part is the descriptors of a run of tiles, one `.npy` file below `OUT.parts`, in a folder named by the checkpoint and
the data set, so that parts of others are never taken for one's own. Writing a part is idempotent; parts that are there
are not made again. When all are there the index is put together and published, and the parts are deleted.
"""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from s2s_ray import registry, storage
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.entries import entries_table
from s2s_ray.data.schema import Split
from s2s_ray.errors import ReferenceIndexError
from s2s_ray.index.index import (
    IndexInfo,
    ReferenceIndex,
)
from s2s_ray.index.vectors import HALVES_FILE
from s2s_ray.model.checkpoint import load_checkpoint
from s2s_ray.runtime.cluster import ray_cluster
from s2s_ray.runtime.progress import ProgressFactory, progress

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Build:
    """What is built from what; all that a worker needs to know."""

    checkpoint: str
    dataset: str
    split: Split
    out: str
    cache_dir: str | None = None
    batch: int = 64
    device: str = "cpu"
    part: int = 1024
    """Tiles in a part; part of its folder's name, since parts of another size are others."""

    def parts(self, dataset: PairDataset) -> str:
        """The folder of this build's parts."""
        mark = registry.fingerprint(self.checkpoint)
        return storage.join(f"{self.out}.parts", f"{mark[:16]}-{dataset.manifest.digest[:16]}-{self.split}-{self.part}")

    def open_dataset(self) -> PairDataset:
        return PairDataset(self.dataset, self.split, cache_dir=self.cache_dir)


class PartWriter:
    """Embeds the tiles of parts; one per worker, so that the model is loaded once."""

    def __init__(self, build: Build) -> None:
        self._build = build
        self._dataset = build.open_dataset()
        self._folder = build.parts(self._dataset)
        self._model = load_checkpoint(build.checkpoint, build.device)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write the part `row["item"]`; gives its number and how many tiles it has."""
        part = int(row["item"])
        size = self._build.part
        rows = range(part * size, min((part + 1) * size, len(self._dataset)))
        descriptors = np.concatenate(
            [self._embed(rows[start : start + self._build.batch]) for start in range(0, len(rows), self._build.batch)]
        )
        buffer = io.BytesIO()
        np.save(buffer, descriptors.astype(np.float16), allow_pickle=False)
        storage.write_bytes(_file(self._folder, part), buffer.getvalue())
        return {"part": part, "tiles": len(rows)}

    @torch.inference_mode()
    def _embed(self, rows: range) -> np.ndarray[Any, np.dtype[np.float32]]:
        polar = torch.stack([self._dataset[row].polar for row in rows]).to(self._build.device)
        embedded: np.ndarray[Any, np.dtype[np.float32]] = self._model.embed_satellite(polar).float().cpu().numpy()
        return embedded


def build_in_parts(build: Build, *, parallel: bool, progress: ProgressFactory = progress) -> int:
    """Embed what is not embedded yet, with Ray Data if `parallel`, and publish the index at `build.out`.

    Returns: the number of tiles.

    Raises:
        ReferenceIndexError: a data set without tiles.
        RegistryError, StorageError, CheckpointError, DatasetError: what it is built from cannot be read.
    """
    dataset = build.open_dataset()
    if not len(dataset):
        raise ReferenceIndexError(f"data set {dataset.uri} has no pairs to index (split: {build.split})")
    folder = build.parts(dataset)
    count = -(-len(dataset) // build.part)
    there = set(storage.list_names(folder))
    todo = [part for part in range(count) if storage.name(_file(folder, part)) not in there]
    if len(todo) < count:
        log.info("%d of %d parts are there already", count - len(todo), count)
    try:
        with progress(len(todo), "embed", "parts") as advance:
            for _ in _with_ray(build, todo) if parallel else map(PartWriter(build), [{"item": k} for k in todo]):
                advance(1)
    except KeyboardInterrupt:
        log.warning("interrupted; finished parts stay in %s, the same command goes on from there", folder)
        raise
    with tempfile.TemporaryDirectory() as local:
        _put_together(build, dataset, folder, count, Path(local)).save(build.out)
    storage.delete(f"{build.out}.parts")
    return len(dataset)


def _with_ray(build: Build, todo: Sequence[int]) -> Iterator[dict[str, Any]]:
    if not todo:
        return
    with ray_cluster():
        import ray.data

        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns of the line above
        logging.getLogger("ray.data._internal.execution.streaming_executor").setLevel(logging.WARNING)
        gpus = int(build.device != "cpu")
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        most = int(resources.get("GPU" if gpus else "CPU", 1))
        workers = ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(most, len(todo))))
        parts = ray.data.from_items(list(todo), override_num_blocks=len(todo))
        writers = parts.map(
            cast(Any, PartWriter), fn_constructor_args=(build,), compute=workers, num_cpus=1 - gpus, num_gpus=gpus
        )
        yield from writers.iter_rows()


def _put_together(build: Build, dataset: PairDataset, folder: str, count: int, local: Path) -> ReferenceIndex:
    first = _read(folder, 0)
    shape = (len(dataset), first.shape[1])
    # In a file: a million descriptors do not fit into memory beside what is made of them.
    halves = np.memmap(local / HALVES_FILE, np.float16, "w+", shape=shape)
    for part in range(count):
        halves[part * build.part : (part + 1) * build.part] = first if part == 0 else _read(folder, part)
    info = IndexInfo(
        dimension=shape[1],
        count=shape[0],
        checkpoint=registry.fingerprint(build.checkpoint),
        dataset=dataset.uri,
        dataset_digest=dataset.manifest.digest,
        split=build.split,
    )
    index = ReferenceIndex.build(info, halves, entries_table(dataset))
    index.draw_from(dataset)
    return index


def _file(folder: str, part: int) -> str:
    return storage.join(folder, f"{part:06d}.npy")


def _read(folder: str, part: int) -> np.ndarray[Any, np.dtype[np.float16]]:
    content: np.ndarray[Any, np.dtype[np.float16]] = np.load(
        io.BytesIO(storage.read_bytes(_file(folder, part))), allow_pickle=False
    )
    return content

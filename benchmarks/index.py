"""Approximate search against exact search: recall, time of one query on one thread, memory, time to build.

    python benchmarks/index.py                              1,000,000 x 2048 made-up descriptors
    python benchmarks/index.py --count 100000               fewer
    python benchmarks/index.py --checkpoint demo/runs/demo --data demo/data
                                                            real ones of a trained model: every tile of the data set
                                                            at 13 headings, panoramas of its test split as queries

The made-up ones lie on a sphere of 64 dimensions turned into 2048, with noise in all of them; a query is its match
turned away until their cosine is between 0.5 and 0.8, half of the way within the 64 dimensions and half in all.
The measurement runs in a process of its own that has only loaded the index; the file's pages are dropped from memory
first for the cold figures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
import torch

from s2s_ray.data.dataset import PairDataset
from s2s_ray.index.vectors import HALVES_FILE, INDEX_FILE, CompressedVectors
from s2s_ray.model.checkpoint import load_checkpoint
from s2s_ray.training.run import find_checkpoint

DIMENSION, INTRINSIC, NOISE = 2048, 64, 0.1
QUERIES, CHUNK, K = 100, 20_000, 10
HEADINGS = 13


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


class Made:
    """Descriptors by row, without holding them."""

    def __init__(self, count: int) -> None:
        self.count = count
        generator = np.random.default_rng(0)
        self._turn = np.linalg.qr(generator.normal(size=(DIMENSION, INTRINSIC)))[0].T.astype(np.float32)

    def chunk(self, start: int) -> np.ndarray:
        generator = np.random.default_rng([1, start])
        size = min(CHUNK, self.count - start)
        latent = unit(generator.standard_normal((size, INTRINSIC), np.float32))
        noise = generator.standard_normal((size, DIMENSION), np.float32) * np.float32(NOISE / DIMENSION**0.5)
        return unit(latent @ self._turn + noise)

    def queries(self) -> np.ndarray:
        generator = np.random.default_rng(2)
        matches = self.chunk(0)[:QUERIES]
        inner = unit(generator.normal(size=(QUERIES, INTRINSIC)) @ self._turn)
        away = unit(inner + unit(generator.normal(size=(QUERIES, DIMENSION))))
        away = unit(away - (away * matches).sum(1, keepdims=True) * matches)
        cosines = generator.uniform(0.5, 0.8, (QUERIES, 1))
        return (cosines * matches + np.sqrt(1 - cosines**2) * away).astype(np.float32)


def exact(chunks, queries: np.ndarray) -> np.ndarray:
    """Rows of the K nearest, by full-precision inner products."""
    best, rows = np.full((len(queries), K), -2.0, np.float32), np.zeros((len(queries), K), np.int64)
    for start, chunk in chunks:
        similarities = np.concatenate([best, queries @ chunk.T], axis=1)
        ids = np.concatenate(
            [rows, np.broadcast_to(np.arange(start, start + len(chunk)), (len(queries), len(chunk)))], 1
        )
        top = np.argpartition(-similarities, K, axis=1)[:, :K]
        best, rows = np.take_along_axis(similarities, top, 1), np.take_along_axis(ids, top, 1)
    return rows


def memory() -> dict[str, int]:
    """This process's memory in kB, by the names of /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("Rss", "VmHWM"))}


def real(checkpoint: str, data: str) -> tuple[np.ndarray, np.ndarray]:
    """Descriptors of all tiles, turned around their centre in steps, and of the test split's panoramas."""
    model = load_checkpoint(find_checkpoint(checkpoint))
    tiles, queries = [], []
    with torch.inference_mode():
        for split in ("train", "val", "test"):
            dataset = PairDataset(data, split)
            for start in range(0, len(dataset), 32):
                samples = [dataset[row] for row in range(start, min(start + 32, len(dataset)))]
                polar = torch.stack([sample.polar for sample in samples])
                # The polar image of a turned tile is the polar image, shifted.
                for step in range(HEADINGS):
                    shift = round(step * polar.shape[-1] / HEADINGS)
                    tiles.append(model.embed_satellite(polar.roll(shift, -1)).numpy())
                if split == "test":
                    queries.append(model.embed_street(torch.stack([sample.street for sample in samples])).numpy())
    return np.concatenate(tiles), np.concatenate(queries)


def make(folder: Path, count: int, checkpoint: str | None, data: str | None) -> None:
    """Write the descriptors, the queries and the exact answers, unless they are there."""
    if (folder / "truth.npy").is_file():
        return
    if checkpoint is None or data is None:
        made = Made(count)
        queries, shape = made.queries(), (count, DIMENSION)
        chunks = ((start, made.chunk(start)) for start in range(0, count, CHUNK))
    else:
        gallery, queries = real(checkpoint, data)
        shape = gallery.shape
        chunks = ((start, gallery[start : start + CHUNK]) for start in range(0, len(gallery), CHUNK))
    halves = np.memmap(folder / HALVES_FILE, np.float16, "w+", shape=shape)

    def written():
        for start, chunk in chunks:
            halves[start : start + len(chunk)] = chunk
            yield start, chunk

    started = time.monotonic()
    truth = exact(written(), queries)
    halves.flush()
    np.save(folder / "queries.npy", queries)
    (folder / "shape.json").write_text(json.dumps(shape))
    np.save(folder / "truth.npy", truth)
    print(f"{shape[0]:,} x {shape[1]}: made and searched exactly in {time.monotonic() - started:.0f} s", flush=True)


def build(folder: Path) -> None:
    """Build the index, unless it is there."""
    if (folder / INDEX_FILE).is_file():
        return
    shape = tuple(json.loads((folder / "shape.json").read_text()))
    started = time.monotonic()
    index = CompressedVectors.build(np.memmap(folder / HALVES_FILE, np.float16, "r", shape=shape))
    faiss.write_index(index._index, str(folder / INDEX_FILE))
    seconds, used = time.monotonic() - started, memory()
    print(
        f"built in {seconds:.0f} s; at the end {used['RssAnon'] / 1e6:.1f} GB of memory, "
        f"peak {used['VmHWM'] / 1e6:.1f} GB with the mapped file",
        flush=True,
    )


def measure(folder: Path) -> None:
    """In a process of its own: load, ask, print JSON."""
    faiss.omp_set_num_threads(1)
    with (folder / HALVES_FILE).open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    index = CompressedVectors.load(folder)
    queries, truth = np.load(folder / "queries.npy"), np.load(folder / "truth.npy")
    times: dict[str, list[float]] = {"cold": [], "warm": []}
    for name in times:
        hits = 0
        for query, right in zip(queries, truth, strict=True):
            started = time.perf_counter()
            rows = index.search(query[None], K, None)[1][0]
            times[name].append(time.perf_counter() - started)
            hits += len(set(rows) & set(right))
    status = memory()
    figures = {
        "recall_at_10": hits / truth.size,
        **{f"{name}_median_ms": 1000 * float(np.median(taken)) for name, taken in times.items()},
        **{f"{name}_p95_ms": 1000 * float(np.quantile(taken, 0.95)) for name, taken in times.items()},
        "anonymous_mb": status["RssAnon"] / 1000,
        "mapped_mb": status["RssFile"] / 1000,
    }
    print(json.dumps({key: round(value, 3) for key, value in figures.items()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--checkpoint")
    parser.add_argument("--data")
    parser.add_argument("--folder", type=Path, help="Keeps what is made; the same command goes on there.")
    parser.add_argument("--measure", action="store_true", help="Only measure what the folder has.")
    options = parser.parse_args()
    if options.measure:
        measure(options.folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        make(folder, options.count, options.checkpoint, options.data)
        build(folder)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--measure", "--folder", str(folder)]
        subprocess.run(command, env=environment, check=True)


if __name__ == "__main__":
    main()

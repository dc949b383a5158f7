"""Compare the input path with decoding alone, in pairs per second on one core.

    python benchmarks/loader.py

The whole path is what a training worker does: a DataLoader over memory-mapped shards that decodes both images of each
pair, mirrors half of the pairs and combines them into batches. Decoding alone turns the same bytes, already in memory,
into arrays. The pairs are those of a procedural city at the paper's size. Repetitions alternate; the share is the
median of their ratios. Exits with 1 if it is below 0.8.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import torch
from torch.utils.data import DataLoader

from s2s_ray.config import load_config
from s2s_ray.data.batch import Batch
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.prepare import prepare
from s2s_ray.data.sampler import GlobalBatchSampler
from s2s_ray.geo.images import decode


def made(folder: str, pairs: int, encoding: str) -> PairDataset:
    """Prepare a procedural city at the paper's size."""
    sizes = [f"source.train_pairs={pairs}", "source.test_pairs=2", "source.tile_px=256"]
    panorama = ["source.panorama_height=112", "source.panorama_width=616", "prepare.shard_mb=4"]
    places = [f"data.uri={folder}", "prepare.parallel=false", f"prepare.encoding={encoding}"]
    prepare(load_config("paper", ["source.kind=synthetic", *sizes, *panorama, *places]))
    return PairDataset(folder, "train", flip=0.5)


def whole_path(dataset: PairDataset, epoch: int) -> float:
    """Return the pairs per second of one epoch as a training worker reads it."""
    sampler = GlobalBatchSampler(dataset.shard_sizes, seed=0, window=8, batch=32, epoch=epoch)
    loader: DataLoader[Batch] = DataLoader(dataset, batch_sampler=sampler, collate_fn=dataset.collate)  # type: ignore[arg-type]
    start = time.perf_counter()
    pairs = sum(len(batch) for batch in loader)
    return pairs / (time.perf_counter() - start)


def decoding(images: list[bytes]) -> float:
    """Return the pairs per second of decoding."""
    start = time.perf_counter()
    for image in images:
        decode(image)
    return len(images) / 2 / (time.perf_counter() - start)


def encoded(dataset: PairDataset) -> list[bytes]:
    """Return all images of a data set as stored in its shards."""
    tables = [dataset._cache.table(shard) for shard in dataset._shards]
    return [image for table in tables for column in ("polar", "street") for image in table.column(column).to_pylist()]


def main() -> int:
    """Print a row for each encoding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=160)
    parser.add_argument("--encodings", nargs="+", default=["png", "jpeg", "webp"])
    parser.add_argument("--repetitions", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    holds = True
    print("encoding   whole path, pairs/s   decoding alone   share (goal 0.8)", flush=True)
    for encoding in arguments.encodings:
        with tempfile.TemporaryDirectory(prefix="s2s-loader-") as folder:
            dataset = made(folder, arguments.pairs, encoding)
            images = encoded(dataset)
            rounds = [(whole_path(dataset, epoch), decoding(images)) for epoch in range(arguments.repetitions + 1)][1:]
        share = statistics.median(path / alone for path, alone in rounds)
        path, alone = (statistics.median(rates) for rates in zip(*rounds, strict=True))
        print(f"{encoding:8s}   {path:19.0f}   {alone:14.0f}   {share:16.2f}", flush=True)
        holds &= share >= 0.8
    print("the goal is met" if holds else "THE GOAL IS MISSED")
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""Memory and time of ranking a gallery of the size of CVACT_test, with the 5 m rule.

    python benchmarks/protocol.py                      # all 92,802 queries, street to satellite
    python benchmarks/protocol.py --queries 4096       # the first chunk: the same memory, part of the time

Descriptors are random unit vectors of 2048 numbers in files, as in `evaluate` on a machine without a GPU; places are
drawn so that a query has a few correct tiles. It prints the largest resident memory of the process so far.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import torch
import torch.nn.functional as F

from s2s_ray.evaluation.recall import Nearby, nearest, recall_at_k
from s2s_ray.evaluation.rows import StoredRows
from s2s_ray.geo.places import Places

STEP = 2048


def stored(count: int, dimension: int, seed: int) -> StoredRows:
    """Return random unit rows in a file."""
    generator = torch.Generator().manual_seed(seed)
    rows = StoredRows(count, dimension)
    for start in range(0, count, STEP):
        part = rows[start : start + STEP]
        rows[start : start + len(part)] = F.normalize(torch.randn(part.shape, generator=generator))
    return rows


def peak_mb() -> float:
    """Return the largest resident memory of this process so far, in 10^6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main() -> int:
    """Print a line for each step; return 1 if more than 2 GB were needed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gallery", type=int, default=92_802)
    parser.add_argument("--queries", type=int, help="default: as many as tiles")
    parser.add_argument("--dimension", type=int, default=2048)
    arguments = parser.parse_args()
    count, queries = arguments.gallery, arguments.queries or arguments.gallery
    print(f"{queries:,} queries, {count:,} tiles, {arguments.dimension} numbers; at rest {peak_mb():.0f} MB")
    street, satellite = (stored(rows, arguments.dimension, seed) for seed, rows in enumerate((queries, count)))
    # random places in a square of such a size that about four tiles are within 5 m of a query
    side = (count * np.pi * 25 / 4) ** 0.5
    spots = np.random.default_rng(0).uniform(0, side, (count, 2)) + np.array([690_000.0, 6_090_000.0])
    places = Places(spots, np.full(count, 32755))
    nearby = Nearby(places[slice(0, queries)], places, 5.0)
    for name, work in (
        ("recall", lambda: recall_at_k(street, satellite, truth=torch.arange(queries), nearby=nearby)),
        ("closest five", lambda: nearest(street, satellite, 5)),
    ):
        began = time.perf_counter()
        work()
        seconds = time.perf_counter() - began
        rate = queries * count / seconds / 1e6
        print(f"{name}: {seconds:.0f} s, {rate:.1f} million comparisons a second; largest so far {peak_mb():.0f} MB")
    return 0 if peak_mb() < 2000 else 1


if __name__ == "__main__":
    raise SystemExit(main())

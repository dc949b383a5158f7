"""Compare the speed at which the usual NumPy script and this library unroll tiles, on one core.

    python benchmarks/prepare.py

The usual script evaluates the formula for all pixels of the result with NumPy: four samples in float64, zero outside
the tile, again for every tile. Ours is `s2s_ray.geo.prepare.prepare_satellite`, which preparation and the service call.
Repetitions alternate; the speed-up is the median of their ratios. Exits with 1 if it is below 6 x or a pixel differs
by more than one grey level.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from s2s_ray.geo.prepare import prepare_satellite

Pixels = NDArray[np.uint8]


def usual(tile: Pixels, height: int, width: int) -> Pixels:
    """Unroll S S 3 to height width 3 by the formula, written for NumPy in the straightforward way."""
    size = tile.shape[0]
    i, j = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    radius = size / 2 / height * (height - 1 - i)
    azimuth = 2 * np.pi * j / width
    row, column = size / 2 + radius * np.cos(azimuth), size / 2 - radius * np.sin(azimuth)
    top, left = np.floor(row).astype(int), np.floor(column).astype(int)
    polar = np.zeros((height, width, 3))
    for r, row_weight in ((top, top + 1 - row), (top + 1, row - top)):
        for c, column_weight in ((left, left + 1 - column), (left + 1, column - left)):
            inside = (r >= 0) & (r < size) & (c >= 0) & (c < size)
            taps = np.zeros((height, width, 3))
            taps[inside] = tile[r[inside], c[inside]]
            polar += (row_weight * column_weight)[:, :, None] * taps
    return np.rint(polar).clip(0, 255).astype(np.uint8)


def seconds(function: Callable[[Pixels], object], tiles: list[Pixels]) -> float:
    """Return the time per tile."""
    start = time.perf_counter()
    for tile in tiles:
        function(tile)
    return (time.perf_counter() - start) / len(tiles)


def main() -> int:
    """Print both rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=750, help="side of a tile in pixels")
    parser.add_argument("--height", type=int, default=112)
    parser.add_argument("--width", type=int, default=616)
    parser.add_argument("--tiles", type=int, default=8, help="tiles per repetition")
    parser.add_argument("--repetitions", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shape = (arguments.height, arguments.width)
    generator = np.random.default_rng(0)
    tiles = [generator.integers(0, 256, (arguments.size,) * 2 + (3,), np.uint8) for _ in range(arguments.tiles)]

    def ours(tile: Pixels) -> torch.Tensor:
        return prepare_satellite(tile, *shape)

    def plain(tile: Pixels) -> Pixels:
        return usual(tile, *shape)

    difference = max(int(np.abs(plain(tile).astype(int) - ours(tile).permute(1, 2, 0).numpy()).max()) for tile in tiles)
    rounds = [(seconds(plain, tiles), seconds(ours, tiles)) for _ in range(arguments.repetitions)]
    print(f"{arguments.size} px tiles to {shape[0]} x {shape[1]}, one core")
    print("arm       ms a tile (min)   tiles/s")
    for name, times in zip(("usual", "ours"), zip(*rounds, strict=True), strict=True):
        middle = statistics.median(times)
        print(f"{name:5s}   {middle * 1e3:8.2f} ({min(times) * 1e3:.2f})   {1 / middle:7.1f}")
    ratio = statistics.median(slow / fast for slow, fast in rounds)
    holds = ratio >= 6 and difference <= 1
    print(f"speed-up {ratio:.1f} x (goal 6 x), largest difference {difference} grey levels (goal at most 1)")
    print("the goal is met" if holds else "THE GOAL IS MISSED")
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())

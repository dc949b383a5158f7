"""A checkpoint in the layout of the authors' files, filled with seeded numbers that anybody can make again.

    python tests/conformance/seeded_checkpoint.py 1234 released.pth

`layout.json` lists every name and shape. The expected results in this folder are what the authors' own networks gave
for the checkpoint of seed 1234 (see README.md).
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

FOLDER = Path(__file__).parent
SEED = 1234
POWER_ITERATIONS = 15


def expected(name: str) -> Any:
    """Return the expected results of `outputs`, `cycles` or `polar`."""
    return json.loads((FOLDER / f"{name}_{SEED}.json").read_text())


def layout() -> dict[str, dict[str, list[int]]]:
    """Return the shape of each tensor by section and name, at full width and 112 x 616."""
    sections: dict[str, dict[str, list[int]]] = json.loads((FOLDER / "layout.json").read_text())
    return sections


def picked(values: Tensor, count: int) -> np.ndarray[Any, Any]:
    """Return the values of a tensor at the seeded positions at which the expected ones were taken."""
    flat = values.detach().reshape(-1).numpy()
    return flat[np.random.RandomState(1).randint(0, flat.size, count)]


def write_checkpoint(path: Path, seed: int = SEED) -> None:
    """Write the checkpoint of a seed."""
    sections = {section: _seeded(shapes, seed) for section, shapes in layout().items()}
    rest = {"last_epoch": 3, "best_acc": 50.0, **{f"optimizer_{network}_dict": {} for network in "GDR"}}
    torch.save({**sections, **rest}, path)


def _seeded(shapes: Mapping[str, Sequence[int]], seed: int) -> dict[str, Tensor]:
    """Return the tensors of one section; each depends on its name, its shape and the seed alone."""
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros((), dtype=torch.long)
        else:
            random = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
            state[name] = torch.tensor(_scaled(name, random.standard_normal(tuple(shape))), dtype=torch.float32)
    for name in shapes:
        if name.endswith("weight_orig"):
            matrix, stem = state[name].flatten(1), name.removesuffix("orig")
            u = state[f"{stem}u"]
            for _ in range(POWER_ITERATIONS):  # singular vectors as a trained network has them
                v = normalize(matrix.t() @ u, dim=0)
                u = normalize(matrix @ v, dim=0)
            state[f"{stem}u"], state[f"{stem}v"] = u, v
    return state


def _scaled(name: str, values: Any) -> Any:
    """Scale standard normal numbers so that activations stay of the size of one."""
    if name.endswith(("_u", "_v")):
        return values / np.linalg.norm(values)
    if name.endswith("running_var"):
        return 1 + 0.1 * np.abs(values)
    if name.endswith("running_mean"):
        return 0.1 * values
    if np.ndim(values) == 0 or (np.ndim(values) == 1 and name.endswith("weight")):
        return 0.5 + 0.1 * values
    if np.ndim(values) == 1:
        return 0.05 * values
    if "sa1" in name or "sa2" in name:
        return 0.01 * values
    return values / np.sqrt(math.prod(values.shape[1:]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seed", type=int)
    parser.add_argument("path", type=Path)
    arguments = parser.parse_args()
    write_checkpoint(arguments.path, arguments.seed)

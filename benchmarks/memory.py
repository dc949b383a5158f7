"""The memory of a training cycle for each `train.micro_batch`, at a global batch of 32 pairs.

    python benchmarks/memory.py                    # paper's size on this CPU: a quarter of an hour on two cores
    python benchmarks/memory.py --device cuda

Each is measured in a separate process over two cycles, the second with Adam's moments: on a GPU the largest sum of
allocated tensors, on a CPU the largest resident size less that of the imports (it includes the scratch space of
convolutions). Both include weights, gradients, moments and the batch. Batch statistics are frozen, as pieces require.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import torch

from s2s_ray.config import load_config
from s2s_ray.model.s2s import S2S
from s2s_ray.training.step import TrainingStep


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Return the peak bytes and the seconds of the second cycle, in this process."""
    pieces = [f"train.micro_batch={arguments.measure}", "model.street_batchnorm=frozen", "model.street_weights=random"]
    config = load_config(arguments.preset, [*pieces, f"train.batch={arguments.batch}", *arguments.set])
    before = largest_resident()
    torch.manual_seed(0)
    model = S2S(config.model).to(arguments.device).train()
    cycle = TrainingStep(model, config.loss, config.train)
    shape = (arguments.batch, 3, config.model.height, config.model.width)
    satellite, street = (torch.rand(shape, device=arguments.device) * 2 - 1 for _ in range(2))
    for _ in range(2):
        started = time.monotonic()
        cycle(model.normalise(satellite), model.normalise(street))
    peak = torch.cuda.max_memory_allocated() if arguments.device == "cuda" else largest_resident() - before
    return {"bytes": peak, "seconds": time.monotonic() - started}


def largest_resident() -> int:
    """Return the largest resident size of this process in bytes. (`getrusage` starts with that of the parent.)"""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)[1]) * 1024  # type: ignore[index]


def main() -> int:
    """Print a line for each size of the pieces."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pieces", type=int, nargs="+", default=[1, 2, 4, 8, 32])
    parser.add_argument("--set", action="append", default=[], help="a.b=value; train.precision=bf16, for one")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(arguments)))
        return 0
    whole: dict[str, float] | None = None
    for size in sorted(arguments.pieces, reverse=True):
        command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--measure", str(size)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"micro_batch {size:3d}: did not run (exit code {done.returncode}): {done.stderr[-300:]}", flush=True)
            continue
        found = json.loads(done.stdout)
        line = f"micro_batch {size:3d} of {arguments.batch}: {found['bytes'] / 2**30:5.1f} GiB"
        if whole is not None:
            line += f", {found['bytes'] / whole['bytes']:.2f} of the memory, {found['seconds'] / whole['seconds']:.2f}"
            line += " of the time"
        whole = whole or found
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

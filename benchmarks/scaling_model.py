"""An analytical model of scaling to 8 to 512 GPUs: bytes, collectives, and their cost.

    python benchmarks/scaling_model.py

It counts the trained weights, the descriptors, the statistics of the batch norms and the FLOPs of a cycle per pair. The
rates are assumptions; replace them by those of your machine. Collectives are rings; a reduce is hidden only if the
cycle overlaps it (that of D with the pass of R), so those of G and R count fully.
"""

from __future__ import annotations

import argparse
import math

import torch

from s2s_ray.config import load_config
from s2s_ray.model.batchnorm import GlobalBatchNorm2d
from s2s_ray.model.s2s import S2S

FLOAT = 4


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--gflop", type=float, default=354.2, help="per pair and cycle, as counted by benchmarks/flops.py"
    )
    parser.add_argument("--tflops", type=float, default=250.0, help="reached by a GPU in bf16")
    parser.add_argument("--node", type=int, default=8, help="GPUs per node")
    parser.add_argument("--inside", type=float, default=400.0, help="GB/s of a GPU inside its node")
    parser.add_argument("--between", type=float, default=50.0, help="GB/s of a GPU between nodes")
    parser.add_argument("--latency-inside", type=float, default=20.0, help="microseconds of a collective")
    parser.add_argument("--latency-between", type=float, default=50.0)
    parser.add_argument("--memory", type=float, default=2000.0, help="GB/s reached over the matrix of distances")
    return parser.parse_args()


def main() -> None:
    """Print the counts and a row for each number of GPUs, at the paper's batch and at 32 pairs per GPU."""
    arguments = parse()
    config = load_config("paper", ["model.street_weights=random"])
    model = S2S(config.model)
    trained = {
        name: sum(p.numel() for p in network.parameters() if p.requires_grad)
        for name, network in model.named_children()
    }
    width = model.retrieval.embed_street(torch.zeros(1, 3, config.model.height, config.model.width)).shape[1]
    norms = [m.num_features for m in model.modules() if isinstance(m, GlobalBatchNorm2d)]
    reduced = FLOAT * sum(trained.values())
    print(f"reduced in a cycle: {reduced / 1e6:.0f} MB (" + ", ".join(f"{k} {v:,}" for k, v in trained.items()) + ")")
    print(f"gathered of a pair: {2 * width * FLOAT / 1024:.0f} KiB of descriptors, for R's step and for G's;")
    print("  on the way back from each as much is reduced")
    statistics = 3 * max(norms) * FLOAT / 1024
    print(f"batch norms: {len(norms)}, each 3 collectives a cycle of at most {statistics:.0f} KiB a GPU")
    print("parts of a cycle in ms; efficiency: the networks' part of it")
    print("GPUs   global batch   networks   reduce   gather   batch norms   triplets   cycle, ms   efficiency")
    for pairs_of_gpu in (None, config.train.batch):
        for gpus in (1, 8, 16, 32, 64, 128, 256, 512):
            pairs = gpus * pairs_of_gpu if pairs_of_gpu else config.train.batch
            if gpus > pairs:
                continue
            inside = gpus <= arguments.node
            rate = (arguments.inside if inside else arguments.between) * 1e9
            latency = 0.0 if gpus == 1 else (arguments.latency_inside if inside else arguments.latency_between) * 1e-6
            ring = (gpus - 1) / gpus
            networks = pairs / gpus * arguments.gflop / arguments.tflops / 1e3
            exposed = FLOAT * (trained["generator"] + trained["retrieval"])
            reduce = 2 * latency + 2 * ring * exposed / rate
            descriptors = pairs * 2 * width * FLOAT
            gather = 2 * (2 * latency + 3 * ring * descriptors / rate)
            batchnorm = 3 * len(norms) * latency * max(1.0, math.log2(gpus) / 4)
            triplets = 2 * 8 * 2 * pairs**2 * FLOAT / (arguments.memory * 1e9)
            cycle = networks + reduce + gather + batchnorm + triplets
            parts = "   ".join(f"{1e3 * part:8.1f}" for part in (networks, reduce, gather, batchnorm, triplets, cycle))
            print(f"{gpus:4d}   {pairs:12d}   {parts}   {networks / cycle:9.0%}")
        print()


if __name__ == "__main__":
    main()

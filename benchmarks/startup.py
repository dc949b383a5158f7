"""Start-up of light verbs of `s2s`: seconds of each beyond those of an empty Python process.

    python benchmarks/startup.py            medians of five runs, alternating with `python -c pass`
    python benchmarks/startup.py --runs 9

The folder of `status` holds a run, as training leaves it, without a checkpoint.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from s2s_ray.config import load_config

# Without compiled modules Python would compile everything that it imports, each time.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}


def seconds(arguments: list[str]) -> float:
    started = time.perf_counter()
    command = [sys.executable, *arguments]
    subprocess.run(command, env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def make_run(folder: Path) -> None:
    """Write a run that has just begun."""
    (folder / "runs" / "demo" / "checkpoints").mkdir(parents=True)
    (folder / "runs" / "demo" / "config.yaml").write_text(load_config("tiny").to_yaml())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        make_run(Path(folder))
        verbs = [["--help"], ["--version"], ["config"], ["token", "name"], ["status", folder]]
        for verb in verbs:  # Python compiles the modules that are not compiled yet
            seconds(["-m", "s2s_ray.cli", *verb])
        print(f"{'verb':<10} {'seconds':>8} {'python':>8} {'more':>8}   (medians of {runs})")
        for verb in verbs:
            empty, command = [], []
            for _ in range(runs):
                empty.append(seconds(["-c", "pass"]))
                command.append(seconds(["-m", "s2s_ray.cli", *verb]))
            base, median = statistics.median(empty), statistics.median(command)
            print(f"{verb[0]:<10} {median:>8.2f} {base:>8.2f} {median - base:>8.2f}")


if __name__ == "__main__":
    main()

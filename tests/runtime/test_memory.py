"""Memory that a replica's process keeps."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from s2s_ray.runtime.memory import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.zeros(16, 1 << 20)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_large_tensors_reuse_the_pages_of_earlier_ones() -> None:
    def faults(arm: str) -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS, arm], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("return") > 100, "without keep_memory the pages of every tensor are cleared again"
    assert faults("keep") < 20

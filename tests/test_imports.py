"""What runs without packages that it does not need: some are not everywhere, some take seconds to import."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "blocked"),
    [
        ("s2s_ray.training.loop", ["ray", "mlflow", "wandb", "prometheus_client"]),
        ("s2s_ray.service.replicas.search", ["torch"]),
        ("s2s_ray.client", ["torch", "ray", "faiss", "pyarrow"]),
        ("s2s_ray.registry", ["torch", "ray"]),
    ],
)
def test_it_runs_without(module: str, blocked: list[str]) -> None:
    code = f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\nimport {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr

"""The service starts without the parts of the library that only training needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "s2s_ray" / "service").rglob("*.py")
    if path.name != "__init__.py"
)
UNNEEDED = ("training", "trials", "sweep", "ablation", "evaluation", "city", "monitoring", "cli")


def test_a_replica_that_searches_starts_without_pytorch() -> None:
    code = "import sys, s2s_ray.service.replicas.search; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["False"], done.stderr


def test_the_service_imports_nothing_of_training() -> None:
    imports = "\n".join(f"import {module}" for module in MODULES)
    code = f"{imports}\nimport sys\nprint(*(name for name in sys.modules if name.startswith('s2s_ray.')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    imported = {name.split(".")[1] for name in done.stdout.split()}
    assert "service" in imported
    assert imported.isdisjoint(UNNEEDED), imported & set(UNNEEDED)

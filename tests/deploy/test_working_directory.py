"""The package that `ray job submit --working-dir .` sends."""

from __future__ import annotations

import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 100 * 2**20  # Ray's, in bytes


def test_a_submission_sends_the_code_and_little_else(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "package.zip"
    create_package(str(ROOT), package, include_gitignore=True, excludes=[])
    archive = zipfile.ZipFile(package)
    names = set(archive.namelist())
    assert package.stat().st_size < LIMIT / 20
    assert {"jobs/train.py", "serve/app.py", "s2s_ray/training/loop.py", "s2s_ray/config/presets/paper.yaml"} <= names
    assert b"import_path" in archive.read("serve/config.yaml"), "the file, not the link to it"
    left_out = ("tests/", "docs/", "benchmarks/", "deploy/", "demo/", ".git/", ".venv/", "build/")
    assert not [name for name in names if name.startswith(left_out)]

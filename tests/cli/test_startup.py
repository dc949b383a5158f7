"""Light verbs import nothing that takes long, so that they start at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from s2s_ray.config import load_config

HEAVY = ("torch", "ray", "scipy", "faiss", "matplotlib", "optuna", "pyarrow", "boto3", "botocore", "tensorboardX")
WRITTEN = Path(__file__).parents[1] / "fixtures" / "written_by_0.1.0"
PROGRAM = f"""
import contextlib, sys
from s2s_ray.cli import main
with contextlib.suppress(SystemExit):
    main(sys.argv[1:])
print("heavy:", *[name for name in {HEAVY!r} if name in sys.modules])
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that has just begun."""
    folder = tmp_path_factory.mktemp("root")
    (folder / "runs" / "begun" / "checkpoints").mkdir(parents=True)
    (folder / "runs" / "begun" / "config.yaml").write_text(load_config("tiny").to_yaml())
    return folder


@pytest.mark.parametrize(
    ("verb", "printed"),
    [
        (["--help"], "build-index"),
        (["--version"], "presets: "),
        (["config"], "train:"),
        (["token", "ops"], "sha256"),
        (["status", "ROOT"], "begun"),
        (["checkpoint", "--help"], "rollback"),
        (["checkpoint", "list", "--registry", str(WRITTEN / "registry"), "--name", "city"], "* first-2-2236d7b2"),
        (["localize", "--help"], "--near"),
    ],
    ids=lambda value: " ".join(map(str, value[:2])) if isinstance(value, list) else "",
)
def test_light_verbs_import_nothing_heavy(verb: list[str], printed: str, run: Path) -> None:
    arguments = [str(run) if word == "ROOT" else word for word in verb]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    *lines, heavy = done.stdout.splitlines()
    assert printed in "\n".join(lines)
    assert heavy.strip() == "heavy:"


def test_the_status_of_a_sweep_needs_optuna_but_not_pytorch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "status", str(WRITTEN)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    heavy = set(done.stdout.splitlines()[-1].split()[1:])
    assert "night" in done.stdout
    assert "optuna" in heavy
    assert not heavy & {"torch", "ray", "faiss", "matplotlib"}

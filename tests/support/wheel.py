"""The project's wheel, and environments that hold nothing but what it requires."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from email.parser import Parser
from importlib.metadata import Distribution, distributions
from pathlib import Path
from zipfile import ZipFile

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
UV = Path(sys.executable).with_name("uv")
PROJECT = "s2s-ray"


def build(folder: Path) -> Path:
    """Build the wheel of the working tree in a folder, without the network."""
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("s2s_ray", "serve", "jobs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [UV, "build", "--wheel", "--offline", "--no-build-isolation", "--python", sys.executable]
    subprocess.run([*command, "--out-dir", folder, source], check=True, capture_output=True, text=True)
    [wheel] = folder.glob("*.whl")
    return wheel


def requirements(wheel: Path) -> list[Requirement]:
    """The requirements in the metadata of a wheel."""
    with ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        headers = Parser().parsestr(archive.read(name).decode())
    return [Requirement(line) for line in headers.get_all("Requires-Dist", [])]


def closure(wheel: Path, extras: Iterable[str]) -> set[str]:
    """The names of all distributions that the wheel with these extras requires, directly or not."""
    installed = _installed() | {PROJECT: requirements(wheel)}
    done: set[tuple[str, str]] = set()
    pending = [(PROJECT, extra) for extra in ("", *extras)]
    while pending:
        name, extra = pending.pop()
        if (name, extra) in done:
            continue
        done.add((name, extra))
        for requirement in installed[name]:
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                needed = canonicalize_name(requirement.name)
                assert needed in installed, f"{name} requires {requirement}"
                pending += [(needed, wanted) for wanted in ("", *requirement.extras)]
    return {name for name, _ in done} - {PROJECT}


def environment(folder: Path, wheel: Path, extras: Iterable[str] = ()) -> Path:
    """Make a virtual environment with the wheel and its closure, and return its folder.

    The files of the closure are links to those of the environment that runs the tests, so that nothing is downloaded
    and everything else is absent.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    [site] = (folder / "lib").glob("python3*/site-packages")
    _link(closure(wheel, extras), site)
    install = [UV, "pip", "install", "--offline", "--no-deps", "--python", folder / "bin" / "python", wheel]
    subprocess.run(install, check=True, capture_output=True, text=True)
    return folder


def plain_environ() -> dict[str, str]:
    """The environment variables without those that add to Python's path."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


@functools.cache
def _installed() -> dict[str, list[Requirement]]:
    return {canonicalize_name(one.name): [Requirement(line) for line in one.requires or []] for one in distributions()}


def _link(names: set[str], site: Path) -> None:
    wanted: dict[tuple[str, ...], Path] = {}
    owners: dict[tuple[str, ...], set[bool]] = defaultdict(set)
    for one in distributions():
        keep = canonicalize_name(one.name) in names
        for parts, path in _files(one):
            for depth in range(1, len(parts) + 1):
                owners[parts[:depth]].add(keep)
            if keep:
                wanted[parts] = path
    linked: set[tuple[str, ...]] = set()
    for parts, path in wanted.items():
        # The outermost folder that belongs to the closure alone is linked as a whole.
        depth = next(depth for depth in range(1, len(parts) + 1) if owners[parts[:depth]] == {True})
        if parts[:depth] not in linked:
            linked.add(parts[:depth])
            target = site.joinpath(*parts[:depth])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path.parents[len(parts) - depth - 1] if depth < len(parts) else path)


def _files(one: Distribution) -> Iterable[tuple[tuple[str, ...], Path]]:
    for file in one.files or ():
        if file.parts[0] not in ("..", "__pycache__"):
            yield file.parts, Path(str(one.locate_file(file)))

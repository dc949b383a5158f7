"""`python -m s2s_ray.service.deploy.vendor` installs the page's npm files into `service/static/vendor`.

Versions and hashes are pinned: a package that is not to the bit what it was is refused. Nothing of it is in the
repository. Where npm is not at hand the service works without: no map on the page, no interactive `/docs`.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

from s2s_ray.cli import run
from s2s_ray.errors import TamperedError, VendorError

VENDOR = Path(__file__).parents[1] / "static" / "vendor"


class Package(NamedTuple):
    """A package of npm: its integrity (sha512) and the files that are kept, by their path in the archive."""

    name: str
    version: str
    sha512: str
    files: tuple[str, ...]


PACKAGES = (
    Package(
        "leaflet",
        "1.9.4",
        "nxS1ynzJOmOlHp+iL3FyWqK89GtNL8U8rvlMOsQdTTssxZwCXh8N2NB3GDQOL+YR3XnWyZAxwQixURb+FA74PA==",
        ("dist/leaflet.js", "dist/leaflet.css", "dist/images/layers.png", "dist/images/marker-icon.png", "LICENSE"),
    ),
    Package(
        "swagger-ui-dist",
        "5.35.0",
        "U06rpMtW9V3XPGOBeamTUSr0Z09jMX4IJuANpE/EZbAhw0G8CgwrzU4YmXkn/h0wCDNsXdGarTNNHC3sU8yVUQ==",
        ("swagger-ui-bundle.js", "swagger-ui.css", "LICENSE"),
    ),
)


def fetch(package: Package, npm: str, into: Path) -> None:
    """Bring the files of one package into a folder. Raises VendorError, TamperedError."""
    with tempfile.TemporaryDirectory() as folder:
        pinned = f"{package.name}@{package.version}"
        done = subprocess.run(
            [npm, "pack", "--silent", "--pack-destination", folder, pinned], capture_output=True, text=True, cwd=folder
        )
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            raise VendorError(f"npm could not fetch {pinned}: {done.stderr.strip() or done.stdout.strip()}")
        found = base64.b64encode(hashlib.sha512(archives[0].read_bytes()).digest()).decode()
        if found != package.sha512:
            raise TamperedError(f"{pinned} has sha512-{found}, expected sha512-{package.sha512}: it is not used")
        with tarfile.open(archives[0]) as archive:
            for name in package.files:
                content = archive.extractfile(f"package/{name}")
                assert content is not None, f"{pinned} has no {name}"
                target = into / name.removeprefix("dist/")
                if name == "LICENSE":
                    target = into / f"LICENSE.{package.name}"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())


def main() -> None:
    """Fetch all packages, unless they are there."""
    stamp = VENDOR / "versions"
    wanted = "".join(f"{package.name} {package.version} sha512-{package.sha512}\n" for package in PACKAGES)
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    npm = shutil.which("npm")
    if npm is None:
        print("npm is not installed: the page will have no map, /docs will not be interactive", file=sys.stderr)
        return
    shutil.rmtree(VENDOR, ignore_errors=True)
    try:
        for package in PACKAGES:
            fetch(package, npm, VENDOR)
    except VendorError as error:
        print(f"{error}; the page will have no map, /docs will not be interactive", file=sys.stderr)
        return
    stamp.write_text(wanted)


if __name__ == "__main__":
    run("vendor", main)

"""`python -m s2s_ray.service.deploy.vendor` installs the page's npm files into `service/static/vendor`.

Versions and hashes are pinned: a package that differs in a single bit is rejected. The files are not part of the
repository. Without npm the service works, but the page has no map and `/docs` is not interactive.
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

from s2s_ray.errors import TamperedError, VendorError

WITHOUT = "the page will have no map, and /docs will not be interactive"
VENDOR = Path(__file__).parents[1] / "static" / "vendor"


class Package(NamedTuple):
    """A package of npm: its hash (SHA-512, base64) and the files to keep, by their path in the archive."""

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
    """Fetch a package and extract its files into a directory.

    Raises:
        VendorError: npm cannot fetch the package.
        TamperedError: the package does not have the pinned hash.
    """
    with tempfile.TemporaryDirectory() as folder:
        pinned = f"{package.name}@{package.version}"
        packed = subprocess.run(
            [npm, "pack", "--silent", "--pack-destination", folder, pinned], capture_output=True, text=True, cwd=folder
        )
        archives = list(Path(folder).glob("*.tgz"))
        if packed.returncode or len(archives) != 1:
            raise VendorError(f"npm could not fetch {pinned}: {packed.stderr.strip() or packed.stdout.strip()}")
        sha512 = base64.b64encode(hashlib.sha512(archives[0].read_bytes()).digest()).decode()
        if sha512 != package.sha512:
            raise TamperedError(f"{pinned} has sha512-{sha512}, expected sha512-{package.sha512}; it was not installed")
        with tarfile.open(archives[0]) as archive:
            for name in package.files:
                content = archive.extractfile(f"package/{name}")
                assert content is not None, f"{pinned} contains no {name}"
                target = into / name.removeprefix("dist/")
                if name == "LICENSE":
                    target = into / f"LICENSE.{package.name}"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())


def main() -> None:
    """Install all packages, unless they are already installed.

    Raises:
        TamperedError: a package is not the pinned one.
    """
    stamp = VENDOR / "versions"
    wanted = "".join(f"{package.name} {package.version} sha512-{package.sha512}\n" for package in PACKAGES)
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    npm = shutil.which("npm")
    if npm is None:
        print(f"npm is not installed; {WITHOUT}", file=sys.stderr)
        return
    shutil.rmtree(VENDOR, ignore_errors=True)
    try:
        for package in PACKAGES:
            fetch(package, npm, VENDOR)
    except VendorError as error:
        print(f"{error}; {WITHOUT}", file=sys.stderr)
        return
    stamp.write_text(wanted)


if __name__ == "__main__":
    try:
        main()
    except TamperedError as error:
        print(f"vendor: {error}", file=sys.stderr)
        sys.exit(error.exit_code)

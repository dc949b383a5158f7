"""The version of this code, as it is written into what the code makes."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def code_version() -> str:
    """The installed version of this package, or 'unknown' where it runs from a source tree alone."""
    try:
        return version("s2s-ray")
    except PackageNotFoundError:
        return "unknown"

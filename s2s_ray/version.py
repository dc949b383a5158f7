"""The version of this code, which is written into what the code makes."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def code_version() -> str:
    """Return the installed version of this package, or 'unknown' in a source tree that is not installed."""
    try:
        return version("s2s-ray")
    except PackageNotFoundError:
        return "unknown"


__version__ = code_version()

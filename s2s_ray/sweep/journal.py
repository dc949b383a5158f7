"""The journal of a sweep's study: one line of JSON for each change, which Optuna appends and replays.

A process that is killed or a machine that loses power leaves a last line that is torn. The driver of the sweep cuts it
before Optuna opens the file, because Optuna would append to it and could never read the journal again.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from s2s_ray.errors import DamagedError
from s2s_ray.storage import local_faults

logger = logging.getLogger(__name__)


class _Journal(JournalFileBackend):
    """Optuna's journal file, which asks before it is written and takes back what was written only in part.

    Args:
        path: the file, which is created if it does not exist.
        uri: the name of the file in messages.
        check: called before every write; raises an error if this process must not write.
    """

    def __init__(self, path: Path, uri: str, check: Callable[[], None]) -> None:
        with local_faults(uri):
            super().__init__(str(path))
        self._path, self._uri, self._check = path, uri, check

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append changes. Raises DiskFullError, StorageError, and what `check` raises; then nothing was appended."""
        self._check()
        with local_faults(self._uri):
            before = self._path.stat().st_size
            try:
                super().append_logs(logs)
            except OSError:
                os.truncate(self._path, before)
                raise


def open_journal(path: Path, uri: str, check: Callable[[], None] = lambda: None) -> BaseStorage:
    """Open the journal at a path for Optuna; it must not have a torn tail.

    Args:
        path: the file, which is created if it does not exist.
        uri: the name of the file in messages.
        check: called before every write; raises an error if this process must not write.

    Raises:
        DamagedError: it is not a journal.
        StorageError: it cannot be read.
    """
    try:
        return JournalStorage(_Journal(path, uri, check))
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{uri} is not a journal of Optuna: {error}") from None


def cut_torn_tail(path: Path, uri: str) -> int:
    """Remove what follows the last whole line of a journal, and end that line with a newline if it has none.

    Args:
        path: the file; it need not exist.
        uri: the name of the file in messages.

    Returns:
        How many bytes were removed.

    Raises:
        DamagedError: there is not one whole line, and the file does not begin as a journal does.
        StorageError: it cannot be read or written.
    """
    with local_faults(uri):
        if not path.exists():
            return 0
        content = path.read_bytes()
        end = len(content)
        while end and not _is_change(line := content[content.rfind(b"\n", 0, end - 1) + 1 : end]):
            end -= len(line)
        if not end and content.strip(b"\0") and not _begins(content):
            raise DamagedError(f"{uri} is not a journal of Optuna: it has no whole line")
        if end < len(content):
            os.truncate(path, end)
        if end and content[end - 1 : end] != b"\n":
            with path.open("ab") as file:
                file.write(b"\n")
        return len(content) - end


def _is_change(line: bytes) -> bool:
    try:
        tree = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(tree, dict) and "op_code" in tree


def _begins(content: bytes) -> bool:
    """Return whether the content is the beginning of a first line, as Optuna writes it."""
    start = b'{"op_code":'
    return content.startswith(start) or start.startswith(content.rstrip(b"\0"))

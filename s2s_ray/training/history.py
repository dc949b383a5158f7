"""The history of a run: `history.json`, one entry of metrics for each epoch."""

from __future__ import annotations

from typing import Any

from s2s_ray import storage
from s2s_ray.errors import DamagedError, NotFoundError, RunError

HISTORY_FILE = "history.json"

History = list[dict[str, Any]]
"""An entry has `epoch` (0-based), `step` and the epoch's losses; after a validation also `recall_at_1` and so on."""


def write_history(run: str, history: History) -> None:
    """Write the epochs of a run. Raises StorageError."""
    storage.write_json(storage.join(run, HISTORY_FILE), history)


def read_history(run: str) -> History:
    """Return the epochs of a run; none if the run has not finished an epoch, or the URI is that of a checkpoint.

    The file is a list, which is version 1; a later version is to be a mapping with `format`.

    Raises:
        RunError: a newer version that this one cannot read wrote it.
        DamagedError: it is not a history.
        StorageError: it cannot be read.
    """
    uri = storage.join(run, HISTORY_FILE)
    try:
        tree = storage.read_json(uri)
    except NotFoundError:
        return []
    if isinstance(tree, dict) and "format" in tree:
        raise RunError(f"{uri} has format {tree['format']!r}, this version reads up to 1: upgrade s2s-ray")
    if not isinstance(tree, list):
        raise DamagedError(f"{uri} holds {type(tree).__name__}, expected a list of epochs: it is damaged")
    for number, entry in enumerate(tree):
        if not isinstance(entry, dict) or not isinstance(entry.get("epoch"), int):
            raise DamagedError(f"{uri}: entry {number} is not an epoch: it is damaged")
    return tree

"""Writing a file that others write too."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from s2s_ray import conditional, storage


def test_the_second_of_two_writers_is_refused(tmp_path: Path) -> None:
    uri = str(tmp_path / "deep" / "pointer.json")
    assert conditional.read(uri) == (None, None)
    conditional.write(uri, b"one", None)
    content, version = conditional.read(uri)
    assert content == b"one"
    with pytest.raises(conditional.ConflictError, match="changed by somebody else"):
        conditional.write(uri, b"two", None)
    conditional.write(uri, b"two", version)
    with pytest.raises(conditional.ConflictError):
        conditional.write(uri, b"three", version)
    assert storage.read_bytes(uri) == b"two"
    assert storage.list_names(str(tmp_path / "deep")) == ["pointer.json"], "the lock is nobody's business"


def test_no_change_of_many_at_once_is_lost(tmp_path: Path) -> None:
    uri = str(tmp_path / "count")
    conditional.write(uri, b"0", None)

    def add() -> None:
        for _ in range(10):
            while True:
                content, version = conditional.read(uri)
                assert content is not None
                try:
                    conditional.write(uri, str(int(content) + 1).encode(), version)
                    break
                except conditional.ConflictError:
                    continue

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert storage.read_bytes(uri) == b"40"

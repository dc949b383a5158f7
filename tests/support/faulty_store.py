"""A store whose operations fail when they are told to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias, TypeVar

from s2s_ray.errors import DiskFullError, RefusedError, UnreachableError
from s2s_ray.storage.store import Entry, Info, Mode, Store, Stored
from s2s_ray.uri import Uri

T = TypeVar("T")
Kind: TypeAlias = Literal["lose", "refuse", "full", "away", "crash"]
WRITES = frozenset({"put", "upload", "delete"})


class Crashed(BaseException):
    """Ends the process; what it does on its way out has no effect."""


class FaultyStore:
    """A store whose `at`-th operation from now on fails.

    `lose`: a write takes place and its answer is lost. `refuse`: this operation and all later ones are refused.
    `full`: this write and all later ones find no room. `away`: the store answers nothing any more. `crash`: the
    process ends, before the operation.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._kind: Kind | None = None
        self._left = 0
        self.met: Kind | None = None

    @contextmanager
    def failing(self, kind: Kind | None, at: int) -> Iterator[None]:
        """Let an operation of the block fail; `met` says afterwards whether one did."""
        self._kind, self._left, self.met = kind, at, None
        try:
            yield
        finally:
            self._kind = None

    def get(self, uri: Uri) -> Stored:
        return self._do("get", uri, lambda: self.store.get(uri))

    def put(self, uri: Uri, content: bytes, mode: Mode) -> str:
        return self._do("put", uri, lambda: self.store.put(uri, content, mode))

    def head(self, uri: Uri) -> Info | None:
        return self._do("head", uri, lambda: self.store.head(uri))

    def list(self, uri: Uri) -> list[Entry]:
        return self._do("list", uri, lambda: self.store.list(uri))

    def delete(self, uri: Uri) -> None:
        return self._do("delete", uri, lambda: self.store.delete(uri))

    def download(self, uri: Uri, path: Path, *, checked: bool = False) -> None:
        return self._do("download", uri, lambda: self.store.download(uri, path))

    def upload(self, path: Path, uri: Uri) -> None:
        return self._do("upload", uri, lambda: self.store.upload(path, uri))

    def open(self, uri: Uri) -> BinaryIO:
        return self._do("open", uri, lambda: self.store.open(uri))

    def _do(self, verb: str, uri: str, operation: Callable[[], T]) -> T:
        kind, writes = self._kind, verb in WRITES
        if kind is None or (kind in ("lose", "full") and not writes):
            return operation()
        if self._left:
            self._left -= 1
            return operation()
        self.met = kind
        if kind == "lose":
            self._kind = None
            operation()
            raise UnreachableError(f"{uri}: the answer was lost")
        if kind == "refuse":
            raise RefusedError(f"{uri}: the store refuses these credentials")
        if kind == "full":
            raise DiskFullError(f"{uri}: no space left on device")
        if kind == "away":
            raise UnreachableError(f"{uri}: the store cannot be reached")
        raise Crashed

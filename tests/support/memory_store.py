"""A store in memory that behaves as S3 does, for the scheme `memory://`; what happens at its operations is scheduled.

Reads see the latest write, writes may carry a condition, and there are no directories: a "folder" is a prefix, and to
delete one deletes its objects one by one. `watch` sees each change before it is made.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias

from s2s_ray.errors import ConflictError, NotFoundError, RefusedError, UnreachableError
from s2s_ray.storage.store import Create, Entry, Info, Mode, Overwrite, Replace, Stored, registered
from s2s_ray.uri import Uri
from tests.support.scheduler import LOSE, REFUSE, Scheduler, follow

Objects: TypeAlias = dict[str, tuple[bytes, str]]
"""Contents and versions by URI."""
Watch: TypeAlias = Callable[[Objects, str, bytes | None], None]
"""Sees the objects, and the one that is to be written, or deleted if the content is None."""


class MemoryStore:
    """The objects of all `memory://` URIs.

    `scheduler` is asked before each operation on a URI for which `shared` is true, and may lose its answer or refuse
    it. `operations` counts them.
    """

    def __init__(self) -> None:
        self.objects: Objects = {}
        self.scheduler: Scheduler = follow({})
        self.shared: Callable[[str], bool] = lambda uri: True
        self.watch: Watch = lambda objects, uri, content: None
        self.operations = 0
        self._versions = 0

    def get(self, uri: Uri) -> Stored:
        with self._operation("get", uri):
            return Stored(*self._found(uri))

    def put(self, uri: Uri, content: bytes, mode: Mode) -> str:
        with self._operation(f"put ({type(mode).__name__})", uri, writes=True):
            found = self.objects.get(uri)
            wanted = None if isinstance(mode, Create) else mode.version if isinstance(mode, Replace) else ""
            if not isinstance(mode, Overwrite) and (found and found[1]) != wanted:
                raise ConflictError(f"{uri} was changed by another process since it was read")
            return self._store(uri, bytes(content))

    def head(self, uri: Uri) -> Info | None:
        with self._operation("head", uri):
            return self._info(uri)

    def list(self, uri: Uri) -> list[Entry]:
        with self._operation("list", uri):
            below = f"{uri.rstrip('/')}/"
            names = sorted({key.removeprefix(below).partition("/")[0] for key in self.objects if key.startswith(below)})
            return [Entry(name, self._kind(below + name)) for name in names]

    def delete(self, uri: Uri) -> None:
        below = [key for key in sorted(self.objects) if key.startswith(f"{uri.rstrip('/')}/")]
        for key in below if below else [str(uri)]:
            with self._operation("delete", key, writes=True):
                self.watch(self.objects, key, None)
                self.objects.pop(key, None)

    def download(self, uri: Uri, path: Path, *, checked: bool = False) -> None:
        with self._operation("download", uri):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._found(uri)[0])

    def upload(self, path: Path, uri: Uri) -> None:
        with self._operation("upload", uri, writes=True):
            self._store(uri, path.read_bytes())

    def open(self, uri: Uri) -> BinaryIO:
        with self._operation("open", uri):
            return io.BytesIO(self._found(uri)[0])

    @contextmanager
    def _operation(self, verb: str, uri: str, *, writes: bool = False) -> Iterator[None]:
        fault = self.scheduler.before(f"{verb} {uri}", writes=writes, shared=self.shared(uri))
        self.operations += 1
        if fault == REFUSE:
            raise RefusedError(f"{uri}: the store refuses these credentials")
        yield
        if fault == LOSE:
            raise UnreachableError(f"{uri}: the answer was lost")

    def _found(self, uri: str) -> tuple[bytes, str]:
        if uri not in self.objects:
            raise NotFoundError(f"{uri} does not exist")
        return self.objects[uri]

    def _store(self, uri: str, content: bytes) -> str:
        self.watch(self.objects, uri, content)
        self._versions += 1
        self.objects[str(uri)] = (content, f"v{self._versions}")
        return f"v{self._versions}"

    def _kind(self, uri: str) -> str:
        return "file" if uri in self.objects else "folder"

    def _info(self, uri: str) -> Info | None:
        if uri in self.objects:
            return Info("file", len(self.objects[uri][0]), 0.0)
        below = f"{uri.rstrip('/')}/"
        return Info("folder", 0, 0.0) if any(key.startswith(below) for key in self.objects) else None


@contextmanager
def memory_store() -> Iterator[MemoryStore]:
    """Serve `memory://` from an empty store until the block ends."""
    store = MemoryStore()
    with registered("memory", store):
        yield store

"""A `Store` as a file system of pyarrow, for libraries that read and write through one (Ray Train)."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
from pyarrow import fs

from s2s_ray.errors import NotFoundError
from s2s_ray.storage.store import Info, Overwrite, store_of
from s2s_ray.uri import Uri


class StoreHandler(fs.FileSystemHandler):  # type: ignore[misc]
    """The files of one scheme; it can be pickled, and finds the credentials of the process that uses it."""

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoreHandler) and other.scheme == self.scheme

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self.scheme)

    def __reduce__(self) -> tuple[type[StoreHandler], tuple[str]]:
        return StoreHandler, (self.scheme,)

    def _uri(self, path: str) -> Uri:
        return Uri(f"{self.scheme}://{path.strip('/')}")

    def get_type_name(self) -> str:
        return f"store+{self.scheme}"

    def normalize_path(self, path: str) -> str:
        return path.strip("/")

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return [self._info(path) for path in paths]

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        uri = self._uri(selector.base_dir)
        entries = store_of(uri).list(uri)
        if not entries and not selector.allow_not_found and store_of(uri).head(uri) is None:
            raise FileNotFoundError(selector.base_dir)
        found: list[fs.FileInfo] = []
        for entry in entries:
            path = f"{selector.base_dir.strip('/')}/{entry.name}"
            found.append(self._info(path) if entry.kind == "file" else fs.FileInfo(path, fs.FileType.Directory))
            if entry.kind == "folder" and selector.recursive:
                found += self.get_file_info_selector(fs.FileSelector(path, allow_not_found=True, recursive=True))
        return found

    def _info(self, path: str) -> fs.FileInfo:
        info: Info | None = store_of(self._uri(path)).head(self._uri(path))
        if info is None:
            return fs.FileInfo(path, fs.FileType.NotFound)
        if info.kind == "folder":
            return fs.FileInfo(path, fs.FileType.Directory)
        return fs.FileInfo(path, fs.FileType.File, size=info.size, mtime=info.modified)

    def create_dir(self, path: str, recursive: bool) -> None:
        """Do nothing: a directory is there as soon as something is below it."""

    def delete_dir(self, path: str) -> None:
        store_of(self._uri(path)).delete(self._uri(path))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        store_of(self._uri(path)).delete(self._uri(path))

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError("a bucket is never emptied as a whole")

    def delete_file(self, path: str) -> None:
        store_of(self._uri(path)).delete(self._uri(path))

    def move(self, src: str, dest: str) -> None:
        self.copy_file(src, dest)
        self.delete_file(src)

    def copy_file(self, src: str, dest: str) -> None:
        store = store_of(self._uri(src))
        store.put(self._uri(dest), store.get(self._uri(src)).content, Overwrite())

    def open_input_stream(self, path: str) -> Any:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> Any:
        try:
            return pa.PythonFile(store_of(self._uri(path)).open(self._uri(path)), mode="r")
        except NotFoundError as error:
            raise FileNotFoundError(str(error)) from None

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        return pa.PythonFile(_Output(self._uri(path)), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        raise NotImplementedError("an object store cannot append to an object")


class _Output(io.BytesIO):
    """A file that is written when it is closed, and not if it is dropped before."""

    def __init__(self, uri: Uri) -> None:
        super().__init__()
        self._target = uri

    def close(self) -> None:
        if not self.closed:
            content = self.getvalue()
            super().close()
            store_of(self._target).put(self._target, content, Overwrite())

    def __del__(self) -> None:
        """Do not close it, as the base class does."""

"""Publishing a folder as a whole: written once, or replaced such that every reader finds a whole one at any time.

A publisher first claims the place with the manifest that it will write. Another one with equal files joins in, and
completes what the first may have left unfinished; one with other files is refused before it has touched anything. The
manifest is created last, by a conditional write. A replacement writes its files into a folder of its own, puts its
manifest in the place of the former one if that has not changed meanwhile, and then deletes the former files.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

from s2s_ray.errors import ConflictError, DamagedError, NotFoundError, RefusedError, StorageError
from s2s_ray.storage import conditional, files
from s2s_ray.storage.manifest import MANIFEST, Manifest, PublishedFile, parse_manifest
from s2s_ray.storage.published import check_file
from s2s_ray.storage.store import store_of
from s2s_ray.uri import Uri

log = logging.getLogger(__name__)

CLAIM = "manifest.claim.json"
_TEMPORARY = ".tmp~"  # files that are being written, and locks
_REPLACEMENT = re.compile(r"files-[0-9a-f]{32}")


def publish(directory: Path, uri: str, *, replace: bool = False) -> None:
    """Copy every file of a local directory to a URI, and its `manifest.json` last.

    Each file is read back before the manifest is written, so a published folder was whole at that moment. If equal
    files are published there already, only damaged ones are written again. Of two publishers with other files, and of
    two that replace the same folder, one is refused.

    Args:
        directory: the files.
        uri: the folder to publish.
        replace: replace other files that are published there, or damaged ones; by default they are refused.

    Raises:
        ConflictError: other files are published there, or their publication has begun; or another process has
            replaced the folder meanwhile.
        DamagedError: the store returns something else than it was given, twice; or there is a damaged manifest.
        StorageError: there is nothing to publish, or a file cannot be read or written.
    """
    mine = _manifest_of(directory)
    if not mine.paths:
        raise StorageError(f"{directory} holds no files: there is nothing to publish to {uri}")
    if _settled(directory, uri, mine, replace):
        return
    occupied = _is_occupied(uri, mine)  # before the claim is read, because who claims does so before uploading
    claim = _read_claim(uri)
    if claim is None and not occupied:
        claim = conditional.write_once(files.join(uri, CLAIM), mine.to_bytes())
        if _settled(directory, uri, mine, replace):  # published since the first look
            return
    if claim == mine.to_bytes():
        _upload(directory, uri, mine)
        _create(uri, mine, replace)
        _remove(files.join(uri, CLAIM))
        return
    if claim is not None and not replace:
        raise ConflictError(
            f"{uri}: the publication of other files has begun there and has not ended. Publish those again to complete "
            "it; or, if nobody is publishing them, delete the folder first"
        )
    _replace(directory, uri, mine, None)


def _settled(directory: Path, uri: str, mine: Manifest, replace: bool) -> bool:
    """Return false if nothing is published at the URI; otherwise leave equal files alone, or replace other ones."""
    path = files.join(uri, MANIFEST)
    content, _ = conditional.read(path)
    if content is None:
        return False
    try:
        stored = parse_manifest(content, path)
    except DamagedError as error:
        if not replace:
            raise
        log.warning("replacing the folder: %s", error)
        _replace(directory, uri, mine, content)
        return True
    if stored.files == mine.files:
        _upload(directory, uri, stored, only_damaged=True)
    elif replace:
        _replace(directory, uri, mine, content)
        return True
    else:
        raise _occupied(uri)
    _remove(files.join(uri, CLAIM))
    return True


def _is_occupied(uri: str, mine: Manifest) -> bool:
    """Return whether files of these names are at the URI."""
    try:
        present = set(files.list_names(uri))
        return any(path.partition("/")[0] in present for path in mine.paths)
    except RefusedError:  # credentials that may read and write, but not list
        return any(files.exists(files.join(uri, path)) for path in mine.paths)


def _create(uri: str, mine: Manifest, replace: bool) -> None:
    """Write the manifest of a folder that has none."""
    path = files.join(uri, MANIFEST)
    stored = parse_manifest(conditional.write_once(path, mine.to_bytes()), path)
    if stored.files != mine.files:
        raise _simultaneous(uri) if replace else _occupied(uri)


def _replace(directory: Path, uri: str, mine: Manifest, before: bytes | None) -> None:
    """Publish the files in a folder of their own, in the place of those of a manifest.

    Args:
        before: the manifest to replace; None if there is none, and the place is taken by other files.
    """
    folder = f"files-{uuid4().hex}"
    new = Manifest(folder=folder, paths={f"{folder}/{name}": info for name, info in mine.files.items()})
    try:
        _upload(directory, uri, new)
    except StorageError:
        _remove(files.join(uri, folder))
        raise
    # A process that has begun such a folder by now has seen the former manifest, and will fail to replace it.
    stale = _replacements(uri) - {folder}
    claim = _read_claim(uri)

    path, content = files.join(uri, MANIFEST), new.to_bytes()

    def edit(stored: bytes | None) -> bytes | None:
        if stored == before:
            return content
        if stored is not None and parse_manifest(stored, path).files == mine.files:
            return None
        raise _simultaneous(uri)

    try:
        written = conditional.change(path, edit, made=lambda stored: stored == content)
    except ConflictError:
        _remove(files.join(uri, folder))
        raise
    if written != content:  # another process has published equal files
        _remove(files.join(uri, folder))
        return
    listed = [*_paths_in(before), *_paths_in(claim)]
    for name in sorted(stale):
        _remove(files.join(uri, name))
    for path in sorted({path for path in listed if not _REPLACEMENT.match(path)}):
        _remove_file(files.join(uri, path))
    if claim is not None:
        _remove(files.join(uri, CLAIM))


def _replacements(uri: str) -> set[str]:
    """Return the names of the folders of replacements at a URI."""
    try:
        return {name for name in files.list_folders(uri) if _REPLACEMENT.fullmatch(name)}
    except RefusedError as error:
        log.warning("what is not needed any more is not deleted: %s", error)
        return set()


def _manifest_of(directory: Path) -> Manifest:
    """Return the manifest of local files; that of the directory itself, claims and locks are no such files."""
    entries: dict[str, PublishedFile] = {}
    for path in sorted(directory.rglob("*")):
        relative = path.relative_to(directory).as_posix()
        if path.is_file() and relative not in (MANIFEST, CLAIM) and not path.name.endswith(_TEMPORARY):
            entries[relative] = PublishedFile(bytes=path.stat().st_size, sha256=files.sha256(path))
    return Manifest(paths=entries)


def _upload(directory: Path, uri: str, manifest: Manifest, *, only_damaged: bool = False) -> None:
    """Upload the files of a manifest and read them back; repeat both once for a damaged one."""
    for name, info in manifest.files.items():
        target = files.join(uri, manifest.path(name))
        if not only_damaged:
            files.upload(directory / name, target)
        try:
            check_file(target, info)
        except (DamagedError, NotFoundError) as error:
            log.warning("the published file is damaged, uploading it again: %s", error)
            files.upload(directory / name, target)
            check_file(target, info)


def _read_claim(uri: str) -> bytes | None:
    return conditional.read(files.join(uri, CLAIM))[0]


def _paths_in(content: bytes | None) -> Mapping[str, PublishedFile]:
    """Return what a manifest or a claim lists; nothing if it is damaged."""
    try:
        return {} if content is None else parse_manifest(content, MANIFEST).paths
    except StorageError:
        return {}


def _remove_file(uri: str) -> None:
    """Delete a file like `_remove`; a folder of its name is not what was published, so it stays."""
    try:
        info = store_of(uri).head(Uri(uri))
    except StorageError as error:
        log.warning("could not look at what is not needed any more: %s", error)
        return
    if info is not None and info.kind == "file":
        _remove(uri)
    elif info is not None:
        log.warning("%s is a directory, though the former manifest names it as a file: it is not deleted", uri)


def _remove(uri: str) -> None:
    """Delete something that no reader looks at; if that fails, it only takes room."""
    try:
        files.delete(uri)
    except StorageError as error:
        log.warning("could not delete what is not needed any more: %s", error)


def _occupied(uri: str) -> ConflictError:
    return ConflictError(
        f"{uri} holds other files, and a published folder is not changed: choose another place, or delete it first"
    )


def _simultaneous(uri: str) -> ConflictError:
    return ConflictError(f"{uri} was replaced by another process at the same time: look at it, and try again if needed")

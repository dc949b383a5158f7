"""Checkpoints, indexes and releases of a few bytes, and what must hold of them at every moment and to every reader."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

from s2s_ray import registry, storage
from s2s_ray.index.index import ENTRIES_FILE
from s2s_ray.index.info import INFO_FILE, IndexInfo
from s2s_ray.localization import CALIBRATION_FILE
from s2s_ray.model.checkpoint_meta import META_FILE, MODEL_FILE
from tests.support.memory_store import Objects

NAME = "city"
MANIFEST = storage.MANIFEST
ONCE = (registry.RELEASE_FILE, CALIBRATION_FILE, "sweep.yaml", "plan.json", "dataset.json")
"""Files that are written once."""


def checkpoint(uri: str, step: int, *, recall: float | None = None) -> str:
    """Publish a checkpoint whose weights are a few words, with a trainer's state; return its URI."""
    metrics = {} if recall is None else {"recall_at_1": recall}
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        (directory / MODEL_FILE).write_bytes(f"weights {step}".encode())
        (directory / META_FILE).write_text(json.dumps({"model": {}, "run": "run", "step": step, "metrics": metrics}))
        storage.publish(directory, uri)
    return uri


def index(uri: str, checkpoint_uri: str, generation: str) -> str:
    """Publish an index of a checkpoint, whose files name the generation; return its URI."""
    with tempfile.TemporaryDirectory() as folder:
        write_index(Path(folder), registry.fingerprint(checkpoint_uri), generation)
        storage.publish(Path(folder), uri)
    return uri


def write_index(directory: Path, fingerprint: str, generation: str) -> None:
    """Write the files of an index that nobody searches."""
    info = IndexInfo(dimension=2, count=1, checkpoint=fingerprint, dataset=generation, dataset_digest="x")
    (directory / INFO_FILE).write_bytes(info.to_bytes())
    (directory / ENTRIES_FILE).write_bytes(generation.encode())


def read_index(uri: str) -> tuple[str, str]:
    """Return the generation of an index and the fingerprint of its checkpoint; it is one index and not a mix of two."""
    with tempfile.TemporaryDirectory() as folder:
        directory = storage.fetch(uri, Path(folder))
        return _index((directory / INFO_FILE).read_bytes(), (directory / ENTRIES_FILE).read_bytes())


def read_release(release: registry.Release) -> tuple[str, str | None]:
    """Return the fingerprint of a release and the generation of its index; it is one release and not a mix of two."""
    with tempfile.TemporaryDirectory() as folder:
        directory = storage.fetch(release.checkpoint_uri, Path(folder))
        _check_checkpoint(release, (directory / MODEL_FILE).read_bytes(), (directory / META_FILE).read_bytes())
    if release.index_uri is None:
        return release.fingerprint, None
    generation, built_with = read_index(release.index_uri)
    assert built_with == release.fingerprint, "the index was built with another checkpoint"
    return release.fingerprint, generation


def look_at_release(release: registry.Release) -> tuple[str, str | None]:
    """Return the same, and read as little as possible."""
    files = _content(release.checkpoint_uri)
    _check_checkpoint(release, files[MODEL_FILE], files[META_FILE])
    if release.index_uri is None:
        return release.fingerprint, None
    files = _content(release.index_uri)
    generation, built_with = _index(files[INFO_FILE], files[ENTRIES_FILE])
    assert built_with == release.fingerprint, "the index was built with another checkpoint"
    return release.fingerprint, generation


def _content(uri: str) -> dict[str, bytes]:
    manifest = storage.read_manifest(uri)
    return {name: storage.read_bytes(storage.join(uri, manifest.path(name))) for name in manifest.files}


def _index(info: bytes, entries: bytes) -> tuple[str, str]:
    tree = json.loads(info)
    assert entries.decode() == tree["dataset"], f"a mix: {tree['dataset']} and {entries!r}"
    return tree["dataset"], tree["checkpoint"]


def _check_checkpoint(release: registry.Release, model: bytes, meta: bytes) -> None:
    assert hashlib.sha256(model).hexdigest() == release.fingerprint, "the weights are not those of the release"
    assert json.loads(meta)["step"] == release.step, "the metadata is not that of the release"


class Guard:
    """Sees each change of a store, and notes those that take something published apart.

    - A file that a manifest lists is neither deleted nor changed.
    - A manifest is written when all that it lists is there.
    - The manifest of a complete release's checkpoint or index is neither deleted nor changed, nor is a file of `ONCE`.
    """

    def __init__(self) -> None:
        self.faults: list[str] = []

    def __call__(self, objects: Objects, uri: str, content: bytes | None) -> None:
        folder, _, name = uri.rpartition("/")
        verb = "deleted" if content is None else "changed"
        before = objects.get(uri, (None, ""))[0]
        if before is not None and content != before:
            if name in ONCE:
                self.faults.append(f"{uri} is {verb}")
            elif name == MANIFEST and _belongs_to_a_release(objects, folder):
                self.faults.append(f"{uri} of a complete release is {verb}")
        if name == MANIFEST:
            if content is not None:
                self._check_manifest(objects, folder, content)
            return
        while "://" in folder and folder.rpartition("/")[0] != "memory:/":
            listed = _listed(objects, folder).get(uri.removeprefix(f"{folder}/"))
            if listed is not None and (content is None or hashlib.sha256(content).hexdigest() != listed):
                self.faults.append(f"{uri} is {verb} while {folder}/{MANIFEST} lists it")
            folder = folder.rpartition("/")[0]

    def _check_manifest(self, objects: Objects, folder: str, content: bytes) -> None:
        for relative, entry in json.loads(content)["files"].items():
            found = objects.get(f"{folder}/{relative}")
            if found is None or hashlib.sha256(found[0]).hexdigest() != entry["sha256"]:
                self.faults.append(f"{folder}/{MANIFEST} is written before {relative}")

    def assert_none(self) -> None:
        assert not self.faults, "\n".join(self.faults)


def _belongs_to_a_release(objects: Objects, folder: str) -> bool:
    return f"{folder.rpartition('/')[0]}/{registry.RELEASE_FILE}" in objects


def _listed(objects: Objects, folder: str) -> dict[str, str]:
    found = objects.get(f"{folder}/{MANIFEST}")
    return {} if found is None else {name: entry["sha256"] for name, entry in json.loads(found[0])["files"].items()}

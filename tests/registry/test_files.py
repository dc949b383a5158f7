"""The files of the registry: their content, those of the version before, of a newer one, and damaged ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from s2s_ray import registry, storage
from s2s_ray.errors import DamagedError, RegistryError

# as the versions before the key `format` wrote them
RELEASE = """{
  "id": "city-10-0123abcd",
  "name": "demo",
  "fingerprint": "0123abcd",
  "run": "city",
  "step": 10,
  "created": "2025-03-01T12:00:00.123456Z",
  "source": "runs/city/checkpoints/00000010"
}
"""
POINTER = """{
  "release": "city-10-0123abcd",
  "history": [
    "city-5-4567"
  ]
}
"""


@pytest.fixture
def root(tmp_path: Path) -> str:
    """A registry with one release and a pointer to it."""
    folder = tmp_path / "demo" / "releases" / "city-10-0123abcd"
    (folder / "index").mkdir(parents=True)
    (folder / "index" / "manifest.json").write_text('{"files": {}}')
    (folder / "release.json").write_text(RELEASE)
    (tmp_path / "demo" / "current.json").write_text(POINTER)
    return str(tmp_path)


def release_file(root: str) -> Path:
    return Path(root) / "demo" / "releases" / "city-10-0123abcd" / "release.json"


def pointer_file(root: str) -> Path:
    return Path(root) / "demo" / "current.json"


def test_files_without_a_format_are_read(root: str) -> None:
    release = registry.resolve(root, "demo")
    assert (release.id, release.step, release.source) == ("city-10-0123abcd", 10, "runs/city/checkpoints/00000010")
    assert release.created.isoformat() == "2025-03-01T12:00:00.123456+00:00"
    assert release.index_uri == storage.join(release.uri, "index")
    assert registry.lineage(root, "demo") == ("city-10-0123abcd", "city-5-4567")


def test_only_the_format_and_marks_are_added_to_what_earlier_versions_wrote(root: str) -> None:
    release = registry.resolve(root, "demo")
    assert release.to_bytes().decode() == RELEASE.replace("{\n", '{\n  "format": 1,\n', 1)
    (release_file(root).parents[1] / "city-5-4567").mkdir()
    (release_file(root).parents[1] / "city-5-4567" / "release.json").write_text(
        RELEASE.replace("city-10-0123abcd", "city-5-4567")
    )
    registry.rollback(root, "demo")
    registry.promote(root, "demo", "city-10-0123abcd")
    tree = json.loads(pointer_file(root).read_text())
    assert len(set(tree.pop("writes"))) == 2, "a mark for each change"
    assert tree == {"format": 1, **json.loads(POINTER)}, "what earlier versions read"


def test_files_of_a_newer_version(root: str, caplog: pytest.LogCaptureFixture) -> None:
    for path, text in ((release_file(root), RELEASE), (pointer_file(root), POINTER)):
        path.write_text(json.dumps({**json.loads(text), "format": 1, "colour": "red"}))
        assert registry.resolve(root, "demo").id == "city-10-0123abcd"
        assert f"{path}: ignored keys that this version does not know: colour" in caplog.text
        path.write_text(json.dumps({**json.loads(text), "format": 2}))
        with pytest.raises(RegistryError, match=rf"^{path} has format 2, this program reads 1 and earlier"):
            registry.resolve(root, "demo")
        path.write_text(text)


@pytest.mark.parametrize("text", ["{", "[]", '{"id": 3, "release": 3}'])
def test_damaged_files_are_named(root: str, text: str) -> None:
    for path, before in ((release_file(root), RELEASE), (pointer_file(root), POINTER)):
        path.write_text(text)
        with pytest.raises(DamagedError, match=rf"^{path} "):
            registry.resolve(root, "demo")
        path.write_text(before)


@pytest.mark.parametrize("text", ["{", "[]", '{"files": {"model.safetensors": {}}}'])
def test_a_checkpoint_with_a_damaged_manifest_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DamagedError, match=rf"^{tmp_path}/manifest\.json "):
        registry.publish(str(tmp_path / "registry"), "demo", str(tmp_path))

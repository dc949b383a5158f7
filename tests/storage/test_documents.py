"""JSON files with a version: written, read back, migrated, refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, ClassVar

import pytest

from s2s_ray import storage
from s2s_ray.errors import DamagedError, NotFoundError, RunError, StateError
from s2s_ray.storage.documents import Document, Tree


class Label(Document):
    """Version 1."""

    NOUN: ClassVar[str] = "label"

    text: str
    size: int = 3


def _split_size(tree: Tree) -> Tree:
    size = tree.pop("size", 3)
    return {**tree, "height": size, "width": size}


def _name_colour(tree: Tree) -> Tree:
    return {**tree, "colour": ["black", "red"][tree.pop("ink", 0)]}


class NewLabel(Document):
    """Version 3 of the same file."""

    NOUN: ClassVar[str] = "label"
    FORMAT: ClassVar[int] = 3
    MIGRATIONS = {1: _split_size, 2: _name_colour}  # noqa: RUF012
    ERROR = RunError

    text: str
    height: int
    width: int
    colour: str


class Page(Document):
    """A file with parts."""

    label: Label
    words: list[Label] = []  # noqa: RUF012


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "label.json"


def test_a_file_is_read_back(path: Path) -> None:
    label = Label(text="é", size=4)
    label.write(str(path))
    assert path.read_text() == '{\n  "format": 1,\n  "text": "é",\n  "size": 4\n}\n'
    assert Label.read(str(path)) == label
    assert Label.from_bytes(label.to_bytes(), "somewhere") == label


def test_a_file_without_a_format_is_of_version_1(path: Path) -> None:
    path.write_text('{"text": "a"}')
    assert Label.read(str(path)) == Label(text="a")


@pytest.mark.parametrize(
    ("tree", "colour"),
    [
        ({"text": "a", "size": 5}, "black"),
        ({"format": 1, "text": "a", "size": 5, "ink": 1}, "red"),
        ({"format": 2, "text": "a", "height": 5, "width": 5, "ink": 1}, "red"),
        ({"format": 3, "text": "a", "height": 5, "width": 5, "colour": "red"}, "red"),
    ],
)
def test_earlier_versions_are_migrated_step_by_step(tree: Tree, colour: str) -> None:
    before = json.dumps(tree)
    assert NewLabel.parse(tree, "x") == NewLabel(text="a", height=5, width=5, colour=colour, format=3)
    assert json.dumps(tree) == before, "the caller's tree was changed"
    assert NewLabel.parse(tree, "x").tree()["format"] == 3


def test_a_newer_version_is_refused() -> None:
    with pytest.raises(StateError, match=r"^x has format 2, this program reads 1 and earlier: upgrade s2s-ray$"):
        Label.parse({"format": 2, "text": "a"}, "x")
    with pytest.raises(RunError, match=r"^x has format 4, this program reads 3 and earlier"):
        NewLabel.parse({"format": 4}, "x")


def test_unknown_keys_are_logged_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        label = Label.parse({"text": "a", "weight": 1, "angle": 2}, "x")
    assert label == Label(text="a")
    assert caplog.messages == ["x: ignored keys that this version does not know: angle, weight"]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([1], "x holds list, expected a mapping"),
        (None, "x holds NoneType, expected a mapping"),
        ({}, r"x is damaged: it is not a label that any version writes \(text: Field required\)"),
        (
            {"text": "a", "size": "large"},
            r"x is damaged: it is not a label that any version writes \(size: Input should be a valid integer",
        ),
        ({"text": "a", "format": "1"}, "x: format='1': expected a number"),
        ({"text": "a", "format": True}, "x: format=True: expected a number"),
        ({"text": "a", "format": 0}, "x: format=0: expected a number"),
    ],
)
def test_a_damaged_tree_is_named(tree: Any, message: str) -> None:
    with pytest.raises(DamagedError, match=f"^{message}"):
        Label.parse(tree, "x")


def test_a_tree_that_cannot_be_migrated_is_damaged() -> None:
    with pytest.raises(DamagedError, match=r"^x is damaged: it is not a label that any version writes \(IndexError"):
        NewLabel.parse({"text": "a", "ink": 7}, "x")


def test_a_file_that_is_not_json_or_missing_is_named(path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"label\.json does not exist"):
        Label.read(str(path))
    for content in (b"{", b"\xff\xfe", b"[" * 100_000):
        storage.write_bytes(str(path), content)
        with pytest.raises(DamagedError, match=r"label\.json is not JSON"):
            Label.read(str(path))


def test_unknown_keys_of_parts_are_logged_by_their_path(caplog: pytest.LogCaptureFixture) -> None:
    tree = {"label": {"text": "a", "ink": 1}, "words": [{"text": "b"}, {"text": "c", "font": 2}], "pages": 3}
    with caplog.at_level(logging.WARNING):
        page = Page.parse(tree, "x")
    assert page == Page(label=Label(text="a"), words=[Label(text="b"), Label(text="c")])
    assert "x: ignored keys that this version does not know: label.ink, pages, words.font" in caplog.text

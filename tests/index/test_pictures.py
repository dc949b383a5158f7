"""The pictures of an index, and indexes that are published again at one place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from s2s_ray import storage
from s2s_ray.data.entries import COLUMNS
from s2s_ray.errors import ConflictError, DamagedError, NotFoundError, ReferenceIndexError
from s2s_ray.geo.images import Pixels
from s2s_ray.index import IndexInfo, ReferenceIndex, read_info
from s2s_ray.index.index import require_place
from s2s_ray.index.pictures import EXAMPLES_FILE, THUMBNAILS_FILE, Pictures, write_pictures

THUMBNAILS = pa.schema([("jpeg", pa.binary())])


def write_thumbnails(folder: Path, pictures: Sequence[str]) -> None:
    with pa.OSFile(str(folder / THUMBNAILS_FILE), "wb") as file, pa.ipc.new_file(file, THUMBNAILS) as writer:
        writer.write_batch(pa.record_batch([[picture.encode() for picture in pictures]], schema=THUMBNAILS))


def index_of(ids: str, *, pictures: bool) -> ReferenceIndex:
    """An index of tiles with one-letter ids; the picture of a tile says its id."""
    columns = {name: [0] * len(ids) for name in COLUMNS.names} | {"id": list(ids)}
    info = IndexInfo(dimension=8, count=len(ids), checkpoint="c", dataset="d", dataset_digest="x")
    descriptors = np.eye(8, dtype=np.float32)[: len(ids)]
    draw = (lambda folder: write_thumbnails(folder, [f"picture of {id}" for id in ids])) if pictures else None
    return ReferenceIndex.build(info, descriptors, pa.table(columns, schema=COLUMNS), draw)


def shown(index: ReferenceIndex) -> list[bytes | None]:
    """Return the pictures of all tiles."""
    assert index.pictures is not None
    return [index.pictures.thumbnail(row) for row in range(len(index))]


@pytest.mark.parametrize("pictures", [True, False])
@pytest.mark.parametrize("ids", ["x", "xyzw"])
def test_an_index_built_again_shows_no_picture_of_the_former_one(tmp_path: Path, ids: str, pictures: bool) -> None:
    out = str(tmp_path / "index")
    index_of("abc", pictures=True).save(out)
    former = ReferenceIndex.load(out)
    index_of(ids, pictures=pictures).save(out, replace=True)
    wanted = [f"picture of {id}".encode() if pictures else None for id in ids]
    assert shown(ReferenceIndex.load(out)) == wanted
    assert read_info(out).count == len(ids)
    assert shown(former) == [f"picture of {id}".encode() for id in "abc"], "it was mapped before"
    index_of("abc", pictures=True).save(out, replace=True)
    assert shown(ReferenceIndex.load(out)) == shown(former)


def test_pictures_that_an_earlier_version_left_are_not_shown(tmp_path: Path) -> None:
    """It published the second index into the folder of the first one, whose pictures stayed."""
    index_of("abcd", pictures=False).save(str(tmp_path / "index"))
    write_thumbnails(tmp_path / "index", ["of another index"])
    (tmp_path / "index" / EXAMPLES_FILE).write_bytes(b"of another index")
    loaded = ReferenceIndex.load(str(tmp_path / "index"))
    assert shown(loaded) == [None] * 4
    assert loaded.pictures is not None
    assert loaded.pictures.examples() == []


def test_a_row_without_a_picture(tmp_path: Path) -> None:
    write_thumbnails(tmp_path, ["first"])
    pictures = Pictures(tmp_path, [THUMBNAILS_FILE])
    assert [pictures.thumbnail(row) for row in (0, 1, -1)] == [b"first", None, None]


def test_damaged_and_missing_pictures_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=THUMBNAILS_FILE):
        Pictures(tmp_path, [THUMBNAILS_FILE])
    for content in (b"", b"no pictures"):
        (tmp_path / THUMBNAILS_FILE).write_bytes(content)
        with pytest.raises(DamagedError, match=f"{THUMBNAILS_FILE} holds no pictures"):
            Pictures(tmp_path, [THUMBNAILS_FILE])
    with pa.OSFile(str(tmp_path / THUMBNAILS_FILE), "wb") as file, pa.ipc.new_file(file, COLUMNS):
        pass
    with pytest.raises(DamagedError, match=f"{THUMBNAILS_FILE} holds no pictures"):
        Pictures(tmp_path, [THUMBNAILS_FILE])


def test_an_index_is_replaced_only_if_asked(tmp_path: Path) -> None:
    out = str(tmp_path / "index")
    index_of("abc", pictures=False).save(out)
    index_of("abc", pictures=False).save(out)
    with pytest.raises(ConflictError, match="a published folder is not changed"):
        index_of("xyz", pictures=False).save(out)
    assert ReferenceIndex.load(out).ids() == frozenset("abc")


def test_something_else_is_not_replaced_by_an_index(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "model.safetensors").write_bytes(b"weights")
    checkpoint = str(tmp_path / "checkpoint")
    storage.publish(tmp_path / "local", checkpoint)
    with pytest.raises(ReferenceIndexError, match=r"checkpoint holds model\.safetensors, which is not an index"):
        index_of("abc", pictures=False).save(checkpoint, replace=True)
    storage.check(checkpoint)
    (tmp_path / "local" / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(ReferenceIndexError, match=r"local/manifest\.json does not list the files of an index"):
        require_place(str(tmp_path / "local"))


def test_an_index_that_is_replaced_while_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, first, read_json = str(tmp_path / "index"), [True], storage.read_json
    index_of("abc", pictures=True).save(out)

    def replaced_before(uri: str) -> object:
        if first and first.pop():
            index_of("xy", pictures=True).save(out, replace=True)
        return read_json(uri)

    monkeypatch.setattr(storage, "read_json", replaced_before)
    loaded = ReferenceIndex.load(out)
    assert loaded.ids() == frozenset("xy")
    assert shown(loaded) == [b"picture of x", b"picture of y"]


def test_pictures_of_a_part_of_the_horizon_are_no_examples(tmp_path: Path) -> None:
    street, tile = torch.zeros(3, 8, 16, dtype=torch.uint8), np.zeros((8, 8, 3), np.uint8)

    class Two:
        ids, latlon = ["part", "whole"], np.full((2, 2), np.nan)

        def __len__(self) -> int:
            return 2

        def __getitem__(self, row: int) -> SimpleNamespace:
            return SimpleNamespace(street=street, seen=None if row else torch.zeros(8, 16, dtype=torch.bool))

        def tile(self, row: int) -> Pixels:
            return tile

    write_pictures(Two(), tmp_path)  # type: ignore[arg-type]
    pictures = Pictures(tmp_path, [THUMBNAILS_FILE, EXAMPLES_FILE])
    assert [example.id for example in pictures.examples()] == ["whole"]

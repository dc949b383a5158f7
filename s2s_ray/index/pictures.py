"""Pictures stored with an index, so that a page can show matches without the data set.

`thumbnails.arrow` has one small JPEG per tile, in the order of the vectors; `examples.arrow` has a few panoramas of
the data set with their tiles, and the index of a region has none. Both are read memory-mapped.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from s2s_ray.errors import DamagedError
from s2s_ray.geo.images import Pixels, encode
from s2s_ray.storage import local_faults

if TYPE_CHECKING:
    from s2s_ray.data.dataset import PairDataset

THUMBNAILS_FILE = "thumbnails.arrow"
EXAMPLES_FILE = "examples.arrow"
THUMBNAIL_PX = 96
EXAMPLES = 6
_THUMBNAILS = pa.schema([("jpeg", pa.binary())])
_EXAMPLES = pa.schema(
    [
        ("id", pa.string()),
        ("latitude", pa.float64()),
        ("longitude", pa.float64()),
        ("street", pa.binary()),
        ("tile", pa.binary()),
    ]
)
_CHUNK = 256


class Example(NamedTuple):
    """A pair of the data set: JPEG of the panorama as the model sees it (north in the middle) and of the tile.

    The tile is polar if the data set keeps no north-up tiles.
    """

    id: str
    latitude: float | None
    longitude: float | None
    street: bytes
    tile: bytes


class Pictures:
    """The pictures of one index; an index may have none.

    Args:
        folder: the local files of the index.
        published: the names of those that belong to it. There may be others, of an index that was there before.

    Raises:
        DamagedError: a file cannot be read as pictures.
        NotFoundError: a file is missing.
    """

    def __init__(self, folder: Path, published: Collection[str]) -> None:
        thumbnails, examples = (
            _mapped(folder / name, schema) if name in published else None
            for name, schema in ((THUMBNAILS_FILE, _THUMBNAILS), (EXAMPLES_FILE, _EXAMPLES))
        )
        self._thumbnails, self._examples = thumbnails, examples

    def thumbnail(self, row: int) -> bytes | None:
        """Return the JPEG of a tile; None if the index has no picture of it."""
        if self._thumbnails is None or not 0 <= row < self._thumbnails.num_rows:
            return None
        picture: bytes = self._thumbnails.column("jpeg")[row].as_py()
        return picture

    def examples(self) -> list[Example]:
        """Return all examples."""
        return [] if self._examples is None else [Example(**row) for row in self._examples.to_pylist()]


def write_pictures(dataset: PairDataset, folder: Path) -> None:
    """Write both files for all pairs of a data set; pictures of a part of the horizon are no examples."""
    write_thumbnails((_tile(dataset, row) for row in range(len(dataset))), folder)
    spread = sorted({round(row) for row in np.linspace(0, len(dataset) - 1, EXAMPLES)})
    chosen = [row for row in spread if dataset[row].seen is None]  # the page asks about whole panoramas
    examples = [
        {
            "id": dataset.ids[row],
            "latitude": _known(dataset.latlon[row, 0]),
            "longitude": _known(dataset.latlon[row, 1]),
            "street": encode(dataset[row].street.permute(1, 2, 0).numpy(), "jpeg"),
            "tile": encode(_tile(dataset, row), "jpeg"),
        }
        for row in chosen
    ]
    with pa.OSFile(str(folder / EXAMPLES_FILE), "wb") as file, pa.ipc.new_file(file, _EXAMPLES) as writer:
        writer.write_table(pa.Table.from_pylist(examples, schema=_EXAMPLES))


def write_thumbnails(tiles: Iterable[Pixels], folder: Path) -> None:
    """Write the thumbnails of the tiles of an index, H W 3 each, in the order of its vectors."""
    rest = iter(tiles)
    with pa.OSFile(str(folder / THUMBNAILS_FILE), "wb") as file, pa.ipc.new_file(file, _THUMBNAILS) as writer:
        while batch := [thumbnail_of(tile) for tile in islice(rest, _CHUNK)]:
            writer.write_batch(pa.record_batch([batch], schema=_THUMBNAILS))


def _tile(dataset: PairDataset, row: int) -> Pixels:
    tile = dataset.tile(row)
    if tile is not None:
        return tile
    polar: Pixels = dataset[row].polar.permute(1, 2, 0).numpy()
    return polar


def thumbnail_of(pixels: Pixels) -> bytes:
    """Return the small JPEG of a tile."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((2 * THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _mapped(path: Path, schema: pa.Schema) -> pa.Table:
    with local_faults(str(path)):
        try:
            return pa.ipc.open_file(pa.memory_map(str(path))).read_all().cast(schema)
        except (pa.ArrowException, ValueError) as error:
            raise DamagedError(f"{path} holds no pictures ({error}): build the index again") from None

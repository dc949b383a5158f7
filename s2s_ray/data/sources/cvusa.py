"""CVUSA (Zhai et al., CVPR 2017) in the layout of its distribution.

    splits/train-19zl.csv, splits/val-19zl.csv   one pair per line: aerial, panorama and annotation path, no header
    bingmap/19/0000001.jpg                       north-up tiles, 750 x 750
    streetview/panos/0000001.jpg                 panoramas, 1232 x 224, already cropped, north in the middle

The data set is available from its authors (https://mvrl.cse.wustl.edu/datasets/cvusa) on request.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from s2s_ray import storage
from s2s_ray.config import CvusaSourceConfig
from s2s_ray.data.schema import Pair, Record, Split
from s2s_ray.data.sources.files import read_archive_file, read_image, require_panorama
from s2s_ray.errors import ArchiveError
from s2s_ray.geo.images import Pixels
from s2s_ray.geo.metadata import PhotoMetadata
from s2s_ray.geo.views import ALL_ROWS, ViewGeometry

SPLIT_FILES: dict[Split, str] = {"train": "splits/train-19zl.csv", "test": "splits/val-19zl.csv"}
PUBLISHED: dict[Split, int] = {"train": 35_532, "test": 8_884}
"""Pairs in the published split files; the validation split is held out of the training pairs."""

POLAR_SIZE = (224, 1232)
"""Rows and columns of the polar images before the resize, as in the released scripts."""

ELEVATIONS = (180 * POLAR_SIZE[0] / POLAR_SIZE[1], -180 * POLAR_SIZE[0] / POLAR_SIZE[1])
"""Degrees of a panorama's upper and lower edge, +32.7 and -32.7, if its pixels are square and the horizon is in the
middle. The publication does not say how the spheres were cropped."""


@dataclass(frozen=True, slots=True)
class _Files:
    satellite: str
    street: str


class CvusaSource:
    """Pairs of CVUSA. A pair's id is the name of its tile without folder and suffix; there are no coordinates."""

    def __init__(self, config: CvusaSourceConfig) -> None:
        self.config = config
        self.uri = storage.absolute(config.uri)

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "uri": self.uri}

    def views(self, height: int, width: int) -> ViewGeometry:
        """Keep all rows of the panorama; make polar images at the panorama's resolution."""
        return ViewGeometry(
            height,
            width,
            ALL_ROWS,
            POLAR_SIZE,
            self.config.polar_contrast,
            self.config.resize,
            elevations=ELEVATIONS,
            default_heading=0.0,
        )

    def records(self) -> Sequence[Record]:
        """Return all pairs in the order of the split files, training first. Raises `ArchiveError` or `StorageError`."""
        return [record for record, _ in self._pairs.values()]

    @property
    def tile_size(self) -> None:
        """None: the tiles are files."""

    def read(self, record: Record, margin_px: int = 0) -> Pair:
        """Return both images of a pair. Raises `UnreadableImageError`."""
        assert not margin_px, "the tiles of an archive have no margin"
        files = self._pairs[record.id][1]
        satellite, street = self._image("satellite", files.satellite), self._image("street", files.street)
        require_panorama(street, POLAR_SIZE[1] / POLAR_SIZE[0], "the shape of 1232 x 224, cropped as distributed")
        return Pair(satellite, street)

    def photo(self, record: Record) -> PhotoMetadata:
        """Return nothing: the records say all of their panoramas."""
        return PhotoMetadata()

    def _image(self, view: str, path: str) -> Pixels:
        index = storage.join(self.uri, SPLIT_FILES["train"])
        return read_image(view, storage.join(self.uri, path), path, listed_in=index)

    @cached_property
    def _pairs(self) -> dict[str, tuple[Record, _Files]]:
        pairs: dict[str, tuple[Record, _Files]] = {}
        for split, name in SPLIT_FILES.items():
            uri = storage.join(self.uri, name)
            for number, files in enumerate(_split_file(uri), start=1):
                id = PurePosixPath(files.satellite).stem
                if id in pairs:
                    raise ArchiveError(
                        f"{uri}, line {number}: {id} is listed twice, the first time in {pairs[id][0].split}"
                    )
                pairs[id] = (Record(id, split), files)
        return pairs


def _split_file(uri: str) -> list[_Files]:
    data = read_archive_file(uri, "CVUSA's split file; source.uri is the folder that holds splits/")
    try:
        lines = list(csv.reader(data.decode("utf-8-sig").splitlines(), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ArchiveError(f"{uri} is not CSV in UTF-8 ({error})") from None
    found = []
    for number, line in enumerate(lines, start=1):
        fields = [field.strip() for field in line]
        if not any(fields):
            continue
        if len(fields) < 2 or not fields[0] or not fields[1]:
            raise ArchiveError(f"{uri}, line {number}: {','.join(line)!r}, expected an aerial and a panorama path")
        found.append(_Files(fields[0], fields[1]))
    if not found:
        raise ArchiveError(f"{uri} lists no pairs")
    return found

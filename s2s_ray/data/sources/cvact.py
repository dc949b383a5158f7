"""CVACT (Liu and Li, CVPR 2019) in the layout of its distribution.

    ACT_data.mat                                            ids, UTM coordinates and the splits, 1-based
    ANU_data_small/satview_polish/ID_satView_polish.jpg     north-up tiles, 1200 x 1200, of training and CVACT_val
    ANU_data_small/streetview/ID_grdView.jpg                panoramas, 1664 x 832, full spheres, north in the middle
    ANU_data_test/...                                       the same for CVACT_test

The data set is available from its authors (https://github.com/Liumouliu/OriCNN) on request.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2s_ray import storage
from s2s_ray.config import CvactSourceConfig
from s2s_ray.data.schema import Pair, Record, Split
from s2s_ray.data.sources.files import read_archive_file, read_existing_image, require_panorama, require_source
from s2s_ray.errors import ArchiveError, NotFoundError, UnreadableImageError
from s2s_ray.geo.images import Pixels
from s2s_ray.geo.metadata import PhotoMetadata
from s2s_ray.geo.utm import to_degrees
from s2s_ray.geo.views import FULL_SPHERE_ROWS, ViewGeometry

INDEX = "ACT_data.mat"
FOLDERS = {"val": "ANU_data_small", "test": "ANU_data_test"}
PUBLISHED: dict[str, dict[Split, int]] = {
    "val": {"train": 35_532, "test": 8_884},
    "test": {"train": 35_532, "test": 92_802},
}
"""Pairs in the published index by `source.test`; the validation split is held out of the training pairs."""

ZONE = 32755  # Canberra lies in UTM zone 55 south
_SPLITS = {"train": ("trainSet", "trainInd"), "val": ("valSet", "valInd"), "test": ("valSetAll", "valInd")}
_FILES = {"satellite": "satview_polish/{}_satView_polish", "street": "streetview/{}_grdView"}
_SUFFIXES = (".jpg", ".png")


class CvactSource:
    """Pairs of CVACT with their UTM coordinates; the test split is CVACT_val or, with `test`, CVACT_test."""

    def __init__(self, config: CvactSourceConfig) -> None:
        self.config = config
        self.uri = storage.absolute(config.uri)

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "uri": self.uri}

    def views(self, height: int, width: int) -> ViewGeometry:
        """Keep the middle half of the spheres; make polar images at the model's resolution."""
        return ViewGeometry(
            height,
            width,
            FULL_SPHERE_ROWS,
            polar_contrast=self.config.polar_contrast,
            elevations=(45.0, -45.0),
            default_heading=0.0,
        )

    def records(self) -> Sequence[Record]:
        """Return all pairs in the order of the index, training pairs first. Raises `ArchiveError` or `StorageError`."""
        return list(self._records.values())

    @property
    def tile_size(self) -> None:
        """None: the tiles are files."""

    def read(self, record: Record, margin_px: int = 0) -> Pair:
        """Return both images of a pair. Raises `UnreadableImageError`."""
        assert not margin_px, "the tiles of an archive have no margin"
        folder = FOLDERS["val" if record.split in ("train", "val") else self.config.test]
        satellite, street = self._image("satellite", folder, record.id), self._image("street", folder, record.id)
        require_panorama(street, 2.0, "a full sphere like 1664 x 832")
        return Pair(satellite, street)

    def photo(self, record: Record) -> PhotoMetadata:
        """Return nothing: the records say all of their panoramas."""
        return PhotoMetadata()

    def _image(self, view: str, folder: str, id: str) -> Pixels:
        """Return the image of a view, JPEG as distributed or PNG."""
        paths = [f"{folder}/{_FILES[view].format(id)}{suffix}" for suffix in _SUFFIXES]
        for path in paths:
            try:
                return read_existing_image(view, storage.join(self.uri, path), path)
            except NotFoundError:
                continue
        require_source(storage.join(self.uri, INDEX))
        raise UnreadableImageError(f"{view} image is missing: neither {' nor '.join(paths)} is in {self.uri}")

    @cached_property
    def _records(self) -> dict[str, Record]:
        index = _Index(storage.join(self.uri, INDEX))
        records: dict[str, Record] = {}
        splits: tuple[tuple[Split, str], ...] = (("train", "train"), ("test", self.config.test))
        for split, name in splits:
            for record in index.records(name, split):
                if record.id in records:
                    raise ArchiveError(f"{index.uri}: {record.id} is listed twice, the second time in {name}")
                records[record.id] = record
        return records


class _Index:
    """`ACT_data.mat`: ids, coordinates and the rows of each split."""

    def __init__(self, uri: str) -> None:
        from scipy.io import loadmat  # slow to import, and needed by this source only

        self.uri = uri
        data = read_archive_file(uri, "CVACT's index; source.uri is the folder that holds it and the ANU_data folders")
        try:
            self._tree = loadmat(io.BytesIO(data))
        except Exception as error:  # SciPy's reader raises almost anything on damaged files
            raise ArchiveError(f"{uri} is not a MATLAB file that can be read ({error})") from None
        self.ids = [_text(value) for value in np.ravel(self._field("panoIds"))]
        try:
            self.utm = np.asarray(self._field("utm"), np.float64)
        except (TypeError, ValueError):
            raise ArchiveError(f"{uri}: utm is not an array of numbers") from None
        if self.utm.shape != (len(self.ids), 2):
            raise ArchiveError(f"{uri}: utm has shape {self.utm.shape}, expected {len(self.ids)} x 2, one row per id")

    def records(self, name: str, split: Split) -> list[Record]:
        """Return one of the index's splits, in its order.

        Coordinates stay float64, since evaluation compares distances with 5 m.
        """
        rows = self._rows(name)
        places = self.utm[rows]
        latitudes, longitudes = to_degrees(places[:, 0], places[:, 1], ZONE)
        valid = np.isfinite(places).all(1) & np.isfinite(latitudes) & np.isfinite(longitudes)
        if not valid.all():
            row = rows[~valid][0]
            raise ArchiveError(
                f"{self.uri}: utm of {self.ids[row]} is {self.utm[row].tolist()}, expected easting, northing"
            )
        columns = zip(rows.tolist(), latitudes.tolist(), longitudes.tolist(), *places.T.tolist(), strict=True)
        return [
            Record(self.ids[row], split, latitude, longitude, easting, northing, ZONE)
            for row, latitude, longitude, easting, northing in columns
        ]

    def _rows(self, name: str) -> NDArray[np.int64]:
        """Return the 0-based rows of a split, in its order."""
        section, field = _SPLITS[name]
        value: Any = self._field(section)
        try:
            rows = np.ravel(value[field][0, 0]).astype(np.int64) - 1
        except (IndexError, KeyError, ValueError, TypeError, OverflowError):
            raise ArchiveError(f"{self.uri}: {section}.{field} is missing") from None
        if not len(rows) or rows.min() < 0 or rows.max() >= len(self.ids):
            raise ArchiveError(f"{self.uri}: {section}.{field} is empty or has rows outside of 1 to {len(self.ids)}")
        return rows

    def _field(self, name: str) -> NDArray[Any]:
        if name not in self._tree:
            known = ", ".join(key for key in self._tree if not key.startswith("__"))
            raise ArchiveError(f"{self.uri}: field {name} is missing; it has {known or 'none'}")
        value: NDArray[Any] = self._tree[name]
        return value


def _text(value: Any) -> str:
    """Return an id from an array of characters, or from a cell that holds one."""
    while isinstance(value, np.ndarray):
        value = value.ravel()[0] if value.size else ""
    return str(value).strip()

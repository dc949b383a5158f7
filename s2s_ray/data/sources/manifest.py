"""Users' own images, listed in a CSV or Parquet file: the manifest."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from s2s_ray import storage
from s2s_ray.config import ManifestSourceConfig
from s2s_ray.data.schema import SPLITS, Imagery, Pair, Record, Split, TileSize
from s2s_ray.data.sources.files import read_image, read_photo
from s2s_ray.errors import ConfigError, ManifestError, ViewError
from s2s_ray.geo.images import Pixels
from s2s_ray.geo.metadata import PhotoMetadata
from s2s_ray.geo.query import Query
from s2s_ray.geo.utm import to_utm, utm_zone
from s2s_ray.geo.views import ViewGeometry

OPTIONAL = ("latitude", "longitude", "easting", "northing", "zone")
UNKNOWN = ("", "nan", "-nan", "na", "<na>", "n/a", "#n/a", "nat", "none", "null")
"""How tables say that a number is unknown, in lower case."""
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class _Row:
    record: Record
    satellite: str
    street: str


class ManifestSource:
    """Pairs listed in a table with the columns id, satellite, street and split (train, val or test).

    `satellite` and `street` are image files: relative to the manifest, absolute, or URIs. Optional columns, any of
    which may be empty or NaN in a row: `latitude` and `longitude` (WGS 84 degrees, both or none); `easting`,
    `northing` and `zone` (UTM metres and the zone's EPSG code, all or none; computed from latitude and longitude if
    they are not given, between 80 degrees south and 84 north); `place` (a name that pictures of one place share).

    Columns that say what a picture shows, as in `geo.query.Query`: `heading` (compass bearing of the middle column in
    degrees; `auto`: from the file; `unknown`, in the test split only; empty: `panorama_heading`), `projection`
    (`equirectangular`, which empty means, `rectilinear`, `cylindrical` or `auto`), `fov` (degrees of the horizon that
    the picture shows; `auto`: from the file; empty: 360 for an equirectangular picture, `auto` for others), `pitch` and
    `roll` (degrees; empty: from the file where something else comes from it, otherwise 0). A row whose file does not
    say what it needs is left out, with the reason. Other columns are ignored.

    With `tiles` or `geotiff`, satellite tiles are cut from that imagery around each row's latitude and longitude,
    and there is no column `satellite`.

    Args:
        panoramas: False reads a list of positions or tiles only, for `tile`: the columns `street` and `split` are not
            needed then, and `read` must not be called.
    """

    def __init__(self, config: ManifestSourceConfig, *, panoramas: bool = True) -> None:
        if config.uri is None:
            raise ConfigError("source.uri is missing: the CSV or Parquet file that lists the images")
        self.config = config
        self.uri = storage.absolute(config.uri)
        self._panoramas = panoramas

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "uri": self.uri, "_panoramas": self._panoramas}

    def views(self, height: int, width: int) -> ViewGeometry:
        """Keep the configured rows of the panorama."""
        return ViewGeometry(height, width, self.config.panorama_rows, default_heading=self.config.query_heading)

    def records(self) -> Sequence[Record]:
        """Return all rows in the order of the file. Raises `ManifestError` or `StorageError`."""
        return [row.record for row in self._rows.values()]

    @property
    def tile_size(self) -> TileSize | None:
        """The size of the tiles that are cut from imagery; None if they are files."""
        if not self.config.cuts_tiles:
            return None
        assert self.config.tile_m is not None
        return TileSize(self.config.tile_m, self.config.tile_px)

    def read(self, record: Record, margin_px: int = 0) -> Pair:
        """Return both images of a row. Raises `UnreadableImageError` if one is missing or cannot be decoded."""
        return Pair(self.tile(record, margin_px), self._image("street", self._rows[record.id].street))

    def photo(self, record: Record) -> PhotoMetadata:
        """Return what the file of a row's panorama says of it; nothing without such a file. Raises StorageError."""
        return read_photo(self._uri_of(self._rows[record.id].street))

    def tile(self, record: Record, margin_px: int = 0) -> Pixels:
        """Return the satellite tile of a row, with so many pixels more on each side. Raises `UnreadableImageError`."""
        size = self.tile_size
        if self._imagery is None or size is None:
            assert not margin_px, "tiles that are files have no margin"
            return self._image("satellite", self._rows[record.id].satellite)
        assert record.latitude is not None
        assert record.longitude is not None
        wide = size.with_margin(margin_px)
        return self._imagery.cut(record.latitude, record.longitude, wide.metres, wide.px)

    def _image(self, column: str, reference: str) -> Pixels:
        return read_image(column, self._uri_of(reference), reference, listed_in=self.uri)

    def _uri_of(self, reference: str) -> str:
        rooted = "://" in reference or reference.startswith("/")
        return reference if rooted else storage.join(storage.parent(self.uri), reference)

    @cached_property
    def _imagery(self) -> Imagery | None:
        from s2s_ray.data.sources import open_imagery

        return open_imagery(self.config) if self.config.cuts_tiles else None

    @property
    def _required(self) -> tuple[str, ...]:
        satellite = ("latitude", "longitude") if self.config.cuts_tiles else ("satellite",)
        return ("id", *satellite, *(("street", "split") if self._panoramas else ()))

    @cached_property
    def _rows(self) -> dict[str, _Row]:
        table = read_table(self.uri, self._required)
        rows = [self._row(number, fields) for number, fields in table]
        repeated = [id for id, count in Counter(row.record.id for row in rows).items() if count > 1]
        if repeated:
            raise ManifestError(f"{self.uri}: ids must be unique, but {len(repeated)} are repeated: {_some(repeated)}")
        return {row.record.id: row for row in _with_utm(rows)}

    def _row(self, number: int, fields: Mapping[str, str]) -> _Row:
        where = f"{self.uri}, row {number}"
        for column in self._required:
            if not fields[column]:
                raise ManifestError(f"{where}: {column} is empty")
            if column != "id" and fields[column].lower() in UNKNOWN:  # anything may be an id
                raise ManifestError(f"{where}: {column} is {fields[column]!r}, but every row needs one")
            if "\0" in fields[column]:
                raise ManifestError(f"{where}: {column}={fields[column]!r} contains a NUL character")
        named = fields["split"] if self._panoramas else "test"
        if named not in SPLITS:
            raise ManifestError(f"{where}: split is {named!r}, expected one of {', '.join(SPLITS)}")
        value = {column: _number(where, column, fields.get(column, "")) for column in OPTIONAL}
        for group in (("latitude", "longitude"), ("easting", "northing", "zone")):
            absent = [column for column in group if value[column] is None]
            if absent and len(absent) < len(group):
                raise ManifestError(f"{where}: {' and '.join(absent)} missing; give {', '.join(group)} or none of them")
        _check(where, "latitude", value["latitude"], "between -90 and 90", lambda x: -90 <= x <= 90)
        _check(where, "longitude", value["longitude"], "between -180 and 180", lambda x: -180 <= x <= 180)
        _check(where, "zone", value["zone"], "the EPSG code of a UTM zone, 32601 to 32660 or 32701 to 32760", _is_utm)
        split: Split = next(split for split in SPLITS if split == named)
        zone = value["zone"]
        record = Record(
            id=fields["id"],
            split=split,
            latitude=value["latitude"],
            longitude=value["longitude"],
            easting=value["easting"],
            northing=value["northing"],
            zone=None if zone is None else int(zone),
            place=place if (place := fields.get("place", "")).lower() not in UNKNOWN else None,
            **self._query(where, fields, split),
        )
        return _Row(record, fields.get("satellite", ""), fields.get("street", ""))

    def _query(self, where: str, fields: Mapping[str, str], split: Split) -> dict[str, Any]:
        """Return what a row says of its picture, by the fields of `Record`."""
        names = ("heading", "fov", "projection", "pitch", "roll")
        given = {name: text for name in names if (text := fields.get(name, "").lower()) not in UNKNOWN}
        heading: Any = given.pop("heading", "")
        if heading not in ("auto", "unknown"):
            heading = self.config.panorama_heading if heading == "" else _number(where, "heading", heading)
        given.setdefault("projection", "equirectangular")
        given.setdefault("fov", "360" if given["projection"] == "equirectangular" else "auto")
        try:
            query = Query.parse(given)
        except ViewError as error:
            raise ManifestError(f"{where}: {error}") from None
        if heading == "unknown" and split != "test":
            raise ManifestError(
                f"{where}: heading is unknown, but a pair of the {split} split needs one: give a number or auto, or "
                "move it to the test split"
            )
        return {"heading": heading} | {name: getattr(query, name) for name in names[1:]}


def read_table(uri: str, required: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """Return row numbers (from 1, without the header) with their fields as text.

    Raises:
        ManifestError: neither CSV nor Parquet, without a required column, or without rows.
        StorageError: it cannot be read.
    """
    data = storage.read_bytes(uri)
    columns, rows = _parquet(uri, data) if data[:4] == b"PAR1" else _csv(uri, data, required)
    absent = [column for column in required if column not in columns]
    if absent:
        raise ManifestError(
            f"{uri}: column {', '.join(absent)} is missing; the file has {', '.join(columns) or 'none'}"
        )
    if not rows:
        raise ManifestError(f"{uri} has no rows")
    return list(enumerate(rows, start=1))


def _csv(uri: str, data: bytes, required: tuple[str, ...]) -> tuple[list[str], list[dict[str, str]]]:
    try:
        lines = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{uri} is neither Parquet nor CSV in UTF-8 ({error})") from None
    if not lines:
        raise ManifestError(f"{uri} is empty; expected a header with {', '.join(required)}")
    columns = [column.strip() for column in lines[0]]
    rows = []
    for number, line in enumerate(filter(None, lines[1:]), start=1):
        if len(line) != len(columns):
            raise ManifestError(f"{uri}, row {number}: {len(line)} fields, the header has {len(columns)}")
        rows.append(dict(zip(columns, (field.strip() for field in line), strict=True)))
    return columns, rows


def _parquet(uri: str, data: bytes) -> tuple[list[str], list[dict[str, str]]]:
    try:
        # No Python file: a thread of Arrow that still holds one while the process ends aborts it (exit code 134).
        table = pq.read_table(pa.BufferReader(data))
        rows = [
            {column: "" if value is None or _is_nan(value) else str(value).strip() for column, value in row.items()}
            for row in table.to_pylist()
        ]
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise ManifestError(f"{uri} is not a readable Parquet file ({error})") from None
    return table.column_names, rows


def _is_nan(value: object) -> bool:
    return isinstance(value, float | Decimal) and math.isnan(value)


def _number(where: str, column: str, text: str) -> float | None:
    """Return a number of a row; None if it is unknown."""
    if text.lower() in UNKNOWN:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ManifestError(f"{where}: {column} is {text!r}, expected a number")
    return number


def _check(where: str, column: str, value: float | None, allowed: str, test: Callable[[float], bool]) -> None:
    if value is not None and not test(value):
        raise ManifestError(f"{where}: {column} is {value:g}, expected {allowed}")


def _is_utm(zone: float) -> bool:
    return zone in range(32601, 32661) or zone in range(32701, 32761)


def _with_utm(rows: list[_Row]) -> list[_Row]:
    """Return the rows with easting, northing and zone computed if only latitude and longitude were given.

    Rows nearer to a pole than UTM reaches have none.
    """
    zones: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        latitude, longitude = row.record.latitude, row.record.longitude
        if row.record.zone is None and latitude is not None and longitude is not None and -80 <= latitude <= 84:
            zones.setdefault(utm_zone(latitude, longitude), []).append(index)
    complete = list(rows)
    for zone, members in zones.items():
        degrees = np.array([(rows[index].record.latitude, rows[index].record.longitude) for index in members])
        eastings, northings = to_utm(degrees[:, 0], degrees[:, 1], zone)
        for index, easting, northing in zip(members, eastings.tolist(), northings.tolist(), strict=True):
            record = replace(rows[index].record, easting=easting, northing=northing, zone=zone)
            complete[index] = replace(rows[index], record=record)
    return complete


def _some(ids: list[str]) -> str:
    return ", ".join(ids[:_SHOWN]) + (", ..." if len(ids) > _SHOWN else "")

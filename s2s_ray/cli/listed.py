"""Localisation of the pictures that a manifest lists: `s2s localize --manifest`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from s2s_ray.cli.engine import Engine, Search, require_readable
from s2s_ray.errors import InputError, OptionError, ServiceError, StorageError

if TYPE_CHECKING:
    from s2s_ray.geo.query import Query

_REFUSED = (400, 413, 415, 422)
"""Statuses by which a service refuses an image."""
_SAID = ("heading", "fov", "projection", "pitch", "roll")


class Row(NamedTuple):
    """A row of a manifest: a picture, what is known of it, and where it was taken, if that is known."""

    number: int
    id: str | None
    image: str
    query: Query
    place: str | None
    true: tuple[float, float] | None


class Fault(NamedTuple):
    """A row that has no answer, and the reason."""

    number: int
    reason: str

    def __str__(self) -> str:
        return f"row {self.number}: {self.reason}"


def read_rows(uri: str, query: Query) -> tuple[list[Row], list[Fault]]:
    """Return the rows of a manifest that can be localised, in their order, and the others.

    The columns are those of `ManifestSource`, of which `street` is required. A column that is missing or empty leaves
    what `query` says.

    Raises:
        ManifestError: it is not a table with a column `street`.
        StorageError: it cannot be read.
    """
    from s2s_ray.data.sources.manifest import read_table

    rows, faults = [], []
    for number, fields in read_table(uri, ("street",)):
        try:
            rows.append(_row(uri, number, fields, query))
        except InputError as error:
            faults.append(Fault(number, str(error)))
    return rows, faults


def answers(engine: Engine, rows: Sequence[Row], search: Search, shown: int) -> Iterator[str | Fault]:
    """Yield a JSON line for each picture, or for the pictures of each place, in the order of their first rows.

    Args:
        engine: the model.
        rows: the pictures; those with the same `place` make one fix.
        search: what to search for; `true` and `together` come from the rows.
        shown: number of matches in a line.

    Raises:
        S2SError: the model, the index or the service cannot be used.
    """
    places: dict[object, list[Row]] = {}
    for row in rows:
        places.setdefault(row.number if row.place is None else row.place, []).append(row)
    for place in places.values():
        yield from _answer(engine, place, search, shown)


def _answer(engine: Engine, place: list[Row], search: Search, shown: int) -> Iterator[str | Fault]:
    readable = []
    for row in place:
        try:
            require_readable(row.image)
            readable.append(row)
        except (InputError, StorageError) as error:
            yield Fault(row.number, str(error))
    if not readable:
        return
    true = next((row.true for row in readable if row.true is not None), None)
    asked = search._replace(true=true, together=len(readable) > 1)
    try:
        [location] = engine.locate([row.image for row in readable], [row.query for row in readable], asked)
    except (InputError, ServiceError) as error:
        if isinstance(error, OptionError) or (isinstance(error, ServiceError) and error.status not in _REFUSED):
            raise  # it concerns all rows
        yield from (Fault(row.number, str(error)) for row in readable)
        return
    from s2s_ray.cli.locations import as_tree

    tree = as_tree([row.image for row in readable], location._replace(matches=location.matches[:shown]))
    named: dict[str, Any] = {"rows": [row.number for row in readable]}
    if any(row.id is not None for row in readable):
        named["ids"] = [row.id for row in readable]
    if place[0].place is not None:
        named["place"] = place[0].place
    yield json.dumps(named | tree)


def _row(uri: str, number: int, fields: Mapping[str, str], query: Query) -> Row:
    """Return a row. Raises InputError for a value that is not one of its column."""
    from s2s_ray import storage
    from s2s_ray.data.sources.manifest import UNKNOWN
    from s2s_ray.errors import ManifestError
    from s2s_ray.geo.prior import check_position
    from s2s_ray.geo.query import Query as Parsed

    given = {name: text for name, text in fields.items() if text.lower() not in UNKNOWN}
    image = given.get("street")
    if image is None:
        raise ManifestError(f"street={fields['street']!r}: every row needs an image file")
    said = {name: given[name].lower() for name in _SAID if name in given}
    parsed = Parsed.parse(said)
    known = replace(query, **{name: getattr(parsed, name) for name in said})
    true = None
    if "latitude" in given or "longitude" in given:
        try:
            true = float(given.get("latitude", "")), float(given.get("longitude", ""))
        except ValueError:
            raise ManifestError(
                f"latitude={fields.get('latitude', '')!r}, longitude={fields.get('longitude', '')!r}: expected both in "
                "degrees, or neither"
            ) from None
        check_position(*true)
    rooted = "://" in image or image.startswith("/")
    path = image if rooted else storage.join(storage.parent(storage.absolute(uri)), image)
    return Row(number, given.get("id"), path, known, given.get("place"), true)

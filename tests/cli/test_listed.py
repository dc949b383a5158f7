"""`s2s localize --manifest`: one answer for each picture or place, and the reason for each row without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from s2s_ray import cli
from s2s_ray.cli.engine import Remote, Search
from s2s_ray.cli.listed import Fault, answers, read_rows
from s2s_ray.client import ServedLocation
from s2s_ray.errors import ManifestError, OptionError, ServiceError, ViewError
from s2s_ray.geo.query import Query
from s2s_ray.service.localizations import OneLocalization
from tests.cli.test_wrong_input import INDEX, MODEL

EXAMPLE: dict[str, Any] = OneLocalization.model_config["json_schema_extra"]["examples"][0]  # type: ignore[index, assignment]


class FakeEngine:
    """An engine that records what it is asked, and refuses some pictures."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[tuple[list[str], list[Query], Search]] = []
        self.error = error

    def locate(self, images: list[str], queries: list[Query], search: Search) -> list[ServedLocation]:
        self.asked.append((images, queries, search))
        if self.error is not None and images[0].endswith("b.png"):
            raise self.error
        one = ServedLocation.parse(EXAMPLE)
        return [one._replace(queries=one.queries * len(images))]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with three panoramas whose ends meet and a file that is no image."""
    for name in "abc":
        Image.fromarray(np.full((40, 120, 3), 90, np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "text.png").write_text("text")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, *lines: str) -> str:
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return "pairs.csv"


def test_rows_say_what_is_known_and_options_the_rest(folder: Path) -> None:
    uri = write(
        folder,
        "street,heading,fov,projection,latitude,longitude,place,id",
        "a.png,30,,,50,7,,x",
        "/b.png,UNKNOWN,70,rectilinear,,,north,",
        "s3://bucket/c.png,,NaN,,,,north,",
        ",,,,,,,",
        "d.png,north,,,,,,",
        "e.png,,,,91,7,,",
        "f.png,,,,50,,,",
    )
    rows, faults = read_rows(uri, Query(10, "auto", pitch=3))
    assert [row.image for row in rows] == [str(folder / "a.png"), "/b.png", "s3://bucket/c.png"]
    assert [row.query for row in rows] == [
        Query(30, "auto", pitch=3), Query("unknown", 70, "rectilinear", pitch=3), Query(10, "auto", pitch=3),
    ]  # fmt: skip
    assert [(row.id, row.place, row.true) for row in rows] == [
        ("x", None, (50, 7)), (None, "north", None), (None, "north", None),
    ]  # fmt: skip
    assert [fault.number for fault in faults] == [4, 5, 6, 7]
    for fault, words in zip(faults, ("street=''", "heading='north'", "latitude 91", "longitude=''"), strict=True):
        assert words in fault.reason
    with pytest.raises(ManifestError, match="column street is missing"):
        read_rows(write(folder, "id", "a"), Query())


def test_pictures_of_a_place_make_one_fix(folder: Path) -> None:
    uri = write(
        folder,
        "street,place,heading,latitude,longitude,id",
        "a.png,north,0,,,one",
        "b.png,,,,,two",
        "nothing.png,north,,,,three",
        "c.png,north,90,50,7,four",
        "text.png,,,,,five",
    )
    engine = FakeEngine()
    found = list(answers(engine, read_rows(uri, Query())[0], Search(k=3), 1))  # type: ignore[arg-type]
    lines = [json.loads(one) for one in found if isinstance(one, str)]
    assert [(line["rows"], line["ids"], line.get("place")) for line in lines] == [
        ([1, 4], ["one", "four"], "north"), ([2], ["two"], None),
    ]  # fmt: skip
    assert [image["name"] for image in lines[0]["images"]] == [str(folder / "a.png"), str(folder / "c.png")]
    assert (lines[1]["image"], lines[1]["fix"]) == (str(folder / "b.png"), EXAMPLE["fix"])
    assert [(fault.number, fault.reason.rsplit("/", 1)[-1][:12]) for fault in found if isinstance(fault, Fault)] == [
        (3, "nothing.png "), (5, "text.png is "),
    ]  # fmt: skip
    assert [(queries, search) for _, queries, search in engine.asked] == [
        ([Query(0), Query(90)], Search(3, true=(50, 7), together=True)), ([Query()], Search(3)),
    ]  # fmt: skip


@pytest.mark.parametrize("error", [ViewError("fov is missing"), ServiceError("fov is missing", 422)])
def test_a_refused_picture_does_not_stop_the_others(folder: Path, error: Exception) -> None:
    rows, _ = read_rows(write(folder, "street", "a.png", "b.png", "c.png"), Query())
    found = list(answers(FakeEngine(error), rows, Search(), 1))  # type: ignore[arg-type]
    assert [isinstance(one, str) for one in found] == [True, False, True]
    assert str(found[1]) == "row 2: fov is missing"


@pytest.mark.parametrize("error", [OptionError("no --index"), ServiceError("no response"), ServiceError("busy", 503)])
def test_a_fault_of_the_model_stops_it(folder: Path, error: Exception) -> None:
    rows, _ = read_rows(write(folder, "street", "a.png", "b.png", "c.png"), Query())
    found = answers(FakeEngine(error), rows, Search(), 1)  # type: ignore[arg-type]
    assert isinstance(next(found), str)
    with pytest.raises(type(error)):
        next(found)


def test_a_service_takes_one_query_for_a_place() -> None:
    engine = Remote("http://localhost:1", None)
    with pytest.raises(ViewError, match=r"a\.png, b\.png: one request to a service says the same"):
        engine.locate(["a.png", "b.png"], [Query(0), Query(90)], Search(together=True))


def test_a_manifest_is_localised_by_a_checkpoint(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = write(folder, "street,place,heading", "a.png,p,0", "b.png,p,90", "nothing.png,,", "c.png,,")
    with pytest.raises(SystemExit) as ended:
        cli.main(["localize", "--manifest", uri, *MODEL, *INDEX, "-k", "2"])
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["rows"], len(line["matches"])) for line in lines] == [([1, 2], 2), ([4], 2)]
    assert "row 3: " in err
    assert "nothing.png does not exist" in err
    assert ended.value.code == 1
    for arguments in (["--manifest", uri, "a.png"], [], ["--manifest", uri, "--together"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(["localize", *arguments, *MODEL, *INDEX])
        assert ended.value.code == 2

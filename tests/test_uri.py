"""Places as text: their parts, what is below and above them, and their absolute form."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from s2s_ray import storage
from s2s_ray.errors import InputError
from s2s_ray.uri import Uri


@pytest.mark.parametrize(
    ("uri", "parent", "name", "below"),
    [
        ("a", ".", "a", "a/x"),
        ("a/b/", "a", "b", "a/b/x"),
        ("/", "/", "", "/x"),
        ("/a", "/", "a", "/a/x"),
        ("runs #1 ü?x/b", "runs #1 ü?x", "b", "runs #1 ü?x/b/x"),
        ("s3://bucket", "s3://bucket", "bucket", "s3://bucket/x"),
        ("s3://bucket/", "s3://bucket/", "bucket", "s3://bucket/x"),
        ("s3://bucket/a", "s3://bucket", "a", "s3://bucket/a/x"),
        ("s3://bucket/a/b", "s3://bucket/a", "b", "s3://bucket/a/b/x"),
        ("file:///", "file:///", "", "file:///x"),
        ("file:///a", "file:///", "a", "file:///a/x"),
        ("file:///a/b", "file:///a", "b", "file:///a/b/x"),
    ],
)
def test_above_and_below(uri: str, parent: str, name: str, below: str) -> None:
    assert Uri(uri).parent == parent == storage.parent(uri)
    assert Uri(uri).name == name == storage.name(uri)
    assert Uri(uri) / "/x/" == below == storage.join(uri, "/x/")
    assert type(Uri(uri).parent) is type(Uri(uri) / "x") is Uri
    assert type(storage.join(uri, "x")) is str


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///a%20b/c", "/a b/c"),
        ("file:///runs #1/a?b", "/runs #1/a?b"),
        ("FILE:///a", "/a"),
        ("file://localhost/a", "/a"),
        ("file:///", "/"),
        ("a%20b", "a%20b"),
    ],
)
def test_a_local_place_has_a_path(uri: str, path: str) -> None:
    assert Uri(uri).is_local
    assert Uri(uri).scheme == "file"
    assert Uri(uri).path == Path(path)


def test_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Uri("a b").absolute == str(tmp_path / "a b") == storage.absolute("a b")
    assert Uri("file:///a").absolute == "/a"
    assert Uri("S3://bucket/a").absolute == "S3://bucket/a"
    assert Uri("S3://bucket/a").scheme == "s3"
    with pytest.raises(InputError, match="expected a path on this machine"):
        _ = Uri("s3://bucket/a").path


@pytest.mark.parametrize("text", ["", " ", "\t", "a\0b", "file://", "file://host/a", "file://localhost", "file://a"])
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        Uri(text)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("s3:/bucket/x", "s3://bucket/x"),
        ("s3:bucket/x", "s3://bucket/x"),
        ("S3:\\\\bucket", "S3://bucket"),
        ("gs:/bucket", "gs://bucket"),
        ("gcs:b", "gcs://b"),
        ("abfs:/c", "abfs://c"),
        ("abfss:/c", "abfss://c"),
        ("hdfs:/host/x", "hdfs://host/x"),
        ("viewfs:/x", "viewfs://x"),
        ("https:/host", "https://host"),
        ("file:/tmp/x", "file:///tmp/x"),
        ("file:x", "file:///x"),
        ("https:/me:word@host/x", "https://***@host/x"),
    ],
)
def test_a_mistyped_scheme_is_no_path(text: str, meant: str) -> None:
    with pytest.raises(InputError) as raised:
        Uri(text)
    assert f"expected {meant!r}, or a path on this machine" in str(raised.value)
    place = Uri(f"./{text}/below")
    assert place.is_local
    assert place.parent.path == Path(text)


@pytest.mark.parametrize("text", [" s3://bucket", "'s3://bucket'", "1s3://bucket", "s_3://bucket", "://bucket"])
def test_a_scheme_after_something_else_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected SCHEME://"):
        Uri(text)


@pytest.mark.parametrize("text", ["s3", "s3x:/a", "a:b", "a/s3:/b", "/file:/b", "runs: second", "s3/x"])
def test_a_colon_may_be_in_a_name(text: str) -> None:
    assert Uri(text).path == Path(text)


@pytest.mark.parametrize(
    "text", ["file:///a%00b", "file:///a%ffb", "a\udcffb", "s3://bucket/a\udcffb", "file:///\udcff"]
)
def test_characters_that_no_file_or_document_holds_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"holds no NUL|is text in UTF-8"):
        Uri(text)


def test_it_is_stored_as_a_string() -> None:
    class Model(BaseModel):
        place: Uri

    model = Model(place=Uri("runs"))
    assert type(model.place) is Uri
    assert Model.model_validate({"place": "runs"}) == model
    assert type(pickle.loads(pickle.dumps(model.place))) is Uri
    assert type(model.model_dump()["place"]) is str
    assert json.loads(model.model_dump_json()) == {"place": "runs"}
    with pytest.raises(ValidationError, match="found nothing"):
        Model.model_validate({"place": ""})
    assert hash(Uri("a")) == hash("a")

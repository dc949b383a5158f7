"""Wrong input ends each verb with one line that names it, and exit code 2."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from s2s_ray import cli
from s2s_ray.index import read_info

WRITTEN = Path(__file__).parents[1] / "fixtures" / "written_by_0.1.0"
RELEASE = WRITTEN / "registry" / "city" / "releases" / "first-2-2236d7b2"
MODEL = ["--checkpoint", str(RELEASE / "checkpoint")]
INDEX = ["--index", str(RELEASE / "index")]
CPU = ["-s", "train.use_gpu=false"]
REGION = ["build-index", *MODEL, *CPU, "--out", "o", "--region"]
RASTER = ["-s", "source.kind=manifest", "-s", "source.geotiff=text.png"]
MANIFEST = ["-s", "source.kind=manifest", "-s", "source.uri=tiles.csv"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with some files that are not what a verb needs."""
    (tmp_path / "bad.yaml").write_text("a: [1, 2\nb: }")
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff\xfe\n")
    (tmp_path / "settings.yaml").write_text("threads: many\n")
    (tmp_path / "tiles.csv").write_text("id,satellite\na,nothing.png\n")
    (tmp_path / "text.png").write_text("text")
    Image.new("RGB", (120, 40)).save(tmp_path / "panorama.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "tile.png")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["config", "-c", "bad.yaml"], "bad.yaml is not YAML"),
        (["config", "-c", "latin.yaml"], "config 'latin.yaml' cannot be read"),
        (["config", "-s", "train.batch=[1"], "--set 'train.batch=[1': the value is not YAML"),
        (["verify", "folder"], "folder holds no complete data set"),
        (["evaluate", "--checkpoint", "folder", "--out", "o"], "folder is neither a checkpoint nor a run"),
        (["evaluate", *MODEL, *CPU, "--out", "o", "-s", "data.uri=folder"], "folder holds no complete data set"),
        (["figures", "--checkpoint", "nothing", "--out", "o"], "nothing is neither a checkpoint nor a run"),
        (["report", "folder"], "folder is neither a checkpoint nor a run"),
        (["build-index", *MODEL, *CPU, "--out", "o", "-s", "data.uri=folder"], "folder holds no complete data set"),
        (["build-index", *MODEL, *CPU, "--out", "o", "--tiles"], "--tiles needs a source of the kind 'manifest'"),
        (
            ["build-index", *MODEL, *CPU, "--out", "o", "--tiles", *MANIFEST],
            "none of the 1 tiles could be read; first errors: a: satellite image is missing",
        ),
        ([*REGION, "1,2,3,4"], "--region 1,2,3,4: give --every METRES"),
        ([*REGION, "1,2,3,4", "--every", "8", "--tiles"], "--region 1,2,3,4, --tiles: give one of them"),
        ([*REGION[:-1], "--every", "8"], "--every 8: goes with --region"),
        ([*REGION[:-1], "--yes"], "--yes: goes with --region"),
        ([*REGION, "1,2,3", "--every", "8"], "region='1,2,3': expected WEST,SOUTH,EAST,NORTH"),
        ([*REGION, "text.png", "--every", "8"], "region=text.png: the file is not JSON"),
        ([*REGION, "folder", "--every", "8"], "folder"),
        ([*REGION, "149,-35,149.1,-34.9", "--every", "0"], "every=0: expected 0.1 to 100,000 metres"),
        ([*REGION, "149,-35,149.001,-34.999", "--every", "nan"], "every=nan: expected metres"),
        ([*REGION, "149,-36,150,-35", "--every", "8"], "--every 8: about 157,285,550 tiles; add --yes"),
        ([*REGION, "149,-36,150,-35", "--every", "8", "--yes"], "157,285,550 points, more than 50,000,000"),
        ([*REGION, "11,48,11.01,48.01", "--every", "8"], "there is no imagery of it in synthetic:0"),
        ([*REGION, "11,48,11.01,48.01", "--every", "8", *MANIFEST], "source.kind=manifest has no imagery"),
        ([*REGION, "11,48,11.01,48.01", "--every", "8", *RASTER], "text.png' cannot be read: "),
        (["localize", "panorama.png", *MODEL], "--checkpoint alone cannot localise"),
        (["localize", "panorama.png", *MODEL, "--index", "folder"], "folder has no manifest.json"),
        (["localize", "panorama.png", *MODEL, *INDEX, "-k", "9"], "k=9: expected 1 to 4"),
        (["localize", "text.png", *MODEL, *INDEX], "the image text.png is not a JPEG"),
        (["localize", "nothing.png", *MODEL, *INDEX], "nothing.png does not exist"),
        (["localize", "tile.png", *MODEL, *INDEX], "tile.png: fov is missing: the picture is 40 x 40 pixels"),
        (["localize", "panorama.png", *MODEL, *INDEX, "--heading", "nan"], "--heading nan: expected -360 to 360"),
        (["localize", "panorama.png", *MODEL, *INDEX, "--heading", "400"], "--heading 400: expected -360 to 360"),
        (
            ["embed", "street", "panorama.png", *MODEL, "--out", "o", "--heading", "-361"],
            "--heading -361: expected -360",
        ),
        (
            ["localize", "panorama.png", *MODEL, *INDEX, "--heading", "north"],
            "--heading north: expected degrees, auto or",
        ),
        (["localize", "panorama.png", *MODEL, *INDEX, "--fov", "0"], "--fov 0: expected above 0"),
        (["localize", "panorama.png", *MODEL, *INDEX, "--fov", "wide"], "--fov wide: expected degrees, auto"),
        (["localize", "panorama.png", *MODEL, *INDEX, "--projection", "fish"], "--projection fish: expected one of"),
        (["localize", "panorama.png", *MODEL, *INDEX, "--pitch", "91"], "--pitch 91: expected -90 to 90"),
        (["localize", "panorama.png", *MODEL, *INDEX, "--roll", "nan"], "--roll nan: expected -180 to 180"),
        (
            ["localize", "panorama.png", *MODEL, *INDEX, "--fov", "200", "--projection", "rectilinear"],
            "a plane shows less than 180 degrees",
        ),
        (["localize", "panorama.png", *MODEL, *INDEX, "--prior", "here"], "--prior here: 'here': expected file or"),
        (
            ["localize", "panorama.png", *MODEL, *INDEX, "--prior", "file", "--near", "1,2,3"],
            "--near and --prior exclude each other",
        ),
        (["localize", "panorama.png", *MODEL, *INDEX, "--json", "--geojson"], "--json and --geojson exclude"),
        (["localize", "panorama.png", *MODEL, *INDEX, "--calibration", "no.json"], "no.json does not exist"),
        (
            ["localize", "panorama.png", "--url", "http://h:1", "--calibration", "c.json"],
            "--calibration: a service has its own",
        ),
        (["embed", "street", "panorama.png", *MODEL, "--out", "o"], "the heading of panorama.png is unknown"),
        (["localize", "panorama.png", *MODEL, *INDEX, "--rows", "0.5,0.2"], "--rows 0.5,0.2: expected two increasing"),
        (["localize", "panorama.png", *MODEL, *INDEX, "--near", "91,0,9"], "--near 91,0,9: latitude 91"),
        (["localize", "panorama.png", *MODEL, *INDEX, "--bbox", "1,2,3,nan"], "--bbox 1,2,3,nan: expected 4 numbers"),
        (["localize", "panorama.png", *MODEL, *INDEX, "--device", "gpu"], "--device gpu: expected cpu, cuda"),
        (["localize", "panorama.png", *MODEL, *INDEX, "--device", "cuda:99"], "--device cuda:99: this machine has no"),
        (["localize", "panorama.png", "--url", "nowhere"], "url='nowhere': expected http://HOST:PORT"),
        (["localize", "panorama.png", "--url", "http://a..b"], "url='http://a..b': expected http://HOST:PORT"),
        (["embed", "street", "panorama.png", *MODEL, "--heading", "0", "--out", "no/d.npy"], "no/d.npy does not exist"),
        (["embed", "satellite", "panorama.png", *MODEL, "--out", "d.npy"], "expected a square north-up tile"),
        (["synthesize", "tile.png", *MODEL, "--out", "text.png"], "text.png/tile.png: "),
        (["token", "a b"], "NAME 'a b': expected 1 to 64 letters"),
        (["status", "nothing"], "nothing does not exist"),
        (["status", "--address", "nowhere"], "no response from nowhere"),
        (["exporter", ".", "--host", "192.0.2.1"], "--host 192.0.2.1 --port 9105: cannot listen there"),
        (["exporter", ".", "--host", "a..b"], "--host a..b --port 9105: cannot listen there"),
        (["exporter", ".", "--every-s", "inf"], "--every-s inf: expected seconds, from 1 to 604800"),
        (["exporter", ".", "--every-s", "nan"], "--every-s nan: expected seconds"),
        (["exporter", ".", "--every-s", "1e300"], "--every-s 1e+300: expected seconds"),
        (["exporter", ".", "--every-s", "0"], "--every-s 0: expected seconds"),
        (["serve"], "give --registry and --name"),
        (["serve", "--settings", "bad.yaml"], "--settings bad.yaml is not YAML"),
        (["serve", "--settings", "list.yaml"], "--settings list.yaml holds list, expected a mapping"),
        (["serve", "--settings", "nothing.yaml"], "--settings nothing.yaml: No such file"),
        (["serve", "--settings", "settings.yaml", "--registry", "r", "--name", "n"], "threads='many': "),
        (["checkpoint", "import", "text.png", "--out", "o"], "text.png is not a checkpoint of plain tensors"),
        (["checkpoint", "import", "text.png", "--out", "o", "--trained-on", "x"], "--trained-on x: expected cvusa"),
        (["checkpoint", "verify", MODEL[1], "--data", "folder"], "folder holds no complete data set"),
        (["checkpoint", "verify", MODEL[1], "--data", "folder", "--tolerance", "nan"], "--tolerance nan: expected"),
        (["checkpoint", "promote", "x", "--registry", "folder", "--name", "n"], "registry folder has no releases"),
        (["checkpoint", "list", "--registry", "folder", "--name", "a/b"], "name 'a/b': expected letters"),
    ],
    ids=lambda value: " ".join(Path(word).name for word in value) if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("folder")
def test_wrong_input_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = [line for line in printed.err.splitlines() if not line.startswith("index: ")]  # progress
    assert len(lines) == 1
    assert lines[0].startswith("s2s: ")
    assert words in lines[0]


PLACES = [
    "",
    "nothing",
    "file",
    "loop",
    "file/below",
    "a\0b",
    "a\nb",
    "[/x]",
    "x" * 5000,
    "\udcff",
    "s3://",
    "gs://",
    "http://[",
]
"""Texts where a verb expects a path, a URI or a name."""
READ = [
    ["config", "-c", "{}"],
    ["verify", "{}"],
    ["evaluate", "--checkpoint", "{}", "--out", "o"],
    ["report", "{}"],
    ["build-index", *MODEL, *CPU, "--out", "o", "--tiles", "-s", "source.kind=manifest", "-s", "source.uri={}"],
    [*REGION, "{}", "--every", "8"],
    ["build-index", *MODEL, *CPU, "--out", "o", "--extends", "{}", "-s", f"data.uri={WRITTEN}/data"],
    ["localize", "{}", *MODEL, *INDEX],
    ["localize", "panorama.png", *MODEL, "--index", "{}"],
    ["localize", "panorama.png", "--url", "{}"],
    ["exporter", "{}", "--port", "9"],
    ["status", "{}"],
    ["serve", "--settings", "{}"],
    ["checkpoint", "import", "{}", "--out", "o"],
    ["checkpoint", "publish", *MODEL, "--index", "{}", "--registry", "r", "--name", "n"],
    ["checkpoint", "publish", *MODEL, *INDEX, "--registry", "r", "--name", "n", "--calibration", "{}"],
    ["checkpoint", "calibrate", *MODEL, "--out", "o", "--data", "{}"],
    ["checkpoint", "promote", "{}", "--registry", f"{WRITTEN}/registry", "--name", "city"],
    ["checkpoint", "rollback", "--registry", "{}", "--name", "city"],
    ["checkpoint", "list", "--registry", "{}", "--name", "city"],
    ["checkpoint", "list", "--registry", "folder", "--name", "{}"],
    ["localize", "panorama.png", *MODEL, *INDEX, "--near", "{}"],
    ["localize", "panorama.png", *MODEL, *INDEX, "--true", "{}"],
    ["localize", "panorama.png", *MODEL, *INDEX, "--rows", "{}"],
    ["localize", "panorama.png", *MODEL, *INDEX, "--heading", "{}"],
    ["localize", "--manifest", "{}", *MODEL, *INDEX],
    ["localize", "panorama.png", *MODEL, *INDEX, "--calibration", "{}"],
    ["localize", "panorama.png", *MODEL, *INDEX, "--device", "{}"],
    ["embed", "satellite", "tile.png", *MODEL, "--out", "d.npy", "--layout", "{}"],
    ["config", "-s", "train.epochs={}"],
]
"""Verbs that read something, with the place of the text."""


@pytest.mark.slow
@pytest.mark.parametrize("verb", READ, ids=" ".join)
def test_any_text_where_something_is_read_is_one_line(
    folder: Path, verb: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "file").write_text("x")
    (folder / "loop").symlink_to("loop")
    for text in PLACES:
        with pytest.raises(SystemExit, match="2"):
            cli.main([word.replace("{}", text) for word in verb])
        printed = capsys.readouterr()
        assert printed.out == ""
        lines = [line for line in printed.err.splitlines() if not line.startswith("index: ")]  # progress
        assert len(lines) == 1, (text, printed.err)
        assert lines[0].startswith("s2s: ")
        assert lines[0].isprintable()


@pytest.mark.parametrize(
    "out", ["", "folder", "file/below", "a\0b", "loop", "no/d.npy", "x" * 5000, "s3://", "gs://", "ftp://host/x"]
)
@pytest.mark.parametrize("verb", [["embed", "satellite", "tile.png"], ["synthesize", "tile.png"]], ids=" ".join)
def test_an_output_that_cannot_be_written_is_one_line(
    folder: Path, verb: list[str], out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "file").write_text("x")
    (folder / "loop").symlink_to("loop")
    if verb[0] == "synthesize" and out in ("folder", "no/d.npy"):
        return  # it makes folders
    with pytest.raises(SystemExit, match="2"):
        cli.main([*verb, *MODEL, "--out", out])
    printed = capsys.readouterr()
    assert printed.out == ""
    [line] = printed.err.splitlines()
    assert line.startswith("s2s: ")
    assert not list(folder.rglob("*:*"))  # no folder that is named like a scheme


@pytest.mark.usefixtures("folder")
def test_without_k_a_small_index_gives_all_its_tiles(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["localize", "panorama.png", *MODEL, *INDEX])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-4:]] == ["1", "2", "3", "4"]
    assert "no calibration" in lines[1]


def test_verbs_use_the_configuration_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither -c nor -s are needed; both are respected."""
    run = shutil.copytree(WRITTEN / "runs" / "first", tmp_path / "first")
    tree = yaml.safe_load((run / "config.yaml").read_text())
    tree["data"]["uri"] = str(WRITTEN / "data")
    (run / "config.yaml").write_text(yaml.safe_dump(tree))
    index = ["build-index", "--checkpoint", str(run), "--out", str(tmp_path / "index")]
    for changes, split in (([], "test"), (["-s", "evaluation.split=val"], "val")):
        with pytest.raises(SystemExit, match="0"):
            cli.main([*index, *changes])
        assert (read_info(index[-1]).dataset, read_info(index[-1]).split) == (str(WRITTEN / "data"), split)
    (checkpoint,) = (run / "checkpoints").iterdir()
    index[2] = str(checkpoint)
    with pytest.raises(SystemExit, match="0"):
        cli.main([*index, "-s", "evaluation.split=test"])
    capsys.readouterr()
    for verb in (index, ["evaluate", *index[1:]], ["figures", *index[1:]]):
        with pytest.raises(SystemExit, match="2"):
            cli.main([*verb, "-c", "tiny", "-s", "data.uri=nowhere"])
        assert "nowhere holds no complete data set" in capsys.readouterr().err

"""Secrets: masked in everything that is shown, refused in what is stored, read from the environment."""

from __future__ import annotations

import json
import logging
import pickle
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from s2s_ray import registry, storage
from s2s_ray.cli import main, run
from s2s_ray.config import Config, TuneConfig, load_config, load_stored, with_overrides, with_values
from s2s_ray.data.entries import COLUMNS
from s2s_ray.data.prepare import prepare
from s2s_ray.errors import ConfigError, InputError, RequestError, S2SError, ServiceError, StorageError
from s2s_ray.index import ReferenceIndex, vectors
from s2s_ray.index.info import INFO_FILE, IndexInfo
from s2s_ray.model.checkpoint import load_checkpoint, save_model
from s2s_ray.model.s2s import S2S
from s2s_ray.references import resolved
from s2s_ray.runtime.cluster import log_plainly
from s2s_ray.secrets import holds_secret, masked
from s2s_ray.service.rollout.served_release import resolve
from s2s_ray.service.settings import ServeArgs
from s2s_ray.sweep.study import read_records
from s2s_ray.training.run import config_of, load_run_config, save_config
from tests.support.models import tiny_model

PLANTED = "pl4nted-pw"
ADDRESSES = [
    f"postgresql://u:{PLANTED}@h/db",
    f"postgresql+psycopg2://u:{PLANTED}/x@h:5432/db",
    f"mysql://:{PLANTED}@h/db",
    f"postgresql://h/db?password={PLANTED}",
    f"postgresql://u:a@{PLANTED}@h/db",
    f"s3://KEY:{PLANTED}@bucket/runs",
    f"s3://{PLANTED}@bucket/runs",
    f"s3://bucket/runs?X-Amz-Signature={PLANTED}&a=b",
    f"s3://bucket/runs?access_key={PLANTED}",
    f"abfs://:{PLANTED}@account/runs",
    f"https://user:{PLANTED}@host/runs",
    f"https://{PLANTED}@host/runs",
    f"https://host/a.png?sig={PLANTED}",
    f"https://host/{{z}}/{{x}}/{{y}}.png?apiKey={PLANTED}",
    f"https://host/a.png?a=b&subscription-key={PLANTED}",
    f"HTTPS://host/a.png?AWSAccessKeyId={PLANTED}",
    f"gs://bucket/x?GoogleAccessId=a&Signature={PLANTED}",
]
HARMLESS = [
    "postgresql://u@h/db", "postgresql://h:5432/db", "postgresql://u:${env:PASSWORD}@h/db", "sqlite:////tmp/a:b@c.db",
    "s3://bucket/a:b@c", "abfs://container@account/x", "http://h:80/a@b", "runs #1 ü?x", "https://host/a.png?page=3",
    "https://host/a.png?sig=${env:SIGNATURE}", "gs://bucket/monkey=1", "https://host/{z}/{x}/{y}.png", "a@b:c",
]  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_with_a_secret_is_refused_and_not_repeated(address: str, tmp_path: Path) -> None:
    assert holds_secret(address)
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({"train": {"storage": address}}))
    source = ["source.kind=manifest", "source.uri=a.csv", "source.zoom=3", "source.tile_m=8"]
    for attempt in (
        lambda: load_config("tiny", [f"tune.study={address}"]),
        lambda: load_config("tiny", [f"data.uri={address}"]),
        lambda: load_config("tiny", [*source, f"source.tiles={address}"]),
        lambda: load_config("tiny", [f"tune.sampler_options={{a: [{json.dumps(address)}]}}"]),
        lambda: load_config("tiny", [f"train.stroage={address}"]),
        lambda: load_config("tiny", [f"train.batch={json.dumps(address)}"]),
        lambda: load_config(path),
        lambda: Config.from_tree({"tune": {"study": address}}),
        lambda: with_overrides(load_config("tiny"), [f"tune.study={address}"]),
        lambda: with_values(load_config("tiny"), {"tune.study": address}),
        lambda: TuneConfig(study=address),
        lambda: ServeArgs.parse({"registry": address, "name": "city"}),
        lambda: storage.read_bytes(address),
        lambda: storage.write_bytes(address, b""),
    ):
        with pytest.raises((ConfigError, ValidationError)) as refused:
            attempt()
        assert PLANTED not in str(refused.value)
    with pytest.raises(ConfigError, match=r"^tune\.study='.*\*\*\*.*': holds a password or key.*write \$\{env:NAME\}"):
        load_config("tiny", [f"tune.study={address}"])


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_is_masked_wherever_it_is_shown(address: str, caplog: pytest.LogCaptureFixture) -> None:
    text = f"'{address}': refused ({address}); see {address}"
    assert PLANTED not in masked(text)
    for error in (S2SError(text), StorageError(text), InputError(text), RequestError(400, text), ServiceError(text)):
        assert PLANTED not in str(error)
        assert PLANTED not in str(pickle.loads(pickle.dumps(error)))
    log_plainly()
    [handler] = logging.getLogger("s2s_ray").handlers
    record = logging.LogRecord("s2s_ray.a", logging.ERROR, "", 0, "at %s", (address,), None)
    try:
        raise OSError(text)
    except OSError as error:
        record.exc_info = (OSError, error, error.__traceback__)
    shown = handler.format(record)
    assert "Traceback" in shown
    assert PLANTED not in shown


@pytest.mark.parametrize("address", HARMLESS)
def test_other_addresses_are_left_alone(address: str) -> None:
    assert masked(address) == address
    assert not holds_secret(address)


@pytest.mark.parametrize("part", ["a", "a.", "-", "x://a:", "http://", "?a=", "password=", "a_", "@", "x://a:b@"])
def test_long_texts_are_masked_in_linear_time(part: str) -> None:
    text = part * (40_000 // len(part)) + "://@"
    started = time.process_time()
    masked(text)
    assert time.process_time() - started < 1.0  # quadratic time was over ten seconds


def test_values_of_secret_variables_are_masked_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MY_TOKEN"):
        with monkeypatch.context() as patch:
            patch.setenv(name, PLANTED)
            assert str(StorageError(f"the key <{PLANTED}> is refused")) == "the key <***> is refused"
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("SOME_TOKEN", "word")
    assert masked("a token is a word") == "a token is a word"


def test_a_database_names_a_password_in_its_own_way() -> None:
    assert (
        masked(f"connection failed: user=u password={PLANTED} host=h")
        == "connection failed: user=u password=*** host=h"
    )


def test_a_traceback_of_a_bug_and_of_an_error_is_masked(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(kind: type[Exception]) -> None:
        raise kind(f"cannot reach {ADDRESSES[0]}") from OSError(ADDRESSES[5])

    before = sys.excepthook
    try:
        with pytest.raises(SystemExit):
            run("s2s", lambda: fail(StorageError), {"debug": True})
        with pytest.raises(RuntimeError) as bug:
            run("s2s", lambda: fail(RuntimeError))
        sys.excepthook(bug.type, bug.value, bug.tb)
    finally:
        sys.excepthook = before
    shown = capsys.readouterr().err
    assert shown.count("Traceback") == 2
    assert "postgresql://u:***@h/db" in shown
    assert PLANTED not in shown


def test_a_reference_is_stored_and_its_value_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = tmp_path / PLANTED
    config = load_config("tiny", ["tune.study=${env:S2S_STUDY}"])
    assert load_stored(config.to_yaml().encode(), "config.yaml") == config
    assert "${env:S2S_STUDY}" in config.to_yaml()
    monkeypatch.delenv("S2S_STUDY", raising=False)
    with pytest.raises(ConfigError, match="environment variable S2S_STUDY is not set in this process"):
        read_records(config.tune, str(tmp_path / "sweep"))
    monkeypatch.setenv("S2S_STUDY", f"sqlite:///{database}")
    assert read_records(config.tune, str(tmp_path / "sweep")) == []
    database.write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigError, match=r"tune\.study='\$\{env:S2S_STUDY\}' cannot be opened"):
        read_records(config.tune, str(tmp_path / "sweep"))
    monkeypatch.setenv("S2S_STUDY", f"nothing://u:{PLANTED}@h/db")
    with pytest.raises(ConfigError, match=r"tune\.study='\$\{env:S2S_STUDY\}' cannot be opened") as refused:
        read_records(config.tune, str(tmp_path / "sweep"))
    assert PLANTED not in str(refused.value)


def test_the_value_of_a_reference_is_masked_whatever_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S2S_DATABASE_LOGIN", "p%40ss")
    assert resolved("postgresql://u:${env:S2S_DATABASE_LOGIN}@h/db") == "postgresql://u:p%40ss@h/db"
    assert masked("FATAL: p@ss, which is p%40ss") == "FATAL: ***, which is ***"


@pytest.mark.parametrize("key", ["train.storage", "data.cache_dir", "tune.registry"])
def test_a_path_is_no_place_for_a_reference(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}=.*stands for a password or key in a URI, not in a path"):
        load_config("tiny", [f"{key}=${{env:HOME}}/runs"])
    assert load_config("tiny", [f"{key}=abfs://:${{env:KEY}}@account/x"])


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A run whose configuration holds a password, as earlier versions stored it."""
    run = tmp_path / "runs" / "old"
    tree = load_config("tiny", [f"train.storage={tmp_path / 'runs'}", "train.name=old"]).model_dump(mode="json")
    tree["tune"]["study"] = ADDRESSES[0]
    tree["data"]["uri"] = ADDRESSES[5]
    tree["model"]["street_weights"] = "random"
    storage.write_bytes(f"{run}/config.yaml", json.dumps(tree).encode())
    model = S2S(tiny_model())
    meta = {"run": "old", "step": 4, "config": tree, "dataset": {"uri": ADDRESSES[5], "digest": "d"}}
    save_model(model, meta, tmp_path / "built")
    storage.publish(tmp_path / "built", f"{run}/checkpoints/00000004")
    return run


def test_an_old_run_with_a_secret_can_be_read_and_not_continued(old: Path, tmp_path: Path) -> None:
    config = load_run_config(str(old))
    assert config.tune.study == ADDRESSES[0]
    assert config_of(str(old)) == config
    assert with_overrides(config, ["evaluation.batch=3", "data.uri=data"]).evaluation.batch == 3
    assert load_checkpoint(f"{old}/checkpoints/00000004")
    before = (old / "config.yaml").read_bytes()
    for attempt in (lambda: save_config(config), lambda: prepare(config), lambda: load_config(old / "config.yaml")):
        with pytest.raises(ConfigError, match=r"tune\.study='postgresql://u:\*\*\*@h/db': holds a password") as refused:
            attempt()
        assert PLANTED not in str(refused.value)
    assert (old / "config.yaml").read_bytes() == before
    repaired = with_overrides(config, ["tune.study=postgresql://u:${env:PASSWORD}@h/db", "data.uri=s3://bucket/runs"])
    save_config(repaired)
    assert PLANTED not in (old / "config.yaml").read_text()


def test_a_release_of_an_old_checkpoint_has_no_secret(old: Path, tmp_path: Path) -> None:
    place = str(tmp_path / "registry")
    released = registry.publish(place, "city", f"{old}/checkpoints/00000004")
    assert registry.publish(place, "city", f"{old}/checkpoints/00000004") == released
    files = [path for path in Path(place).rglob("*") if path.is_file()]
    assert len(files) >= 4
    assert [path for path in files if PLANTED.encode() in path.read_bytes()] == []
    assert load_checkpoint(released.checkpoint_uri)
    assert config_of(released.checkpoint_uri) is not None


@pytest.fixture
def old_index(old: Path, tmp_path: Path) -> str:
    """An index whose data set's address holds a password, as earlier versions stored it."""
    descriptors = np.eye(2, S2S(tiny_model()).config.descriptor_size, dtype=np.float32)
    rows = {name: [None, None] for name in COLUMNS.names} | {"id": ["a", "b"]}
    info = IndexInfo(
        dimension=descriptors.shape[1],
        count=2,
        checkpoint=registry.fingerprint(f"{old}/checkpoints/00000004"),
        dataset=ADDRESSES[5],
        dataset_digest="d",
    )
    folder = tmp_path / "built-index"
    folder.mkdir()
    vectors.build(descriptors).save(folder)
    pq.write_table(pa.table(rows, schema=COLUMNS), folder / "entries.parquet")
    info.write(str(folder / INFO_FILE))
    storage.publish(folder, str(tmp_path / "index"))
    return str(tmp_path / "index")


def test_a_release_with_an_old_index_has_no_secret(old: Path, old_index: str, tmp_path: Path) -> None:
    place, checkpoint = str(tmp_path / "registry"), f"{old}/checkpoints/00000004"
    for _ in range(2):
        whole = registry.publish(place, "city", checkpoint, old_index)
    later = registry.publish(place, "town", checkpoint)
    registry.attach_index(place, "town", later.id, old_index)
    files = [path for path in Path(place).rglob("*") if path.is_file()]
    assert [path for path in files if PLANTED.encode() in path.read_bytes()] == []
    assert whole.index_uri is not None
    assert ReferenceIndex.load(whole.index_uri).info.dataset == "s3://***@bucket/runs"


def test_the_service_shows_no_secret_of_an_old_index(old: Path, old_index: str) -> None:
    served = resolve(ServeArgs.parse({"checkpoint": f"{old}/checkpoints/00000004", "index": old_index}))
    assert served.description.index.dataset == "s3://***@bucket/runs"


def test_a_release_that_an_earlier_version_made_of_an_old_index_stays(
    old: Path, old_index: str, tmp_path: Path
) -> None:
    place, checkpoint = str(tmp_path / "registry"), f"{old}/checkpoints/00000004"
    released = registry.publish(place, "city", checkpoint)
    storage.publish(storage.fetch(old_index, tmp_path / "copy"), f"{released.uri}/index")
    again = registry.publish(place, "city", checkpoint, old_index)
    assert again.index_uri == f"{released.uri}/index"
    assert registry.attach_index(place, "city", released.id, old_index) == again


def test_an_index_that_extends_an_old_one_has_no_secret(old_index: str, tmp_path: Path) -> None:
    index = ReferenceIndex.load(old_index)
    assert index.info.dataset == ADDRESSES[5]
    index.with_more(np.zeros((0, index.info.dimension), np.float32), COLUMNS.empty_table()).save(f"{tmp_path}/more")
    assert ReferenceIndex.load(f"{tmp_path}/more").info.dataset == "s3://***@bucket/runs"


def test_the_command_line_shows_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["config", "-s", f"tune.study={ADDRESSES[0]}"],
        ["verify", ADDRESSES[5]],
        ["checkpoint", "list", "--registry", ADDRESSES[9], "--name", "city"],
        ["serve", "--registry", ADDRESSES[5], "--name", "city"],
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        shown = capsys.readouterr()
        assert "***" in shown.err
        assert PLANTED not in shown.err + shown.out


def test_pages_mask_a_configuration() -> None:
    tree = load_config("tiny").model_dump(mode="json")
    tree["tune"]["study"] = ADDRESSES[0]
    assert PLANTED not in masked(Config.from_stored(tree, "config.yaml").to_yaml())

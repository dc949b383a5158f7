"""The folder of trials: what version 0.1.0 wrote is read and continued, and other settings are refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from s2s_ray.ablation.study import AblationOrigin
from s2s_ray.config import Config, with_values
from s2s_ray.data import description
from s2s_ray.errors import AblationError, ConfigError, DamagedError, S2SError, SweepError, UnreachableError
from s2s_ray.storage import conditional
from s2s_ray.sweep.origin import SweepOrigin
from s2s_ray.trials.claim import Origin, claim

WRITTEN = Path(__file__).parents[1] / "fixtures" / "written_by_0.1.0"
KINDS: list[tuple[type[Origin], Path, type[S2SError]]] = [
    (SweepOrigin, WRITTEN / "sweeps" / "night", SweepError),
    (AblationOrigin, WRITTEN / "studies" / "ablation", AblationError),
]


@pytest.fixture(params=KINDS, ids=lambda kind: kind[0].KIND)
def started(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[type[Origin], Path, Config]:
    """A folder that 0.1.0 started, and its configuration."""
    origin, folder, _ = request.param
    root = tmp_path / "root"
    root.mkdir()
    shutil.copy(folder / origin.FILE, root)
    stored = origin.at(str(root))
    monkeypatch.setattr(description, "read_dataset_info", lambda uri: SimpleNamespace(digest=stored.dataset))
    return origin, root, stored.configuration(str(root))


Started = tuple[type[Origin], Path, Config]


def edited(started: Started, **values: Any) -> Path:
    """Change keys of the file."""
    origin, root, _ = started
    tree = yaml.safe_load((root / origin.FILE).read_text())
    (root / origin.FILE).write_text(yaml.safe_dump({**tree, **values}))
    return root


def test_a_path_that_was_stored_as_typed_is_the_same_in_the_same_directory(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin, root, config = started
    shapes = {"street_blocks": [3, 4, 6], "channels": 32, "street_weights": "resnet34.pth"}
    tree = config.model_dump(mode="json")
    edited(started, config={**tree, "model": {**tree["model"], **shapes}})
    now = origin.at(str(root)).configuration(str(root))
    monkeypatch.chdir(tmp_path)
    claim(now.located(), str(root), origin)
    monkeypatch.chdir(root)
    with pytest.raises(S2SError, match=r"was started with model\.street_weights="):
        claim(with_values(now.located(), {"model.street_weights": "/elsewhere/resnet34.pth"}), str(root), origin)


def test_a_folder_of_the_first_version_is_continued(started: Started) -> None:
    origin, root, config = started
    assert origin.at(str(root)).format == 1
    before = (root / origin.FILE).read_bytes()
    claim(config, str(root), origin)
    claim(with_values(config, {"train.workers": 3, "train.log_every_s": 7}), str(root), origin)
    assert (root / origin.FILE).read_bytes() == before


def test_a_new_folder_is_claimed(started: Started) -> None:
    origin, root, config = started
    first = yaml.safe_load((root / origin.FILE).read_text())
    new = root.parent / "new"
    claim(config, str(new), origin)
    tree = yaml.safe_load((new / origin.FILE).read_text())
    nonce = tree.pop("nonce")
    assert tree == {**first, "format": 1, "config": config.model_dump(mode="json")}
    assert claim(config, str(new), origin).nonce == nonce, "the start that was first counts"
    assert claim(config, str(root.parent / "another"), origin).nonce != nonce


def faster(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Do something just before the first conditional write."""
    write, left = conditional.write, [act]

    def after(uri: str, content: bytes, version: str | None) -> object:
        if left:
            left.pop()()
        return write(uri, content, version)

    monkeypatch.setattr(conditional, "write", after)


def test_of_two_starts_with_other_settings_one_is_refused(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    origin, root, config = started
    new = root.parent / "new"
    faster(monkeypatch, lambda: claim(with_values(config, {"loss.alpha": 20.0}), str(new), origin))
    with pytest.raises(origin.ERROR, match=r"was started with loss\.alpha=20\.0, now it is 10\.0"):
        claim(config, str(new), origin)
    assert origin.at(str(new)).config["loss"]["alpha"] == 20.0, "the refused start replaced the other"


def test_of_two_starts_with_the_same_settings_both_go_on(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    origin, root, config = started
    new, first = root.parent / "new", list[Origin]()
    faster(monkeypatch, lambda: first.append(claim(config, str(new), origin)))
    assert claim(config, str(new), origin) == first[0]


@pytest.mark.parametrize("written", [True, False])
def test_a_lost_answer(started: Started, monkeypatch: pytest.MonkeyPatch, written: bool) -> None:
    origin, root, config = started
    write, lost = conditional.write, [True]

    def losing(uri: str, content: bytes, version: str | None) -> None:
        if written or not lost:
            write(uri, content, version)
        if lost:
            lost.pop()
            raise UnreachableError("the answer was lost")

    monkeypatch.setattr(conditional, "write", losing)
    monkeypatch.setattr("s2s_ray.storage.conditional.time.sleep", lambda seconds: None)
    new = str(root.parent / "new")
    assert claim(config, new, origin) == origin.at(new)


@pytest.mark.parametrize(
    ("key", "value"),
    [("augmentation.fov", [70, 360]), ("evaluation.seed", 5), ("evaluation.protocols", ["fov=90"])],
)
def test_other_pairs_and_other_queries_are_other_trials(started: Started, key: str, value: Any) -> None:
    origin, root, config = started
    with pytest.raises(origin.ERROR, match=f"was started with {key}="):
        claim(with_values(config, {key: value}), str(root), origin)
    claim(with_values(config, {"evaluation.batch": 3}), str(root), origin)


def test_other_settings_are_refused(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    origin, root, config = started
    with pytest.raises(origin.ERROR, match=r"was started with loss\.alpha=10\.0, now it is 20\.0: keep it, or choose"):
        claim(with_values(config, {"loss.alpha": 20.0}), str(root), origin)
    monkeypatch.setattr(description, "read_dataset_info", lambda uri: SimpleNamespace(digest="other"))
    with pytest.raises(origin.ERROR, match=r"was started on another data set \(.*\) than data\.uri="):
        claim(config, str(root), origin)


def test_a_folder_with_something_else_is_refused(started: Started) -> None:
    origin, root, config = started
    (root / origin.FILE).rename(root / "notes.txt")
    with pytest.raises(origin.ERROR, match=rf"holds notes\.txt and no {origin.KIND}: choose another"):
        claim(config, str(root), origin)


def test_keys_of_a_newer_version_are_logged(started: Started, caplog: pytest.LogCaptureFixture) -> None:
    origin, root, config = started
    tree = config.model_dump(mode="json")
    edited(started, mood="good", config={**tree, "train": {**tree["train"], "tempo": 3}})
    claim(config, str(root), origin)
    assert "ignored keys that this version does not know: mood" in caplog.text
    assert "train.tempo" in caplog.text


def test_a_newer_format_is_refused(started: Started) -> None:
    root = edited(started, format=2)
    with pytest.raises(started[0].ERROR, match="has format 2, this program reads 1 and earlier: upgrade s2s-ray"):
        claim(started[2], str(root), started[0])


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe", b"- 1", b"dataset: 7\n", b"dataset: x\n"])
def test_a_damaged_file_is_named(started: Started, content: bytes) -> None:
    origin, root, config = started
    (root / origin.FILE).write_bytes(content)
    with pytest.raises(DamagedError, match=origin.FILE):
        claim(config, str(root), origin)


def test_a_damaged_configuration_is_named(started: Started) -> None:
    root = edited(started, config={"train": {"epochs": "many"}})
    with pytest.raises(ConfigError, match=r"train\.epochs='many'"):
        claim(started[2], str(root), started[0])

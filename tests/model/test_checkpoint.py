"""Checkpoints of the model: saving, loading and refusals."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from s2s_ray import S2S, load_checkpoint, storage
from s2s_ray.errors import CheckpointError, DamagedError, StorageError
from s2s_ray.model.checkpoint import save_model
from s2s_ray.model.checkpoint_meta import check_fits, parse_meta, read_meta
from tests.support.models import tiny_model

SMALL = tiny_model(residual_blocks=6)


@pytest.fixture
def model() -> S2S:
    torch.manual_seed(0)
    return S2S(SMALL)


def published(model: S2S, folder: Path, **meta: Any) -> str:
    save_model(model, {"run": "r", "step": 3, **meta}, folder / "local")
    storage.publish(folder / "local", str(folder / "checkpoint"))
    return str(folder / "checkpoint")


def test_a_loaded_model_computes_what_the_saved_one_did(model: S2S, tmp_path: Path) -> None:
    loaded = load_checkpoint(published(model, tmp_path))
    polar = torch.randint(0, 256, (2, 3, 32, 40), dtype=torch.uint8)
    assert loaded.config == SMALL
    assert not loaded.training
    with torch.inference_mode():
        torch.testing.assert_close(loaded.synthesize(polar), model.eval().synthesize(polar), rtol=0, atol=0)
        torch.testing.assert_close(loaded.embed_street(polar), model.embed_street(polar), rtol=0, atol=0)


def test_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        load_checkpoint(tmp_path / "nowhere")


def test_damaged_weights_fail_their_checksum(model: S2S, tmp_path: Path) -> None:
    uri = published(model, tmp_path)
    with (Path(uri) / "model.safetensors").open("r+b") as file:
        file.seek(-5, 2)
        file.write(b"\xff")
    with pytest.raises(StorageError, match=r"model\.safetensors.*checksum"):
        load_checkpoint(uri)


def test_another_format_is_refused(model: S2S, tmp_path: Path) -> None:
    save_model(model, {"step": 0}, tmp_path / "local")
    meta = json.loads((tmp_path / "local" / "meta.json").read_text())
    (tmp_path / "local" / "meta.json").write_text(json.dumps({**meta, "format": 99}))
    storage.publish(tmp_path / "local", str(tmp_path / "checkpoint"))
    with pytest.raises(CheckpointError, match="format 99"):
        load_checkpoint(tmp_path / "checkpoint")


def test_weights_of_another_width_are_refused(model: S2S, tmp_path: Path) -> None:
    save_model(model, {"step": 0}, tmp_path / "local")
    meta = json.loads((tmp_path / "local" / "meta.json").read_text())
    meta["model"]["channels"] = 8
    (tmp_path / "local" / "meta.json").write_text(json.dumps(meta))
    storage.publish(tmp_path / "local", str(tmp_path / "checkpoint"))
    with pytest.raises(CheckpointError, match="do not fit"):
        load_checkpoint(tmp_path / "checkpoint")


def test_check_fits_names_each_difference() -> None:
    other = SMALL.model_copy(update={"height": 64, "masks": 3})
    with pytest.raises(CheckpointError, match=r"model\.height is 64 in the checkpoint, 32 in .*; model\.masks is 3 in"):
        check_fits("somewhere", other, SMALL)
    check_fits("somewhere", SMALL, SMALL)


def test_metadata_is_read_as_it_was_written(model: S2S, tmp_path: Path) -> None:
    meta = {"run": "r", "step": 3, "metrics": {"recall_at_1": 0.5}, "dataset": {"uri": "d", "digest": "0"}}
    uri = published(model, tmp_path, **meta)
    stored = json.loads((Path(uri) / "meta.json").read_text())
    assert read_meta(uri) == stored
    assert stored.items() >= meta.items()
    assert stored["format"] == 1


def test_metadata_of_other_versions(caplog: pytest.LogCaptureFixture) -> None:
    tree = {"model": SMALL.model_dump(mode="json"), "step": 3}
    assert parse_meta(tree, "c")["step"] == 3, "a file without `format` has version 1"
    with caplog.at_level(logging.WARNING):
        assert "colour" not in parse_meta({**tree, "colour": "red"}, "c")
    assert "colour" in caplog.text
    for damaged in ([], {"step": 3}, {**tree, "step": "x"}, {**tree, "format": "1"}):
        with pytest.raises(DamagedError, match=r"c/meta\.json"):
            parse_meta(damaged, "c")

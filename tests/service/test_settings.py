"""The settings of the service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from s2s_ray.errors import ConfigError
from s2s_ray.service.settings import ModelScaling, ServeArgs

TOKEN = {"name": "a", "sha256": "0" * 64}


def test_arguments_from_the_command_line_are_parsed() -> None:
    args = ServeArgs.model_validate({"registry": "r", "name": "n", "threads": "2", "max_upload_mb": "8"})
    assert (args.threads, args.max_upload_mb) == (2, 8.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "give registry=URI and name=NAME, or checkpoint=URI and index=URI"),
        ({"registry": "r"}, "give registry=URI"),
        ({"registry": "r", "name": "n", "checkpoint": "c", "index": "i"}, "give registry=URI"),
        ({"checkpoint": "c", "index": "i", "release": "x"}, "give registry=URI"),
        ({"registry": "r", "name": "n", "calibration": "c"}, "give registry=URI"),
        ({"checkpoint": "c", "calibration": "c"}, "give registry=URI"),
        ({"registry": "r", "name": "n", "devise": "cpu"}, "devise"),
        ({"registry": "r", "name": "n", "street": {"max_batch": 64}}, "max_batch=64"),
        ({"registry": "r", "name": "n", "search": {"min_replicas": 3}}, "min_replicas=3"),
        (
            {"registry": "r", "name": "n", "max_upload_mb": 300},
            r"max_upload_mb=300 is above max_pending_mb=256: expected at most that",
        ),
        ({"registry": "r", "name": "n", "max_pending_mb": 16}, "max_upload_mb=32 is above max_pending_mb=16"),
        ({"registry": "r", "name": "n", "ingress": {"min_replicas": 0}}, "ingress.min_replicas=0"),
        ({"registry": "r", "name": "n", "tokens": [{"name": "a", "sha256": "secret"}]}, "sha256"),
        ({"registry": "r", "name": "n", "tokens": [TOKEN, TOKEN]}, "a different name"),
        ({"checkpoint": "c", "index": "i", "follow": "best"}, "follow=best"),
        ({"registry": "r", "name": "n", "base_map_url": "ftp://a/{z}"}, "base_map_url='ftp://a/{z}': expected a URL"),
        ({"registry": "r", "name": "n", "base_map_url": "https://[::1/{z}"}, "base_map_url='https"),
        ({"registry": "r", "name": "n", "base_map_url": "https://a; img-src *"}, "expected a URL"),
    ],
)
def test_invalid_settings(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ServeArgs.parse(arguments)


def test_the_deployed_configuration_is_valid() -> None:
    path = Path(__file__).resolve().parents[2] / "serve" / "config.yaml"
    schema = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert schema.http_options.host == "127.0.0.1"
    [application] = schema.applications
    assert application.import_path == "s2s_ray.service.app:build"
    args = ServeArgs.model_validate(application.args)
    assert args == ServeArgs(registry="registry", name="default")
    assert args.street == ModelScaling()

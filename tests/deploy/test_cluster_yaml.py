"""The cluster launcher's files: valid by Ray's schema, and closed to strangers."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[2]
FILES = ("cluster.yaml", "deploy/cluster-gcp.yaml")
POLICIES = ("deploy/aws/head-policy.json", "deploy/aws/worker-policy.json")
Tree = dict[str, Any]


@pytest.fixture(params=FILES)
def tree(request: pytest.FixtureRequest) -> Tree:
    loaded: Tree = yaml.safe_load((ROOT / request.param).read_text())
    return loaded


def prepared(tree: Tree) -> Tree:
    """Return the file as Ray completes it; raise what `ray up` would print."""
    whole: Tree = prepare_config(copy.deepcopy(tree))
    validate_config(whole)
    return whole


def test_ray_accepts_it_as_written(tree: Tree) -> None:
    whole = prepared(tree)
    assert whole["available_node_types"].keys() == tree["available_node_types"].keys(), "defaults were mixed in"
    assert not any("pip install" in line and "ray" in line for line in whole["setup_commands"]), "Ray's own default"


MUTATIONS: dict[str, Callable[[Tree], object]] = {
    "an unknown key": lambda tree: tree.update(idle_minutes=5),
    "an unknown key of a node type": lambda tree: tree["available_node_types"]["train"].update(instance="g5"),
    "half a GPU": lambda tree: tree["available_node_types"]["train"]["resources"].update(GPU=0.5),
    "no resources": lambda tree: tree["available_node_types"]["train"].pop("resources"),
    "no node config": lambda tree: tree["available_node_types"]["general"].pop("node_config"),
    "no such head": lambda tree: tree.update(head_node_type="boss"),
    "more at least than at most": lambda tree: tree["available_node_types"]["general"].update(min_workers=99),
    "commands that are one string": lambda tree: tree.update(initialization_commands="apt-get update"),
    "text for a number": lambda tree: tree.update(max_workers="many"),
    "no provider": lambda tree: tree.pop("provider"),
    "no user": lambda tree: tree["auth"].update(ssh_user=None),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_ray_refuses_mistakes(tree: Tree, name: str) -> None:
    MUTATIONS[name](tree)
    with pytest.raises((ValidationError, ValueError, KeyError)):
        prepared(tree)


def test_the_cluster_is_closed(tree: Tree) -> None:
    """Ray starts with a token, the dashboard listens on loopback, and no security group is open to the world."""
    starts = [line for key in ("head", "worker") for line in tree[f"{key}_start_ray_commands"] if "ray start" in line]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in line and "RAY_AUTH_TOKEN_PATH=" in line for line in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "0.0.0.0" not in yaml.safe_dump(prepared(tree))
    for node in tree["available_node_types"].values():
        network = node["node_config"]
        assert network.get("SecurityGroupIds") or (network["networkInterfaces"] and network["tags"]["items"] == ["s2s"])


def test_nodes_access_the_storage_by_role_and_hold_no_secret(tree: Tree) -> None:
    for node in tree["available_node_types"].values():
        assert node["node_config"].get("IamInstanceProfile") or node["node_config"]["serviceAccounts"]
    secret = re.compile(r"AKIA|ASIA|aws_secret|BEGIN [A-Z ]*PRIVATE|ghp_|hf_[A-Za-z]|password", re.IGNORECASE)
    assert not secret.search(yaml.safe_dump(tree))
    assert tree["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"


def test_gpus_train_on_spot_and_preparation_has_separate_nodes(tree: Tree) -> None:
    nodes = tree["available_node_types"]
    for name in ("train", "general"):
        config = nodes[name]["node_config"]
        market = config.get("InstanceMarketOptions", {}).get("MarketType")
        assert market == "spot" or config["scheduling"]["provisioningModel"] == "SPOT"
    assert nodes["head"]["resources"] == {"CPU": 0}
    assert nodes["train"]["resources"]["GPU"] == 1
    assert "preparation" not in nodes["train"]["resources"]
    assert nodes["general"]["resources"]["preparation"] == nodes["general"]["resources"]["CPU"]


def test_nodes_install_the_lock(tree: Tree) -> None:
    assert any(line.startswith("make -C ~/s2s-ray setup") for line in tree["setup_commands"])
    assert "requirements.lock" in (ROOT / "Makefile").read_text()
    assert tree["file_mounts"]["/home/ubuntu/s2s-ray"] == "."


@pytest.mark.parametrize("name", POLICIES)
def test_policies_are_narrow(name: str) -> None:
    statements = json.loads((ROOT / name).read_text())["Statement"]
    for statement in statements:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert not any(action in ("*", "s3:*", "ec2:*", "iam:*") for action in actions)
        if statement["Resource"] == "*":
            assert all(action.startswith(("ec2:", "ssm:Get")) for action in actions)

"""The Kubernetes manifests and the image: the schema, that it finds every mistake, and the commands they run."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from s2s_ray.config import load_config
from s2s_ray.service.settings import ServeArgs

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "kuberay"
FILES = ("raycluster", "rayjob-prepare", "rayjob-train", "rayjob-tune", "rayservice")
FREE = {"labels", "annotations", "nodeSelector", "rayStartParams", "requests", "limits", "resources"}
Tree = dict[str, Any]


@pytest.fixture(scope="module")
def schema() -> Tree:
    loaded: Tree = yaml.safe_load((ROOT / "tests" / "deploy" / "kuberay_schema.yaml").read_text())
    return loaded


@pytest.fixture(params=FILES)
def manifest(request: pytest.FixtureRequest) -> Tree:
    loaded: Tree = yaml.safe_load((FOLDER / f"{request.param}.yaml").read_text())
    return loaded


def validator(schema: Tree, manifest: Tree) -> Draft202012Validator:
    return Draft202012Validator({"$defs": schema["$defs"], **schema["kinds"][manifest["kind"]]})


def cluster(manifest: Tree) -> Tree:
    """Return the Ray cluster that a manifest of any kind describes."""
    spec: Tree = manifest["spec"]
    found: Tree = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    return found


def groups(manifest: Tree) -> list[Tree]:
    """Return the head group and the worker groups."""
    return [cluster(manifest)["headGroupSpec"], *cluster(manifest)["workerGroupSpecs"]]


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every key and list entry, except in maps with free keys."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield (*path, key)
            if key not in FREE or (key == "resources" and set(value) <= {"requests", "limits"}):
                yield from places(value, (*path, key))
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from places(value, (*path, number))


def holder(tree: Tree, path: tuple[Any, ...]) -> Any:
    node: Any = tree
    for part in path[:-1]:
        node = node[part]
    return node


def test_the_schema_names_its_release(schema: Tree) -> None:
    assert re.fullmatch(r"v\d+\.\d+\.\d+", schema["kuberay"])
    for kind in schema["kinds"].values():
        Draft202012Validator.check_schema({"$defs": schema["$defs"], **kind})


def test_manifests_follow_the_schema(schema: Tree, manifest: Tree) -> None:
    faults = [f"{list(fault.path)}: {fault.message}" for fault in validator(schema, manifest).iter_errors(manifest)]
    assert not faults


def test_every_misspelt_key_and_every_wrong_type_is_found(schema: Tree, manifest: Tree) -> None:
    check = validator(schema, manifest)
    missed, tried = [], 0
    for path in places(manifest):
        misspelt, wrong = copy.deepcopy(manifest), copy.deepcopy(manifest)
        misspelt_in = holder(misspelt, path)
        misspelt_in[f"{path[-1]}s"] = misspelt_in.pop(path[-1])
        value = holder(wrong, path)[path[-1]]
        holder(wrong, path)[path[-1]] = [value] if not isinstance(value, list) else {"value": value}
        tried += 2
        missed += [(what, path) for what, tree in (("misspelt", misspelt), ("type", wrong)) if check.is_valid(tree)]
    assert tried > 100
    assert not missed


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("headGroupSpec", "template", "spec", "containers", 0, "resources", "limits", "memory"), "8 GB"),
        (("headGroupSpec", "template", "spec", "containers", 0, "image"), 7),
        (("authOptions", "mode"), "open"),
        (("autoscalerOptions", "version"), 2),
        (("autoscalerOptions", "upscalingMode"), "Fast"),
        (("workerGroupSpecs", 0, "maxReplicas"), "4"),
        (("workerGroupSpecs", 0, "maxReplicas"), -1),
        (("workerGroupSpecs", 0, "resources", "CPU"), 7),
        (("workerGroupSpecs", 0, "template", "spec", "tolerations", 0, "effect"), "NoSchedules"),
        (("workerGroupSpecs", 0, "template", "spec", "containers"), []),
    ],
)
def test_wrong_values_are_found(schema: Tree, manifest: Tree, path: tuple[Any, ...], value: Any) -> None:
    tree = copy.deepcopy(manifest)
    holder(cluster(tree), path)[path[-1]] = value
    assert not validator(schema, tree).is_valid(tree)


@pytest.mark.parametrize("key", ["groupName", "minReplicas", "maxReplicas", "template"])
def test_missing_fields_are_found(schema: Tree, manifest: Tree, key: str) -> None:
    tree = copy.deepcopy(manifest)
    del cluster(tree)["workerGroupSpecs"][0][key]
    assert not validator(schema, tree).is_valid(tree)


def test_versions_agree(manifest: Tree) -> None:
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    assert f"ray=={cluster(manifest)['rayVersion']} \\" in lock
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    images = {group["template"]["spec"]["containers"][0]["image"] for group in groups(manifest)}
    assert [image.rpartition(":")[2] for image in images] == [version[1]]


def test_pods_are_limited_probed_and_closed(manifest: Tree) -> None:
    assert cluster(manifest)["authOptions"]["mode"] == "token"
    for group in groups(manifest):
        pod = group["template"]["spec"]
        [container] = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert all("value" not in variable for variable in container.get("env", [])), "secrets by reference only"
        assert group["template"]["metadata"]["labels"]["app.kubernetes.io/part-of"] == "s2s", (
            "the policy selects by this label"
        )
    assert groups(manifest)[0]["resources"] == {"CPU": "0"}, "no work on the head"


def test_resources_of_ray_match_those_of_the_pods(manifest: Tree) -> None:
    for group in cluster(manifest)["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert group["resources"]["CPU"] == limits["cpu"]
        assert group["resources"].get("GPU") == limits.get("nvidia.com/gpu")
        selector = group["template"]["spec"]["nodeSelector"]
        assert ("nvidia.com/gpu.product" in selector) == ("GPU" in group["resources"])
        assert "GPU" not in group["resources"] or "preparation" not in group["resources"]
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("rayjob-")])
def test_entry_commands_are_valid(name: str) -> None:
    words = shlex.split(yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["spec"]["entrypoint"])
    assert words[0] == "python"
    assert words[1] == f"jobs/{name.removeprefix('rayjob-')}.py"
    assert (ROOT / words[1]).is_file()
    assert words[2:4] == ["-c", "paper"]
    assert set(words[4::2]) == {"-s"}
    config = load_config("paper", words[5::2])
    assert config.train.use_gpu
    assert config.data.uri.startswith("s3://")


def test_the_service_can_be_built_from_its_configuration() -> None:
    from ray.serve.schema import ServeDeploySchema

    manifest = yaml.safe_load((FOLDER / "rayservice.yaml").read_text())
    deploy = ServeDeploySchema.model_validate(yaml.safe_load(manifest["spec"]["serveConfigV2"]))
    [application] = deploy.applications
    args = ServeArgs.model_validate(application.args)
    assert args.device == "cuda"
    on_gpu = [args.street, args.satellite, args.synthesis]
    assert sum(scaling.num_gpus * scaling.min_replicas for scaling in on_gpu) <= 2, "the group starts with two GPUs"
    assert manifest["spec"]["upgradeStrategy"]["type"] == "NewCluster"


def test_accounts_and_policy_belong_to_the_pods(manifest: Tree) -> None:
    account, policy = yaml.safe_load_all((FOLDER / "access.yaml").read_text())
    assert account["kind"] == "ServiceAccount"
    assert {group["template"]["spec"]["serviceAccountName"] for group in groups(manifest)} == {
        account["metadata"]["name"]
    }
    assert policy["spec"]["podSelector"]["matchLabels"] == {"app.kubernetes.io/part-of": "s2s"}
    assert all(rule["from"] for rule in policy["spec"]["ingress"]), "an empty rule admits everyone"


def test_files_that_the_image_copies_exist() -> None:
    lines = (ROOT / "deploy" / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") and "--from" not in line for word in line.split()[1:-1]]
    assert copied
    assert all((ROOT / path).exists() for path in copied)
    ignored = set((ROOT / ".dockerignore").read_text().split())
    assert not ignored & set(copied)
    assert "USER 1000" in lines
    assert any("uv pip sync" in line and "--require-hashes" in line for line in lines)

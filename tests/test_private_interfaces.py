"""Every private, alpha or undocumented interface of other libraries that this project uses, with its signature.

A test that fails after an upgrade names the interface that has moved. `s2s_ray/runtime/ray_internals.py` does without
those of Ray Train meanwhile. Those of Ray Serve are in `tests/service/test_private_interfaces.py`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray.train
from ray.train.torch import TorchTrainer
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule
from ray.tune.search import Searcher

from s2s_ray.runtime import ray_internals
from s2s_ray.runtime.torch_trainer import QuietTorchTrainer

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = {
    "ray._private.runtime_env.packaging.create_package",  # tests: the size of a job's working directory
    "ray._private.state.state",
    "ray._private.worker.get_dashboard_url",
    "ray.autoscaler._private.util.prepare_config",  # tests: cluster.yaml as `ray up` checks it
    "ray.autoscaler._private.util.validate_config",
    "ray.experimental.internal_kv._internal_kv_get",
    "ray.train.v2._internal.callbacks.DatasetsCallback",
    "ray.train.v2._internal.callbacks.placement_group_callback.PlacementGroupCleanerCallback",
    "ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client.TrainAutoscalingCoordinatorClient",
}


def imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def private_imports(path: Path) -> Iterator[str]:
    """Yield what a file imports from private modules of other packages."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith(("s2s_ray", "tests")):
            for alias in node.names:
                parts = [*node.module.split("."), alias.name]
                if node.module != "__future__" and any(part.startswith("_") for part in parts):
                    yield ".".join(parts)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if "._" in alias.name)


def test_this_list_is_complete() -> None:
    found = {
        name
        for folder in ("s2s_ray", "serve", "jobs", "benchmarks", "tests")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != Path(__file__).name
        for name in private_imports(path)
    }
    assert found == IMPORTED


@pytest.mark.parametrize("path", sorted(IMPORTED))
def test_what_is_imported_exists(path: str) -> None:
    assert imported(path) is not None


def test_signatures_of_ray() -> None:
    assert parameters(imported("ray._private.worker.get_dashboard_url")) == []
    package = parameters(imported("ray._private.runtime_env.packaging.create_package"))
    assert {"module_path", "target_path", "include_gitignore"} <= set(package)
    assert parameters(imported("ray.autoscaler._private.util.prepare_config")) == ["config"]
    assert parameters(imported("ray.autoscaler._private.util.validate_config")) == ["config"]


def test_what_the_autoscaler_reports() -> None:
    assert parameters(imported("ray._private.state.state").get_cluster_config) == []
    assert parameters(imported("ray.experimental.internal_kv._internal_kv_get"))[0] == "key"
    assert parameters(imported("ray.autoscaler.v2.utils.is_autoscaler_v2"))[0] == "fetch_from_server"
    group = importlib.import_module("ray.core.generated.autoscaler_pb2").ClusterConfig().node_group_configs.add()
    assert {"name", "resources", "max_count"} <= {field.name for field in group.DESCRIPTOR.fields}
    constants = importlib.import_module("ray._private.ray_constants")
    assert constants.DEBUG_AUTOSCALING_STATUS == "__autoscaling_status"
    labels = importlib.import_module("ray._private.resource_and_label_spec")
    assert "RAY_NODE_GROUP_KEY" in inspect.getsource(labels)


@pytest.mark.parametrize("url", [None, "127.0.0.1:8265"])
def test_ray_trains_callbacks(url: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray._private.worker.get_dashboard_url", lambda: url)
    arguments: dict[str, Any] = {"scaling_config": ray.train.ScalingConfig(num_workers=1)}
    everything = {type(one).__name__ for one in TorchTrainer(print, **arguments)._create_default_callbacks()}  # type: ignore[attr-defined]
    kept = {type(one).__name__ for one in QuietTorchTrainer(print, **arguments)._create_default_callbacks()}
    cleaner = set() if url else {"PlacementGroupCleanerCallback"}
    assert everything - kept == {"DatasetsCallback", *cleaner}
    assert "BackendSetupCallback" in kept


def test_the_coordinators_client_of_ray_train() -> None:
    client = imported(next(path for path in IMPORTED if path.endswith("TrainAutoscalingCoordinatorClient")))
    assert parameters(client) == ["requester_id"]
    assert parameters(client.cancel_resource_request) == ["self"]
    trainer: Any = TorchTrainer(print, scaling_config=ray.train.ScalingConfig(num_workers=1))
    assert isinstance(trainer.train_run_context.run_id, str)
    policy = importlib.import_module("ray.train.v2._internal.execution.scaling_policy.scaling_policy")
    assert 'f"train-{train_run_context.run_id}"' in inspect.getsource(policy), "the requester's id"


def test_the_logger_of_ray_trains_reports() -> None:
    module = importlib.import_module("ray.train.v2._internal.execution.context")
    before = module.logger.level
    try:
        ray_internals.quieten_train_reports()
        assert module.logger.level == logging.WARNING
    finally:
        module.logger.setLevel(before)


def test_ray_tune_copies_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("ray.tune.execution.class_cache")
    monkeypatch.setattr(module, "ENV_VARS_TO_PROPAGATE", set(module.ENV_VARS_TO_PROPAGATE) | {"AWS_SESSION_TOKEN"})
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "planted")
    monkeypatch.setenv("RAY_CHDIR_TO_TRIAL_DIR", "0")

    def copied() -> dict[str, str]:
        trial = module._ActorClassCache().get(type("Trainable", (), {}))
        variables: dict[str, str] = trial._default_options["runtime_env"]["env_vars"]
        return variables

    assert "planted" in copied().values(), "Ray no longer copies them: keep_credentials is not needed"
    ray_internals.keep_credentials()
    assert "planted" not in copied().values()
    assert copied()["RAY_CHDIR_TO_TRIAL_DIR"] == "0"


@pytest.mark.parametrize("name", ["progress", "execution.streaming_executor"])
def test_loggers_of_ray_data(name: str) -> None:
    importlib.import_module(f"ray.data._internal.{name}")


@pytest.mark.parametrize(
    ("module", "variable"),
    [
        ("tune.experimental.output", "RAY_AIR_NEW_OUTPUT"),
        ("tune.utils.callback", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"),
        ("tune.execution.tune_controller", "TUNE_DISABLE_STRICT_METRIC_CHECKING"),
        ("train.v2._internal.constants", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"),
        ("train.v2._internal.constants", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"),
        ("train.v2._internal.constants", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"),
    ],
)
def test_environment_variables_of_ray(module: str, variable: str) -> None:
    """A variable that Ray no longer reads would be ignored silently."""
    assert f'"{variable}"' in inspect.getsource(importlib.import_module(f"ray.{module}"))


def test_developer_interfaces_of_ray_tune() -> None:
    """They are documented for developers of Ray: the searcher, the trials in callbacks, schedulers without a run."""
    assert parameters(Searcher.suggest) == ["self", "trial_id"]
    assert parameters(Searcher.on_trial_result) == ["self", "trial_id", "result"]
    assert parameters(Searcher.on_trial_complete) == ["self", "trial_id", "result", "error"]
    assert parameters(Searcher.save) == ["self", "checkpoint_path"]
    assert parameters(Callback.on_step_begin) == ["self", "iteration", "trials", "info"]
    assert parameters(Callback.on_trial_result) == ["self", "iteration", "trials", "trial", "result", "info"]
    assert parameters(Trial.get_error) == ["self"]
    assert Trial.RUNNING == "RUNNING"
    for scheduler in (AsyncHyperBandScheduler, MedianStoppingRule):
        assert parameters(scheduler.on_trial_add) == ["self", "tune_controller", "trial"]
        assert parameters(scheduler.on_trial_result) == ["self", "tune_controller", "trial", "result"]
        assert parameters(scheduler.on_trial_complete) == ["self", "tune_controller", "trial", "result"]


def test_the_provider_of_simulated_nodes() -> None:
    """`tests/integration/test_cluster.py` names it in the autoscaler's configuration."""
    provider = imported("ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider")
    assert parameters(provider) == ["provider_config", "cluster_name"]

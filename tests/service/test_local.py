"""Errors of the service on a local cluster, over a fake Serve."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from s2s_ray.errors import NotReadyError
from s2s_ray.service import local
from s2s_ray.service.settings import ServeArgs

ARGS = ServeArgs(registry="r", name="n")


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replace Serve, and the application that would be built for it."""
    fake = SimpleNamespace(start=lambda **_: None, run=lambda *_, **__: None, deleted=[])
    fake.delete = fake.deleted.append
    monkeypatch.setattr(local, "serve", fake)
    monkeypatch.setattr(local, "build", lambda _args: None)
    return fake


def raises(text: str) -> Any:
    def function(*_args: Any, **_options: Any) -> None:
        raise RuntimeError(text)

    return function


def test_a_port_in_use_is_one_line(serve: Any) -> None:
    serve.start = raises("ray::ProxyActor.ready()\n  File ...\nRuntimeError: Failed to bind to address '127.0.0.1:80'.")
    with pytest.raises(NotReadyError) as error, local.serving(ARGS, "127.0.0.1", 80):
        pass
    assert str(error.value) == (
        "Serve could not start on 127.0.0.1:80: RuntimeError: Failed to bind to address '127.0.0.1:80'."
    )
    assert serve.deleted == [], "no application was deployed"


@pytest.mark.parametrize("host", ["::1", "[::1]", "::"])
def test_a_service_on_an_ipv6_address_has_a_url(serve: Any, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    asked: list[str] = []
    monkeypatch.setattr(local, "_wait_until_ready", asked.append)
    options: list[dict[str, Any]] = []
    serve.start = lambda **given: options.append(given["http_options"])
    with local.serving(ARGS, host, 8000) as url:
        assert asked == [url] == ["http://[::1]:8000"]
    assert options == [{"host": host.strip("[]"), "port": 8000}], "sockets take no brackets"
    serve.start = raises("RuntimeError: Failed to bind")
    with pytest.raises(NotReadyError, match=r"could not start on \[::1?\]:8000"), local.serving(ARGS, host, 8000):
        pass


def test_a_deployment_that_cannot_start_is_named_with_the_reason(serve: Any) -> None:
    serve.run = raises("Deploying application s2s failed")
    failed = SimpleNamespace(status="DEPLOY_FAILED", message="Traceback ...\nValueError: no driver\n")
    healthy = SimpleNamespace(status="HEALTHY", message="")
    application = SimpleNamespace(deployments={"Synthesis": failed, "Search": healthy})
    serve.status = lambda: SimpleNamespace(applications={"s2s": application})
    with pytest.raises(NotReadyError) as error, local.serving(ARGS, "127.0.0.1", 80):
        pass
    assert str(error.value) == "the service could not start: Synthesis: ValueError: no driver"
    assert serve.deleted == ["s2s"]

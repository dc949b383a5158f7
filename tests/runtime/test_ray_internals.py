"""Without Ray's private interfaces its public behaviour stays."""

from __future__ import annotations

import sys

import pytest

from s2s_ray.runtime.ray_internals import (
    cancel_resource_request,
    keep_credentials,
    quieten_train_reports,
    without_idle_helpers,
)

MOVED = [
    "ray.train.v2._internal.callbacks",
    "ray.tune.execution.class_cache",
    "ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client",
]


@pytest.mark.parametrize("moved", [True, False])
def test_nothing_fails_if_ray_has_moved_them(moved: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if moved:
        for name in MOVED:
            monkeypatch.setitem(sys.modules, name, None)
    else:  # other arguments, or another trainer
        monkeypatch.setattr("ray._private.worker.get_dashboard_url", lambda node: None)
    callbacks = [object(), object()]
    assert without_idle_helpers(callbacks) == callbacks
    cancel_resource_request(object())
    keep_credentials()
    quieten_train_reports()

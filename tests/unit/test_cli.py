"""How the commands end where work is cut short: one line on standard error, and an exit code of its own."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from s2s_ray import cli
from s2s_ray.cluster import StoppedError
from s2s_ray.training import ray_train
from s2s_ray.training.loop import DivergedError
from s2s_ray.tuning import sweep


@pytest.mark.parametrize(
    ("verb", "fault", "code", "line"),
    [
        ("train", DivergedError("step 5: gan is nan"), 1, "s2s: training diverged at step 5: gan is nan\n"),
        ("train", StoppedError("training stopped"), 130, "s2s: training stopped\n"),
        ("tune", StoppedError("sweep stopped"), 130, "s2s: sweep stopped\n"),
    ],
)
def test_work_cut_short(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    fault: Exception,
    code: int,
    line: str,
) -> None:
    def cut_short(config: object) -> None:
        raise fault

    monkeypatch.setattr(cli, "ray_cluster", nullcontext)
    monkeypatch.setattr(ray_train, "train", cut_short)
    monkeypatch.setattr(sweep, "sweep", cut_short)
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "-c", "tiny"])
    assert (ended.value.code, capsys.readouterr().err) == (code, line)


def test_user_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["config", "-s", "train.batch=none"])
    assert capsys.readouterr().err.startswith("s2s: train.batch='none': Input should be a valid integer")

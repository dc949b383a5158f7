"""When hard-negative mining starts, and how much it discards then."""

from __future__ import annotations

import json

import pytest

from s2s_ray.config import MiningConfig
from s2s_ray.training.mining import MiningSchedule


def schedule(**settings: object) -> MiningSchedule:
    return MiningSchedule(MiningConfig.model_validate(settings))


def discards(mining: MiningSchedule, losses: list[float], recalls: list[float | None] | None = None) -> list[float]:
    """The percentage of each epoch of a run with these losses, and of the epoch after it."""
    seen = []
    for epoch, loss in enumerate(losses):
        seen.append(mining.discard(epoch))
        mining.epoch_ended(epoch, loss, None if recalls is None else recalls[epoch])
    return [*seen, mining.discard(len(losses))]


def test_never() -> None:
    assert set(discards(schedule(start="never", patience=1), [1.0] * 50)) == {0.0}


def test_at_a_given_epoch_stage_by_stage() -> None:
    """The released schedule: kept share 1.0 up to epoch 20, then 0.1, 0.05 after 40, 0.01 after 60."""
    mining = schedule(start=21, discard=[90, 95, 99], stage_epochs=20)
    seen = discards(mining, [1.0] * 120)
    assert seen == [0.0] * 21 + [90.0] * 20 + [95.0] * 20 + [99.0] * 60


def test_from_the_first_epoch() -> None:
    assert discards(schedule(start=0, discard=[50], stage_epochs=3), [1.0] * 5) == [50.0] * 6


def test_once_the_loss_has_converged() -> None:
    mining = schedule(patience=3, min_gain=0.1, discard=[50, 80], stage_epochs=2)
    losses = [1.0, 0.8, 0.6, 0.59, 0.58, 0.57, 9.0, 9.0, 9.0]  # 10% below 0.6 would be 0.54
    assert discards(mining, losses) == [0, 0, 0, 0, 0, 0, 50, 50, 80, 80]
    assert mining.started_at == 6


def test_a_gain_restarts_the_patience() -> None:
    mining = schedule(patience=2, min_gain=0.1, discard=[50])
    assert discards(mining, [1.0, 0.95, 0.85, 0.84, 0.7, 0.69, 0.68]) == [0, 0, 0, 0, 0, 0, 0, 50]


def test_small_gains_count_once_they_add_up() -> None:
    """A gain is measured against the best that counted, not against the epoch before."""
    mining = schedule(patience=3, min_gain=0.1, discard=[50])
    assert discards(mining, [1.0, 0.96, 0.92, 0.88, 0.85, 0.82, 0.78]) == [0.0] * 8


def test_the_plateau_of_the_recall() -> None:
    mining = schedule(metric="recall", patience=2, min_gain=0.1, discard=[50])
    recalls = [0.1, 0.2, 0.3, 0.31, 0.32, 0.9]
    assert discards(mining, [1.0, 0.5, 0.25, 0.1, 0.05, 0.01], recalls) == [0, 0, 0, 0, 0, 50, 50]


def test_epochs_without_validation_do_not_use_up_the_patience() -> None:
    mining = schedule(metric="recall", patience=2, min_gain=0.1, discard=[50])
    recalls = [0.3, None, None, None, 0.3, None, 0.3]
    assert discards(mining, [1.0] * 7, recalls) == [0, 0, 0, 0, 0, 0, 0, 50]


def test_the_default_waits_for_five_epochs_without_a_gain_of_one_percent() -> None:
    losses = [1.0, 0.98, 0.979, 0.978, 0.977, 0.976]
    assert discards(schedule(), losses) == [0.0] * 7
    assert discards(schedule(), [*losses, 0.975]) == [0.0] * 7 + [90.0]


@pytest.mark.parametrize("cut", range(9))
def test_a_restored_schedule_continues_unchanged(cut: int) -> None:
    settings = {"patience": 2, "min_gain": 0.1, "discard": [50, 80], "stage_epochs": 2}
    losses = [1.0, 0.8, 0.79, 0.6, 0.59, 0.58, 0.2, 0.1, 0.1]
    expected = discards(schedule(**settings), losses)
    before = schedule(**settings)
    seen = discards(before, losses[:cut])[:-1]
    after = schedule(**settings)
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    for epoch in range(cut, len(losses)):
        seen.append(after.discard(epoch))
        after.epoch_ended(epoch, losses[epoch], None)
    assert [*seen, after.discard(len(losses))] == expected
    assert "config" not in before.state_dict()

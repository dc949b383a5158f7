"""What the chaos tests share: settings of a narrow run, and how undisturbed runs end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from s2s_ray.config import Config
from s2s_ray.data.prepare import prepare
from tests.support.killed_runs import Ending, configured, launch

EPOCHS = 3  # of three steps each


@pytest.fixture(scope="session")
def sharded(narrow: list[str]) -> Config:
    """The narrow run's pairs as a data set of several shards, that go through a cache where they are not local."""
    data = Path(next(setting for setting in narrow if setting.startswith("data.uri=")).partition("=")[2])
    tree = {
        "model": {"height": 32, "width": 40},
        "source": {"kind": "manifest", "uri": str(data.parent / "pairs" / "pairs.csv")},
        "data": {"uri": str(data.parent / "sharded")},
        "prepare": {"parallel": False, "shard_mb": 0.02},
    }
    config = Config.from_tree(tree)
    assert len(prepare(config).split("train").shards) >= 5
    return config


@pytest.fixture(scope="session")
def settings(narrow: list[str], sharded: Config) -> list[str]:
    """A narrow model; mining starts after the first epochs, so that its state matters."""
    mining = ["mining.start=plateau", "mining.patience=1", "mining.min_gain=1e6", "mining.discard=[50.0]"]
    data = [f"data.uri={sharded.data.uri}", "data.window=1"]
    train = [f"train.epochs={EPOCHS}", "train.lr_generator=1e-3"]
    return [*narrow, "model.street_blocks=[1,1,1]", *data, *train, *mining]


@pytest.fixture(scope="session")
def undisturbed(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Ending]:
    """How a run of so many workers and epochs ends that nothing happens to."""
    endings: dict[tuple[int, int], Ending] = {}

    def ending(workers: int, epochs: int = EPOCHS) -> Ending:
        if (workers, epochs) not in endings:
            config = configured(settings, tmp_path_factory.mktemp("undisturbed"), workers=workers, epochs=epochs)
            outcome = launch(config)
            assert outcome.done, outcome.log
            found = endings[workers, epochs] = Ending.of(config)
            discards = [entry["discard"] for entry in found.history]
            assert discards[:3] == [0.0, 0.0, 50.0], "mining was to start in the run"
        return endings[workers, epochs]

    return ending

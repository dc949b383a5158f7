"""Validation under protocols: the same figures for any number of workers, by their names in the history."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from s2s_ray.config import Config, EvaluationConfig
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.prepare import prepare
from s2s_ray.errors import ConfigError, DatasetError, RunError
from s2s_ray.evaluation.protocols import Protocol, measure
from s2s_ray.model.checkpoint_meta import read_meta
from s2s_ray.model.s2s import S2S
from s2s_ray.training import validation
from s2s_ray.training.loop import Trainer
from s2s_ray.training.ready import check_ready
from s2s_ray.training.run import checkpoint_store
from s2s_ray.training.validation import validation_recall
from tests.support.models import tiny_model
from tests.support.pair_folder import PairFolder

PROTOCOLS = ("heading", "fov=120", "offcentre=2")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, pair_folder: type[PairFolder]) -> Config:
    folder = tmp_path_factory.mktemp("validation")
    pairs = pair_folder(folder / "pairs")
    for split, count in (("train", 4), ("val", 5), ("test", 1)):
        for number in range(count):
            pairs.add(f"{split}-{number}", split)
    prepared = pairs.config(folder / "data")
    prepare(prepared)
    model = tiny_model(height=32, width=40).model_dump()
    return Config.from_tree({**prepared.model_dump(), "model": model, "train": {"epochs": 1, "batch": 4}})


def configured(base: Config, **sections: dict[str, Any]) -> Config:
    tree = base.model_dump()
    for name, values in sections.items():
        tree[name] |= values
    return Config.from_tree(tree)


def with_margin(base: Config, monkeypatch: pytest.MonkeyPatch) -> PairDataset:
    """Return the validation split as if its tiles, of noise, had a margin of 4 m."""
    dataset = PairDataset.open(base.data, "val")
    known = {"tile_m": 8.0, "tile_px": 16, "margin_m": 4.0, "keep_tiles": True}
    monkeypatch.setattr(dataset, "info", dataset.info.model_copy(update=known))
    noise = np.random.default_rng(0).integers(0, 256, (len(dataset), 32, 32, 3), np.uint8)
    monkeypatch.setattr(dataset, "wide_tile", lambda index: noise[index])
    return dataset


def by_workers(count: int, call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the results of several workers, which are threads that meet at every gathering."""
    own, barrier = threading.local(), threading.Barrier(count)
    parts: dict[int, Tensor] = {}
    results: dict[int, Any] = {}

    def gather(rows: Tensor, counts: Sequence[int]) -> Tensor:
        assert len(rows) == counts[own.rank]
        parts[own.rank] = rows
        barrier.wait(10)
        together = torch.cat([parts[rank] for rank in range(count)])
        barrier.wait(10)
        return together

    def work(rank: int) -> None:
        own.rank = rank
        results[rank] = call()

    monkeypatch.setattr(validation, "world_size", lambda: count)
    monkeypatch.setattr(validation, "rank", lambda: own.rank)
    monkeypatch.setattr(validation, "gather_rows", gather)
    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[rank] for rank in range(count)]


@pytest.mark.parametrize("workers", [1, 3, 7])
def test_workers_share_the_queries_of_a_protocol(base: Config, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, dataset = S2S(base.model), with_margin(base, monkeypatch)
    config = EvaluationConfig(batch=2, protocols=PROTOCOLS, seed=3, offcentre_step_m=2.0)
    expected = {
        f"{name}.{figure}": value
        for name in PROTOCOLS
        for figure, value in measure(
            model, dataset, dataset.info.geometry, Protocol.parse(name), 3, config=config
        ).items()
        if value is not None
    }
    found = by_workers(
        workers, lambda: validation_recall(copy.deepcopy(model), dataset, config, torch.device("cpu")), monkeypatch
    )
    for metrics in found:
        assert {key: value for key, value in metrics.items() if "." in key} == pytest.approx(expected)
        assert metrics["gallery"] == 5
    assert "heading.own_heading_error_median" in expected
    assert "fov=120.heading_error_median" not in expected


def test_without_protocols_validation_has_the_figures_that_it_had(base: Config) -> None:
    torch.manual_seed(0)
    found = validation_recall(S2S(base.model), PairDataset.open(base.data, "val"), base.evaluation, torch.device("cpu"))
    names = {"recall_at_1", "recall_at_5", "recall_at_10", "recall_at_1_percent", "median_rank", "queries", "gallery"}
    assert set(found) == names


@pytest.mark.slow
def test_a_protocol_chooses_the_best_checkpoint_of_a_run(
    base: Config, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"storage": str(tmp_path), "epochs": 3, "best_metric": "heading.recall_at_1", "keep_checkpoints": 2}
    config = configured(base, train=train, evaluation={"protocols": ["heading"]})
    values = iter((0.2, 0.8, 0.4))
    monkeypatch.setattr(
        "s2s_ray.training.loop.validation_recall",
        lambda *split: {"recall_at_1": 0.5, "gallery": 5, "heading.recall_at_1": next(values)},
    )
    history = Trainer(config).fit()
    assert [entry["heading.recall_at_1"] for entry in history] == [0.2, 0.8, 0.4]
    store = checkpoint_store(config)
    best = store.best()
    assert best is not None
    assert read_meta(store.uri(best))["metrics"]["heading.recall_at_1"] == 0.8
    other = configured(config, train={"best_metric": "recall_at_1"})
    with pytest.raises(
        RunError, match=r"started with train\.best_metric='heading\.recall_at_1', now it is 'recall_at_1'"
    ):
        check_ready(other)


class TestRefused:
    @pytest.mark.parametrize(
        ("sections", "words"),
        [
            (
                {"train": {"best_metric": "heading.recall_at_1"}},
                r"train\.best_metric='heading\.recall_at_1' is a figure",
            ),
            ({"tune": {"metric": "fov=90.recall_at_1"}}, r"evaluation\.protocols=\['heading'\] does not measure it"),
            (
                {"tune": {"metric": "heading.recall_at_2"}},
                r"tune\.metric.*'recall_at_2' is unknown; expected recall_at_1",
            ),
            (
                {"train": {"best_metric": "heading.heading_error_median"}},
                r"train\.best_metric.*counts the queries that are found alone.*choose own_heading_error_median",
            ),
            (
                {"tune": {"metric": "heading.found_metres_median"}},
                r"tune\.metric.*that are found alone.*choose metres_median",
            ),
            (
                {"train": {"best_metric": "fov=90.own_heading_within_10"}, "evaluation": {"protocols": ["fov=90"]}},
                r"the heading is known under the protocol fov=90, so that it never has own_heading_within_10",
            ),
            ({"train": {"best_metric": "metres_median"}}, r"train\.best_metric.*'metres_median' is unknown"),
            ({"evaluation": {"protocols": ["heading", "heading"]}}, "protocol heading stands twice"),
            ({"evaluation": {"protocols": ["fov=0"]}}, r"evaluation\.protocols.*fov=0: expected"),
        ],
    )
    def test_configurations(self, base: Config, sections: dict[str, dict[str, Any]], words: str) -> None:
        protocols = {"protocols": ["heading"]} if "tune" in sections else {}
        tree = {"evaluation": protocols} | sections
        with pytest.raises(ConfigError, match=words):
            configured(base, **tree)

    def test_a_metric_has_its_protocols_own_name(self, base: Config) -> None:
        found = configured(
            base, evaluation={"protocols": ["fov=90.0+heading"]}, tune={"metric": "fov=90+heading.metres_median"}
        )
        assert found.evaluation.protocols == ("heading+fov=90",)
        assert found.tune.metric == "heading+fov=90.metres_median"

    def test_metres_without_positions(self, base: Config, tmp_path: Any) -> None:
        train = {"storage": str(tmp_path), "best_metric": "aligned.metres_median"}
        config = configured(base, train=train, evaluation={"protocols": ["aligned"]})
        with pytest.raises(
            DatasetError, match=r"train\.best_metric='aligned\.metres_median' needs positions, and .* has none"
        ):
            check_ready(config)

    def test_a_run_whose_validation_tiles_have_no_margin(self, base: Config, tmp_path: Any) -> None:
        config = configured(base, train={"storage": str(tmp_path)}, evaluation={"protocols": ["offcentre=4"]})
        for start in (check_ready, Trainer):
            with pytest.raises(DatasetError, match=r"offcentre=4 needs 8 m of imagery around each tile"):
                start(config)

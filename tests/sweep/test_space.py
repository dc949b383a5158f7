"""The search space of a sweep: validated before anything runs, sampled by Optuna, applied to the configuration."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from s2s_ray.config import Config, load_config, value_at, with_values
from s2s_ray.errors import ConfigError
from s2s_ray.sweep.space import Space


def space(*parameters: tuple[str, dict[str, Any]], **sections: dict[str, Any]) -> Space:
    return Space(Config.from_tree({"tune": {"space": dict(parameters)}, **sections}))


def proposals(searched: Space, count: int = 60) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = []
    for _ in range(count):
        trial = study.ask()
        searched.suggest(trial)
        found.append(dict(trial.params))
    return found


def test_the_default_space_starts_from_the_papers_setting() -> None:
    searched = Space(load_config("paper"))
    start = searched.start()
    assert start == {
        "loss.lambda_ret": 1000.0,
        "loss.lambda_l1": 100.0,
        "loss.alpha": 10.0,
        "mining.start": "plateau",
        "mining.discard.0": 90.0,
    }
    assert searched.config(start) == load_config("paper")


@pytest.mark.parametrize("preset", ["paper", "small", "tiny"])
def test_the_default_space_suits_every_preset(preset: str) -> None:
    searched = Space(load_config(preset))
    for params in [searched.start(), *proposals(searched, 10)]:
        assert isinstance(searched.config(params), Config)


def test_a_position_in_a_list_is_a_key() -> None:
    config = with_values(load_config("paper"), {"mining.discard.0": 70.0})
    assert config.mining.discard == (70.0, 95.0, 99.0)
    assert value_at(config, "mining.discard.2") == 99.0
    with pytest.raises(ConfigError, match=r"mining\.discard\.3: unknown key; '3' is none of 0 to 2"):
        value_at(config, "mining.discard.3")


def test_values_stay_in_their_range_and_logarithms_are_uniform() -> None:
    searched = space(
        ("loss.alpha", {"low": 1, "high": 100, "log": True}),
        ("train.batch", {"low": 8, "high": 64, "step": 8, "integer": True}),
        ("data.flip", {"low": 0, "high": 1, "step": 0.25}),
        data={"flip": 0.5},
    )
    found = proposals(searched, 200)
    alphas = [params["loss.alpha"] for params in found]
    assert 80 <= sum(alpha < 10 for alpha in alphas) <= 120
    assert min(alphas) >= 1
    assert max(alphas) <= 100
    assert {params["train.batch"] for params in found} == {8, 16, 24, 32, 40, 48, 56, 64}
    assert {params["data.flip"] for params in found} == {0, 0.25, 0.5, 0.75, 1}
    assert isinstance(searched.config(found[0]).train.batch, int)


def test_choices_may_be_lists() -> None:
    searched = space(("mining.discard", {"choices": [[90, 95, 99], [50], [80, 90]]}))
    found = {searched.config(params).mining.discard for params in proposals(searched)}
    assert found == {(90.0, 95.0, 99.0), (50.0,), (80.0, 90.0)}


def test_conditions_select_keys_in_any_order() -> None:
    searched = space(
        ("mining.patience", {"low": 1, "high": 9, "integer": True, "when": {"mining.metric": ["recall"]}}),
        ("mining.metric", {"choices": ["triplet", "recall"], "when": {"mining.start": ["plateau"]}}),
        ("mining.start", {"choices": ["never", "plateau", 0]}),
    )
    kinds = set()
    for params in proposals(searched):
        assert ("mining.metric" in params) == (params["mining.start"] == "plateau")
        assert ("mining.patience" in params) == (params.get("mining.metric") == "recall")
        kinds.add(frozenset(params))
    assert len(kinds) == 3
    assert searched.start() == {"mining.start": "plateau", "mining.metric": "triplet"}


@pytest.mark.parametrize(
    ("key", "parameter", "message"),
    [
        ("loss.alpha", {"low": 5, "high": 5}, r"the range low=5 to high=5 is empty"),
        ("loss.alpha", {"low": 0, "high": 5, "log": True}, r"low=0: must be above 0 with log"),
        ("loss.alpha", {"low": 1}, r"either choices, or low and high are needed"),
        ("loss.alpha", {"choices": [1]}, r"at least two are needed"),
        ("loss.alpha", {"choices": [1, 2], "low": 1}, r"choices stand alone"),
        ("loss.alpha", {"low": 1, "high": 5, "log": True, "step": 1}, r"step=1: not with log"),
        ("train.batch", {"low": 1.5, "high": 64, "integer": True}, r"must be whole numbers"),
        ("loss.beta", {"low": 1, "high": 5}, r"loss\.beta: unknown key; 'beta' is none of lambda_gan"),
        ("loss.alpha.x", {"low": 1, "high": 5}, r"unknown key; loss\.alpha is a single value"),
        ("loss.alpha", {"low": -5, "high": 50}, r"tune\.space\.loss\.alpha: loss\.alpha=-5\.0: .*greater than 0"),
        ("mining.start", {"choices": ["plateau", "soon"]}, r"tune\.space\.mining\.start: mining\.start='soon'"),
        ("loss.alpha", {"low": 20, "high": 50}, r"does not contain the configuration's own loss\.alpha=10\.0"),
        ("train.batch", {"low": 8, "high": 64, "step": 10, "integer": True}, r"own train\.batch=32"),
        ("train.workers", {"low": 1, "high": 4, "integer": True}, r"the trials of a sweep share train\.workers"),
        ("source.seed", {"low": 0, "high": 4, "integer": True}, r"the trials of a sweep share source"),
        (
            "mining.patience",
            {"low": 1, "high": 9, "when": {"mining.start": ["plateau"]}},
            r"mining\.start is not a searched key",
        ),
    ],
)
def test_invalid_parameters_are_refused(key: str, parameter: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        space((key, parameter))


def test_impossible_conditions_are_refused() -> None:
    start = ("mining.start", {"choices": ["never", "plateau"]})
    with pytest.raises(ConfigError, match=r"when\.mining\.start='later': mining\.start never has this value"):
        space(start, ("mining.patience", {"low": 1, "high": 9, "when": {"mining.start": ["later"]}}))
    with pytest.raises(ConfigError, match=r"mining\.start, mining\.metric depend on each other"):
        space(
            ("mining.start", {"choices": ["never", "plateau"], "when": {"mining.metric": ["recall"]}}),
            ("mining.metric", {"choices": ["triplet", "recall"], "when": {"mining.start": ["plateau"]}}),
        )
    with pytest.raises(ConfigError, match="no key to search"):
        space()


def test_set_addresses_searched_keys_by_name() -> None:
    config = load_config("tiny", ["tune.space.loss.alpha={low: 3, high: 30}", "tune.space.loss.alpha.log=true"])
    assert list(config.tune.space) == ["loss.alpha"]
    assert config.tune.space["loss.alpha"].log


def test_early_stopping_with_two_objectives_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"scheduler='asha' compares trials by one objective.*tune\.scheduler=none"):
        load_config("tiny", ["tune.synthesis=l1"])
    assert load_config("tiny", ["tune.synthesis=l1", "tune.scheduler=none"]).tune.synthesis == "l1"

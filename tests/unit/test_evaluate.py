"""Evaluation of a small model on a small data set, against the same numbers computed pair by pair."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from s2s_ray.config import Config, EvaluationConfig, ModelConfig
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.prepare import prepare
from s2s_ray.evaluation import evaluate as evaluation
from s2s_ray.evaluation.descriptors import embed_dataset, embed_indices, evaluating
from s2s_ray.evaluation.evaluate import evaluate
from s2s_ray.evaluation.galleries import RetrievalRow
from s2s_ray.evaluation.image_quality import measure
from s2s_ray.evaluation.recall import DescriptorError
from s2s_ray.model.s2s import S2S

HEIGHT, WIDTH, PAIRS = 32, 72, 7
SMALL = {
    "height": HEIGHT,
    "width": WIDTH,
    "channels": 4,
    "residual_blocks": 1,
    "discriminator_channels": 4,
    "street_blocks": [1, 1, 1],
    "masks": 2,
}


def write_pairs(folder: Path) -> None:
    """Three training and seven test pairs of blurred noise; test pairs 0 and 1 are 3 m apart, the last in a zone
    of its own."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(3 + PAIRS):
        for view, size in (("satellite", (40, 40)), ("street", (WIDTH, HEIGHT))):
            noise = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
            noise.resize(size, Image.Resampling.BICUBIC).save(folder / f"{view}{i}.png")
        test = i - 3
        easting = 690_000 + (3 * test if test in (0, 1) else 1_000 * test)
        rows.append(
            {
                "id": f"pair{i}",
                "satellite": f"satellite{i}.png",
                "street": f"street{i}.png",
                "split": "train" if test < 0 else "test",
                "easting": easting,
                "northing": 6_090_000,
                "zone": 32756 if test == PAIRS - 1 else 32755,
            }
        )
    with (folder / "pairs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module", params=[True, False], ids=["tiles", "polar"])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PairDataset:
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder)
    tree = {
        "model": SMALL,
        "source": {"kind": "manifest", "uri": str(folder / "pairs.csv"), "panorama_rows": [0.0, 1.0]},
        "prepare": {"parallel": False, "keep_tiles": request.param},
        "data": {"uri": str(folder / "data")},
    }
    config = Config.from_tree(tree)
    prepare(config)
    return PairDataset(config.data.uri, "test")


@pytest.fixture(scope="module")
def model() -> S2S:
    torch.manual_seed(0)
    return S2S(ModelConfig.model_validate(SMALL))


def one_by_one(model: S2S, dataset: PairDataset) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Street and satellite descriptors and synthesised views, one pair at a time."""
    model.eval()
    with torch.no_grad():
        samples = [dataset[i] for i in range(len(dataset))]
        street = torch.cat([model.embed_street(sample.street[None]) for sample in samples])
        satellite = torch.cat([model.embed_satellite(sample.polar[None]) for sample in samples])
        views = torch.cat([model.synthesize(sample.polar[None]) for sample in samples])
    return street, satellite, views


@pytest.mark.parametrize("batch", [1, 3, 7, 20])
def test_descriptors_are_in_the_order_of_the_data_set(model: S2S, dataset: PairDataset, batch: int) -> None:
    street, satellite, _ = one_by_one(model, dataset)
    found = embed_dataset(model, dataset, batch, "cpu")
    torch.testing.assert_close(found.street, street)
    torch.testing.assert_close(found.satellite, satellite)
    some = embed_indices(model, dataset, [5, 0, 2], batch, "cpu")
    torch.testing.assert_close(some.street, street[[5, 0, 2]])
    torch.testing.assert_close(some.satellite, satellite[[5, 0, 2]])


def test_a_worker_without_a_share_gets_no_rows(model: S2S, dataset: PairDataset) -> None:
    found = embed_indices(model, dataset, range(0), 4, "cpu")
    assert found.street.shape == found.satellite.shape == (0, model.config.descriptor_size)


def test_modes_are_restored_module_by_module(model: S2S, dataset: PairDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    model.train()
    model.retrieval.street_encoder.eval()
    before = {name: module.training for name, module in model.named_modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    embed_dataset(model, dataset, 4, "cpu")
    evaluate(model, dataset, EvaluationConfig(batch=4))
    assert {name: module.training for name, module in model.named_modules()} == before
    assert len(set(before.values())) == 2
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    monkeypatch.setattr(dataset, "collate", stop)
    with pytest.raises(RuntimeError, match="stop"):
        embed_dataset(model, dataset, 4, "cpu")
    assert {name: module.training for name, module in model.named_modules()} == before


def stop(samples: object) -> None:
    raise RuntimeError("stop")


@pytest.mark.slow
def test_the_report_equals_the_pairs_one_by_one(model: S2S, dataset: PairDataset, tmp_path: Path) -> None:
    street, satellite, views = one_by_one(model, dataset)
    report = evaluate(model, dataset, EvaluationConfig(batch=3, gallery_rows=4), out=str(tmp_path / "report"))
    distances = (street[:, None].double() - satellite[None].double()).square().sum(2)
    for result, table in ((report.street_to_satellite, distances), (report.satellite_to_street, distances.T)):
        own = table.diagonal()[:, None]
        assert result.ranks.tolist() == ((table <= own + 1e-9).sum(1)).tolist()
    real = torch.stack([dataset[i].street for i in range(PAIRS)]) / 127.5 - 1
    expected = {name: values.double().mean().item() for name, values in measure(views, real).items()}
    tree = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert tree == report.as_dict()
    assert {name: tree[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert tree["gallery"] == tree["street_to_satellite"]["gallery"] == PAIRS
    assert tree["split"] == "test"
    assert tree["chance"] == pytest.approx(1 / PAIRS)
    assert set(tree["satellite_to_street"]) >= {"recall_at_1", "recall_at_5", "recall_at_10", "recall_at_1_percent"}
    assert [Path(uri).name for uri in tree["pictures"]] == ["retrieval.png", "synthesis.png"]
    for uri in tree["pictures"]:
        with Image.open(uri) as image:
            assert image.width == 1200


@pytest.mark.slow
def test_the_gallery_shows_the_closest_tiles_of_the_chosen_queries(
    model: S2S, dataset: PairDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[RetrievalRow] = []
    draw = evaluation.retrieval_gallery
    monkeypatch.setattr(
        evaluation, "retrieval_gallery", lambda rows, gallery: drawn.extend(rows) or draw(rows, gallery)
    )
    evaluate(model, dataset, EvaluationConfig(batch=3, gallery_rows=PAIRS, radius_m=5.0), out=str(tmp_path))
    street, satellite, _ = one_by_one(model, dataset)
    order = torch.cdist(street.double(), satellite.double()).argsort(1)[:, :5].tolist()
    spots = [(0, 0), (3, 0), *((1_000 * i, 0) for i in range(2, PAIRS))]
    assert [row.id for row in drawn] == [f"pair{i + 3}" for i in range(PAIRS)]
    for query, row in enumerate(drawn):
        for tile, match in zip(order[query], row.matches, strict=True):
            raw = dataset.tile(tile)
            assert match.tile.shape == ((40, 40, 3) if raw is not None else (2 * HEIGHT, 2 * HEIGHT, 3))
            if raw is not None:
                assert np.array_equal(match.tile, raw)
            assert match.correct == (tile == query or {tile, query} == {0, 1})
            if (query == PAIRS - 1) != (tile == PAIRS - 1):
                assert match.metres is None  # another zone
            else:
                assert match.metres == pytest.approx(abs(spots[query][0] - spots[tile][0]))


def test_the_radius_makes_neighbours_correct(model: S2S, dataset: PairDataset) -> None:
    report = evaluate(model, dataset, EvaluationConfig(batch=7, radius_m=5.0))
    assert report.street_to_satellite.correct.tolist() == [2, 2, 1, 1, 1, 1, 1]
    assert report.as_dict()["chance"] == pytest.approx(9 / PAIRS / PAIRS)
    assert report.pictures == []


def test_nothing_is_written_without_a_place(
    model: S2S, dataset: PairDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evaluate(model, dataset, EvaluationConfig(batch=7))
    assert list(tmp_path.iterdir()) == []
    evaluate(model, dataset, EvaluationConfig(batch=7, gallery_rows=0), out="here")
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["metrics.json", "queries.parquet"]


@pytest.mark.parametrize("view", ["street", "satellite"])
def test_diverged_weights_are_named_by_pair(dataset: PairDataset, view: str, spoil: Callable[[S2S, str], None]) -> None:
    broken = S2S(ModelConfig.model_validate(SMALL))
    spoil(broken, view)
    with pytest.raises(DescriptorError, match=f"7 of 7 {view} descriptors hold NaN .* id: pair3, pair4"):
        evaluate(broken, dataset, EvaluationConfig(batch=7))


@pytest.fixture
def spoil() -> Callable[[S2S, str], None]:
    """Puts a NaN into the attention of one view."""

    def put(model: S2S, view: str) -> None:
        with torch.no_grad():
            next(model.retrieval.get_submodule(f"{view}_attention").parameters()).fill_(float("nan"))

    return put


def test_another_resolution_is_refused(dataset: PairDataset) -> None:
    other = S2S(ModelConfig.model_validate(SMALL | {"width": 80}))
    with pytest.raises(ValueError, match="this model takes"):
        evaluate(other, dataset, EvaluationConfig(batch=7))

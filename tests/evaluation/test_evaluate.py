"""Evaluation of a small model on a small data set, against the same numbers computed pair by pair."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from s2s_ray.config import Config, EvaluationConfig, ModelConfig
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.prepare import prepare
from s2s_ray.errors import DatasetError, DescriptorError, ExpectationError, ViewError
from s2s_ray.evaluation import evaluate as evaluation
from s2s_ray.evaluation.descriptors import embed_dataset, embed_indices, evaluating
from s2s_ray.evaluation.evaluate import evaluate
from s2s_ray.evaluation.expectation import (
    Expectation,
    check_geometry,
    measure_recall,
)
from s2s_ray.evaluation.galleries import RetrievalRow
from s2s_ray.evaluation.image_quality import measure
from s2s_ray.evaluation.recall import (
    recall_at_k,
)
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

LATITUDE = 48.1
METRES_PER_DEGREE = 74_475.0  # from west to east, at that latitude


def write_pairs(folder: Path) -> None:
    """Three training and seven test pairs of blurred noise; test pairs 0 and 1 are 3 m apart on both sides of
    a UTM zone's border, the last one's position is unknown."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(3 + PAIRS):
        for view, size in (("satellite", (40, 40)), ("street", (WIDTH, HEIGHT))):
            noise = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
            noise.resize(size, Image.Resampling.BICUBIC).save(folder / f"{view}{i}.png")
        test = i - 3
        east = (3 * test - 1.5 if test in (0, 1) else 1_000 * test) / METRES_PER_DEGREE
        rows.append(
            {
                "id": f"pair{i}",
                "satellite": f"satellite{i}.png",
                "street": f"street{i}.png",
                "split": "train" if test < 0 else "test",
                "latitude": "" if test == PAIRS - 1 else LATITUDE,
                "longitude": "" if test == PAIRS - 1 else 12.0 + east,
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
def test_the_results_of_each_query(model: S2S, dataset: PairDataset, tmp_path: Path) -> None:
    config = EvaluationConfig(batch=3, gallery_rows=0, radius_m=5.0, chunk=4)
    report = evaluate(model, dataset, config, out=str(tmp_path))
    rows = pq.read_table(tmp_path / "queries.parquet").to_pylist()
    street, satellite, views = one_by_one(model, dataset)
    table = (street[:, None].double() - satellite[None].double()).square().sum(2)
    order = table.argsort(1)[:, :5].tolist()
    assert [row["id"] for row in rows] == dataset.ids
    assert [row["rank_street_to_satellite"] for row in rows] == report.street_to_satellite.ranks.tolist()
    assert [row["rank_satellite_to_street"] for row in rows] == report.satellite_to_street.ranks.tolist()
    assert [row["correct_tiles"] for row in rows] == [2, 2, 1, 1, 1, 1, 1]
    east = dataset.latlon[:, 1]
    for query, row in enumerate(rows):
        assert row["top_ids"] == [dataset.ids[tile] for tile in order[query]]
        # float32 descriptors of single images and of batches: some hundred roundings apart
        assert row["top_descriptor_distances"] == pytest.approx(table[query][order[query]].tolist(), rel=3e-5)
        for tile, metres in zip(order[query], row["top_metres"], strict=True):
            if PAIRS - 1 in (query, tile):
                assert metres is None
            else:
                assert metres == pytest.approx(METRES_PER_DEGREE * abs(east[query] - east[tile]), rel=1e-4, abs=1e-6)
        difference = views[query] - (dataset[query].street / 127.5 - 1)
        assert row["l1"] == pytest.approx(difference.abs().mean().item(), rel=1e-5)
    assert report.as_dict()["protocol"].startswith("the pair's own tile and those within 5 m of it are correct; ties")


@pytest.mark.slow
@pytest.mark.parametrize("ablation", ["retrieval_only", "separate_features"])
def test_ablations_are_measured_without_a_special_case(ablation: str, dataset: PairDataset, tmp_path: Path) -> None:
    torch.manual_seed(0)
    other = S2S(ModelConfig.model_validate(SMALL | {"ablation": ablation}))
    report = evaluate(other, dataset, EvaluationConfig(batch=4), out=str(tmp_path))
    other.eval()
    samples = [dataset[i] for i in range(PAIRS)]
    with torch.no_grad():
        satellite = torch.cat([other.embed_satellite(sample.polar[None]) for sample in samples])
        street = torch.cat([other.embed_street(sample.street[None]) for sample in samples])
    assert torch.equal(report.street_to_satellite.ranks, recall_at_k(street, satellite).ranks)
    assert ("l1" in report.as_dict()) == (ablation != "retrieval_only")
    assert (tmp_path / "synthesis.png").exists() == (ablation != "retrieval_only")


class TestExpectation:
    @pytest.mark.parametrize("text", ["r1", "r1=x", "r2=50", "r1=101", "r1=nan", "=5"])
    def test_invalid_expectations_are_refused(self, text: str) -> None:
        with pytest.raises(ExpectationError, match=r"expected one of r1, r5, r10, r1% and a recall in percent"):
            Expectation.parse(text)

    def test_met_and_missed(self, model: S2S, dataset: PairDataset) -> None:
        street, satellite, _ = one_by_one(model, dataset)
        expected = recall_at_k(street, satellite)
        result = measure_recall(model, dataset, EvaluationConfig(batch=3), "cpu")
        assert result.recall == expected.recall
        percent = 100 * expected.recall["5"]
        assert Expectation.parse(f"R5={percent:.2f}%").missed(result, 0.5) is None
        assert Expectation("r5", percent + 0.4).missed(result, 0.5) is None
        missed = Expectation("r5", percent + 0.6).missed(result, 0.5)
        assert missed is not None
        assert missed.startswith(f"r5 is {percent:.2f}%, 0.60 points below the expected")

    def test_another_treatment_is_logged(self, dataset: PairDataset, caplog: pytest.LogCaptureFixture) -> None:
        found = dataset.info.geometry
        meta = {"dataset": {"geometry": found.tree()}}
        check_geometry("x", meta, found)
        check_geometry("x", {}, found)
        assert not caplog.records
        check_geometry("x", meta, replace(found, resize="cubic"))
        assert "x was trained with resize=area, the data set has cubic" in caplog.text


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
    spots = [-1.5, 1.5, *(1_000 * i for i in range(2, PAIRS))]
    assert [row.id for row in drawn] == [f"pair{i + 3}" for i in range(PAIRS)]
    for query, row in enumerate(drawn):
        for tile, match in zip(order[query], row.matches, strict=True):
            raw = dataset.tile(tile)
            assert match.tile.shape == ((40, 40, 3) if raw is not None else (2 * HEIGHT, 2 * HEIGHT, 3))
            if raw is not None:
                assert np.array_equal(match.tile, raw)
            assert match.correct == (tile == query or {tile, query} == {0, 1})
            if PAIRS - 1 in (query, tile):
                assert match.metres is None
            else:
                assert match.metres == pytest.approx(abs(spots[query] - spots[tile]), rel=1e-4, abs=1e-6)


def test_the_radius_makes_neighbours_correct(model: S2S, dataset: PairDataset) -> None:
    report = evaluate(model, dataset, EvaluationConfig(batch=7, radius_m=5.0))
    assert report.street_to_satellite.correct.tolist() == [2, 2, 1, 1, 1, 1, 1]
    assert report.as_dict()["chance"] == pytest.approx(9 / PAIRS / PAIRS)
    assert report.pictures == []


def test_nothing_is_written_without_a_uri(
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
    """Return a function that puts a NaN into the attention of one view."""

    def put(model: S2S, view: str) -> None:
        with torch.no_grad():
            next(model.retrieval.get_submodule(f"{view}_attention").parameters()).fill_(float("nan"))

    return put


def test_another_resolution_is_refused(dataset: PairDataset) -> None:
    other = S2S(ModelConfig.model_validate(SMALL | {"width": 80}))
    with pytest.raises(ViewError, match="this model expects"):
        evaluate(other, dataset, EvaluationConfig(batch=7))


class TestUnknownHeadings:
    UNKNOWN = (1, 2, 5)

    @pytest.fixture
    def partly(self, dataset: PairDataset, monkeypatch: pytest.MonkeyPatch) -> PairDataset:
        oriented = np.ones(PAIRS, np.bool_)
        oriented[list(self.UNKNOWN)] = False
        monkeypatch.setattr(dataset, "oriented", oriented)
        return dataset

    @pytest.mark.parametrize("batch", [1, 3, 20])
    def test_they_are_left_out_of_what_needs_a_heading(
        self, batch: int, model: S2S, partly: PairDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        config = EvaluationConfig(batch=batch, protocols=("aligned", "heading", "fov=180"), gallery_rows=0)
        report = evaluate(model, partly, config, out=str(tmp_path))
        assert "3 of 7 pictures of the test split have an unknown heading" in caplog.text
        street, satellite, views = one_by_one(model, partly)
        known = [index for index in range(PAIRS) if index not in self.UNKNOWN]
        for found, pair in (
            (report.street_to_satellite, (street, satellite)),
            (report.satellite_to_street, (satellite, street)),
        ):
            ranks = recall_at_k(*pair).ranks[known]
            assert found.queries == len(known)
            assert found.recall["1"] == (ranks == 1).double().mean()
            assert found.recall["5"] == (ranks <= 5).double().mean()
            assert found.median_rank == np.median(ranks)
        real = torch.stack([partly[index].street for index in known]) / 127.5 - 1
        for name, values in measure(views[known], real).items():
            assert report.synthesis[name] == pytest.approx(float(values.mean()), rel=1e-4)
        written = json.loads((tmp_path / "metrics.json").read_text())
        assert written["unknown_heading"] == 3
        assert report.protocols["aligned"]["recall_at_1"] == report.street_to_satellite.recall["1"]
        table = pq.read_table(tmp_path / "queries.parquet").to_pydict()
        for index in range(PAIRS):
            unknown = index in self.UNKNOWN
            assert (table["aligned.rank"][index] is None) == unknown
            assert (table["fov=180.rank"][index] is None) == unknown
            assert table["heading.rank"][index] >= 1
            assert (table["heading.heading_error"][index] is None) == unknown
            assert np.isnan(table["l1"][index]) == unknown

    def test_without_any_known_heading_there_is_nothing_to_measure(
        self, model: S2S, dataset: PairDataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dataset, "oriented", np.zeros(PAIRS, np.bool_))
        with pytest.raises(DatasetError, match="the heading of every picture of the test split is unknown"):
            evaluate(model, dataset, EvaluationConfig())

"""Protocols against a direct evaluation: one query, one heading and one tile at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from s2s_ray.config import Config, EvaluationConfig, ModelConfig
from s2s_ray.config.protocol import Protocol
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.places import places_of
from s2s_ray.data.prepare import prepare
from s2s_ray.errors import ConfigError, DatasetError, DescriptorError, InputError
from s2s_ray.evaluation import hypotheses
from s2s_ray.evaluation.asked import asked, drawn, offcentre, rolled
from s2s_ray.evaluation.descriptors import embed_dataset
from s2s_ray.evaluation.hypotheses import best_hypotheses
from s2s_ray.evaluation.outcome import Outcome, table
from s2s_ray.evaluation.protocols import (
    ask,
    cut,
    embed_gallery,
    grid_of,
    measure,
    measure_protocols,
    require_margin,
)
from s2s_ray.evaluation.recall import Nearby, recall_at_k
from s2s_ray.geo.polar import roll_to_north
from s2s_ray.model.headings import at_all_headings
from s2s_ray.model.s2s import S2S
from tests.evaluation.test_evaluate import HEIGHT, METRES_PER_DEGREE, PAIRS, SMALL, WIDTH, write_pairs

IDS = [f"pair{number}" for number in range(5)]
CONFIG = EvaluationConfig(batch=3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PairDataset:
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder)
    tree = {
        "model": SMALL,
        "source": {"kind": "manifest", "uri": str(folder / "pairs.csv"), "panorama_rows": [0.0, 1.0]},
        "prepare": {"parallel": False},
        "data": {"uri": str(folder / "data")},
    }
    config = Config.from_tree(tree)
    prepare(config)
    return PairDataset(config.data.uri, "test")


@pytest.fixture(scope="module")
def model() -> S2S:
    torch.manual_seed(0)
    return S2S(ModelConfig.model_validate(SMALL)).eval()


def ramp(count: int) -> Tensor:
    """Panoramas whose pixels are their columns, counted from 1."""
    return torch.arange(1, WIDTH + 1, dtype=torch.uint8).expand(count, 3, HEIGHT, WIDTH).contiguous()


class TestProtocol:
    @pytest.mark.parametrize(
        ("text", "protocol", "name"),
        [
            ("aligned", Protocol(), "aligned"),
            ("heading", Protocol(heading=True), "heading"),
            (" fov=180.0 ", Protocol(fov=180), "fov=180"),
            ("offcentre=16+fov=70.5+heading", Protocol(True, 70.5, 16), "heading+fov=70.5+offcentre=16"),
        ],
    )
    def test_parse(self, text: str, protocol: Protocol, name: str) -> None:
        assert Protocol.parse(text) == protocol
        assert protocol.name == name
        assert Protocol.parse(name) == protocol

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "'' is unknown; expected aligned, heading"),
            ("north", "'north' is unknown"),
            ("heading=3", "'heading=3' is unknown"),
            ("fov", "'fov' is unknown"),
            ("fov=wide", "fov='wide': expected a number of degrees"),
            ("fov=0", "fov=0: expected a field of view above 0"),
            ("fov=361", "fov=361: expected"),
            ("fov=nan", "fov=nan: expected"),
            ("fov=360", "fov=360 is the whole horizon"),
            ("offcentre=-1", "offcentre=-1: expected above 0 and at most 1000 metres"),
            ("offcentre=inf", "offcentre=inf: expected"),
            ("aligned+heading", "aligned stands alone"),
            ("fov=90+fov=80", "fov stands twice"),
        ],
    )
    def test_wrong_protocols_are_refused(self, text: str, words: str) -> None:
        with pytest.raises(InputError) as caught:
            Protocol.parse(text)
        assert words in str(caught.value)
        assert repr(text) in str(caught.value)


class TestAsked:
    def test_draws_depend_on_their_arguments_alone(self) -> None:
        values = drawn(3, "heading", [str(number) for number in range(2000)])
        assert ((values >= 0) & (values < 1)).all()
        assert abs(values.mean() - 0.5) < 0.03
        assert np.array_equal(drawn(3, "heading", ["7", "1"]), values[[7, 1]])
        assert not np.isin(drawn(4, "heading", ["7"]), values)
        assert not np.isin(drawn(3, "bearing", ["7"]), values)

    def test_rolled(self) -> None:
        images = torch.randint(0, 256, (3, 2, 4, 9), dtype=torch.uint8)
        columns = np.array([0, -4, 13])
        for image, shift, result in zip(images, columns, rolled(images, columns), strict=True):
            assert torch.equal(result, torch.roll(image, int(shift), -1))

    def test_a_turned_panorama_is_turned_back_by_its_heading(self) -> None:
        street = torch.randint(0, 256, (5, 3, HEIGHT, WIDTH), dtype=torch.uint8)
        query = asked(street, IDS, Protocol(heading=True), seed=1)
        assert query.seen is None
        assert len(set(query.headings)) > 3
        for view, heading, original in zip(query.street, query.headings, street, strict=True):
            assert torch.equal(roll_to_north(view, heading), original)

    @pytest.mark.parametrize("fov", [70.0, 180.0, 359.0])
    def test_a_part_of_the_horizon(self, fov: float) -> None:
        street = ramp(5)
        query = asked(street, IDS, Protocol(fov=fov), seed=1)
        unknown = asked(street, IDS, Protocol(heading=True, fov=fov), seed=1)
        assert query.seen is not None
        assert unknown.seen is not None
        assert np.array_equal(query.headings, unknown.headings)
        bearings = (180 + 360 * np.arange(WIDTH) / WIDTH) % 360
        for row, heading in enumerate(query.headings):
            seen = query.seen[row].numpy()
            assert (seen == seen[:1]).all()
            assert seen[0].sum() == round(fov / 360 * WIDTH)
            away = np.abs((bearings[seen[0]] - heading + 180) % 360 - 180)
            assert away.max() <= fov / 2 + 360 / WIDTH
            assert (query.street[row].numpy() == np.where(seen, street[row].numpy(), 0)).all()
            # of an unknown heading the same picture, in the middle of the view
            assert torch.equal(roll_to_north(unknown.street[row], heading), query.street[row])
            assert torch.equal(roll_to_north(unknown.seen[row], heading), query.seen[row])
            columns = unknown.seen[row, 0].nonzero().flatten()
            assert abs(int(columns[0]) - (WIDTH - 1 - int(columns[-1]))) <= 1
            assert int(columns[-1]) - int(columns[0]) + 1 == len(columns)

    def test_panoramas_that_are_partial_already(self) -> None:
        street, given = ramp(5), torch.rand(5, HEIGHT, WIDTH) < 0.7
        for text in ("aligned", "heading", "fov=100", "heading+fov=100"):
            protocol = Protocol.parse(text)
            query, whole = asked(street, IDS, protocol, 1, given), asked(street, IDS, protocol, 1)
            assert query.seen is not None
            for row, heading in enumerate(query.headings):
                turn = heading if protocol.heading else 0
                expected = given[row] if whole.seen is None else given[row] & roll_to_north(whole.seen[row], turn)
                assert torch.equal(roll_to_north(query.seen[row], turn), expected)

    def test_aligned_panoramas_are_asked_as_they_are(self) -> None:
        street = ramp(5)
        query = asked(street, IDS, Protocol(), seed=1)
        assert query.street is street
        assert query.seen is None

    def test_cameras_fill_the_disc(self) -> None:
        cameras = offcentre([str(number) for number in range(4000)], 16.0, seed=2)
        distances = np.hypot(*cameras.T)
        assert distances.max() <= 16
        assert abs((distances <= 8).mean() - 0.25) < 0.03
        assert np.abs(cameras.mean(0)).max() < 0.5


class TestBestHypotheses:
    @pytest.mark.parametrize("at_a_time", [1, 100, 1000, 10**9])
    def test_brute_force(self, at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hypotheses, "AT_A_TIME", at_a_time)
        generator = torch.Generator().manual_seed(0)
        queries = torch.randn(4, 3, 6, generator=generator)
        gallery = torch.randn(7, 5, 6, generator=generator)
        best = best_hypotheses(queries, gallery.flatten(0, 1), centres=5)
        for b in range(4):
            for m in range(7):
                tried = {
                    (t, c): float((queries[b, t].double() - gallery[m, c].double()).square().sum())
                    for t in range(3)
                    for c in range(5)
                }
                heading, centre = min(tried, key=tried.__getitem__)
                assert float(best.distances[b, m]) == pytest.approx(tried[heading, centre], abs=1e-12)
                assert (int(best.headings[b, m]), int(best.centres[b, m])) == (heading, centre)


def test_headings_are_searched_at_steps_of_at_most_eight_degrees(model: S2S) -> None:
    street = torch.randint(0, 256, (2, 3, HEIGHT, WIDTH), dtype=torch.uint8)
    with torch.no_grad():
        descriptors, headings = at_all_headings(model.embed_street_turned, street)
    assert descriptors.shape == (2, len(headings), model.config.descriptor_size)
    ordered = np.sort(headings)
    assert len(set(ordered)) == len(ordered)
    assert np.diff([*ordered, ordered[0] + 360]).max() <= 8.2 + 360 / WIDTH
    [zero] = np.flatnonzero(headings == 0)
    with torch.no_grad():
        torch.testing.assert_close(descriptors[:, zero], model.embed_street(street))


def one_by_one(model: S2S, dataset: PairDataset, protocol: Protocol, seed: int) -> dict[str, list[float]]:
    """Rank the tiles of each query by comparing it with one tile at one heading at a time."""
    with torch.no_grad():
        tiles = torch.cat([model.embed_satellite(dataset[i].polar[None]) for i in range(PAIRS)]).double()
    found: dict[str, list[float]] = {"ranks": [], "heading": [], "own": [], "metres": [], "tile_metres": []}
    for i in range(PAIRS):
        query = asked(dataset[i].street[None], [dataset.ids[i]], protocol, seed)
        with torch.no_grad():
            if protocol.heading:
                views, headings = at_all_headings(model.embed_street_turned, query.street, query.seen)
            else:
                views, headings = model.embed_street(query.street, query.seen)[None], np.zeros(1)
        distances = (views[0, :, None].double() - tiles[None]).square().sum(2)
        least, which = distances.min(0)
        first = int(least.argmin())
        found["ranks"].append(float((least <= least[i] + 1e-6).sum()))
        for name, tile in (("heading", first), ("own", i)):
            error = abs(float(headings[which[tile]] - query.headings[0])) % 360
            found[name].append(min(error, 360 - error) if protocol.heading else math.nan)
        places = places_of(dataset)
        metres = float(places[np.array([i])].metres_to(places[np.array([first])])[0])
        found["metres"].append(metres)
        found["tile_metres"].append(0.0 if first == i else math.nan)
    return found


@pytest.mark.parametrize("text", ["aligned", "heading", "fov=180", "heading+fov=90"])
def test_the_outcome_equals_queries_one_by_one(text: str, model: S2S, dataset: PairDataset) -> None:
    protocol = Protocol.parse(text)
    everything = range(PAIRS)
    gallery = embed_gallery(model, dataset, dataset.info.geometry, protocol, 1, everything, CONFIG, "cpu")
    outcome = ask(model, dataset, protocol, 1, gallery, everything, CONFIG, "cpu")
    expected = one_by_one(model, dataset, protocol, 1)
    assert outcome.ranks.tolist() == expected["ranks"]
    np.testing.assert_allclose(outcome.heading_errors, expected["heading"], atol=1e-9)
    np.testing.assert_allclose(outcome.own_heading_errors, expected["own"], atol=1e-9)
    np.testing.assert_allclose(outcome.metres, expected["metres"], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(outcome.tile_metres, expected["tile_metres"])
    assert outcome.figures() == measure(model, dataset, dataset.info.geometry, protocol, 1, config=CONFIG)
    some = ask(model, dataset, protocol, 1, gallery, [5, 0], CONFIG, "cpu")
    np.testing.assert_array_equal(some.columns, outcome.columns[[5, 0]])


@pytest.mark.parametrize("radius_m", [None, 5.0])
def test_aligned_is_the_protocol_of_the_paper(radius_m: float | None, model: S2S, dataset: PairDataset) -> None:
    config = EvaluationConfig(batch=3, radius_m=radius_m, protocols=("aligned",))
    found = embed_dataset(model, dataset, 3, "cpu")
    places = places_of(dataset)
    nearby = None if radius_m is None else Nearby(places, places, radius_m)
    expected = recall_at_k(found.street, found.satellite, nearby=nearby)
    for aligned in (None, found.satellite):
        tables, outcomes = measure_protocols(model, dataset, config, aligned=aligned)
        assert outcomes["aligned"].ranks.tolist() == expected.ranks.tolist()
        figures = tables["aligned"]
        assert {key: figures[key] for key in expected.as_dict() if key in figures} == {
            key: value for key, value in expected.as_dict().items() if key not in ("queries", "gallery")
        }
        assert figures["heading_error_median"] is None


def test_a_collapsed_model_finds_nothing(model: S2S, dataset: PairDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    one = torch.nn.functional.normalize(torch.ones(model.config.descriptor_size), dim=0)
    monkeypatch.setattr(model, "embed_satellite", lambda polar: one.expand(len(polar), -1))
    monkeypatch.setattr(model, "embed_street_turned", lambda street, seen=None: one.expand(len(street), WIDTH // 8, -1))
    figures = measure(model, dataset, dataset.info.geometry, Protocol(heading=True), 0, config=CONFIG)
    assert figures["recall_at_1"] == figures["recall_at_5"] == 0
    assert figures["median_rank"] == PAIRS
    assert figures["heading_error_median"] is None


def test_descriptors_that_are_not_finite_are_refused(
    model: S2S, dataset: PairDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(street: Tensor, seen: Tensor | None = None) -> Tensor:
        return torch.full((len(street), model.config.descriptor_size), torch.nan)

    monkeypatch.setattr(model, "embed_street", broken)
    with pytest.raises(DescriptorError, match="pair3"):
        measure(model, dataset, dataset.info.geometry, Protocol(fov=90), 0, config=CONFIG)


class TestSeeds:
    def test_figures_are_means_over_seeds(self, model: S2S, dataset: PairDataset) -> None:
        config = EvaluationConfig(batch=3, protocols=("heading", "aligned"), seed=4, seeds=3)
        tables, outcomes = measure_protocols(model, dataset, config)
        geometry = dataset.info.geometry
        each = [measure(model, dataset, geometry, Protocol(heading=True), seed, config=config) for seed in (4, 5, 6)]
        assert tables["heading"]["by_seed"] == each
        assert tables["heading"]["recall_at_5"] == pytest.approx(np.mean([one["recall_at_5"] for one in each]))
        assert outcomes["heading"].figures() == each[0]
        assert len(tables["aligned"]["by_seed"]) == 1
        assert list(tables) == ["heading", "aligned"]

    def test_the_table(self, model: S2S, dataset: PairDataset) -> None:
        config = EvaluationConfig(batch=3, protocols=("aligned", "heading"), seeds=2)
        tables, _ = measure_protocols(model, dataset, config)
        header, aligned, heading = table(tables).splitlines()
        assert header.split()[:2] == ["protocol", "R@1"]
        recall = 100 * tables["aligned"]["recall_at_1"]
        assert aligned.split()[:5] == ["aligned", f"{recall:.1f}", *aligned.split()[2:4], "-"]
        assert f"{100 * tables['heading']['recall_at_1']:.1f} ± " in heading
        assert len(header) == len(aligned) == len(heading)


def test_figures_of_an_outcome_by_hand() -> None:
    nan = math.nan
    outcome = Outcome(
        ranks=np.array([1, 1, 2, 11]),
        heading_errors=np.array([4.0, 8.0, 100.0, 120.0]),
        own_heading_errors=np.array([4.0, 8.0, 6.0, 90.0]),
        metres=np.array([nan, 6.0, 24.0, nan]),
        tile_metres=np.array([2.0, nan, nan, nan]),
        gallery=150,
    )
    assert outcome.figures() == {
        "recall_at_1": 0.5,
        "recall_at_5": 0.75,
        "recall_at_10": 0.75,
        "recall_at_1_percent": 0.75,
        "median_rank": 1.5,
        "heading_error_median": 6.0,
        "heading_within_5": 0.5,
        "heading_within_10": 1.0,
        "own_heading_error_median": 7.0,
        "own_heading_within_5": 0.25,
        "own_heading_within_10": 0.75,
        "metres_median": 15.0,
        "metres_within_5": 0.0,
        "metres_within_10": 0.5,
        "metres_within_25": 1.0,
        "found_metres_median": 4.0,
    }
    again = Outcome.of_columns(outcome.columns, 150)
    assert again.figures() == outcome.figures()


class TestOffcentre:
    """A data set whose tiles have a margin: 16 m wide, 2 pixels a metre, with 9 m around them."""

    SIDE, MARGIN = 32, 18

    @pytest.fixture
    def wide(self, dataset: PairDataset, monkeypatch: pytest.MonkeyPatch) -> PairDataset:
        known = {"tile_m": 16.0, "tile_px": self.SIDE, "margin_m": 9.0, "keep_tiles": True}
        monkeypatch.setattr(dataset, "info", dataset.info.model_copy(update=known))
        size = self.SIDE + 2 * self.MARGIN

        def wide_tile(index: int) -> np.ndarray:
            """Return blurred noise that is white where the panorama was taken."""
            rng = np.random.default_rng(index)
            pixels = rng.integers(0, 200, (size, size, 3), np.uint8)
            pixels[size // 2, size // 2] = 255
            return pixels

        monkeypatch.setattr(dataset, "wide_tile", wide_tile)
        return dataset

    def test_the_panorama_is_where_its_offset_says(self, wide: PairDataset) -> None:
        shifts = np.array([[0, 0], [5, 0], [0, -3], [-18, 18]])
        for (east, north), tile in zip(shifts, cut(wide, 1, shifts), strict=True):
            assert tile.shape == (self.SIDE, self.SIDE, 3)
            spot = np.argwhere((tile == 255).all(2)).tolist()
            inside = max(abs(east), abs(north)) < self.SIDE // 2
            # a centre to the east of the panorama has it on its left, one to the north has it below
            assert spot == ([[self.SIDE // 2 + north, self.SIDE // 2 - east]] if inside else [])

    def test_the_margin_holds_cameras_and_positions(self, wide: PairDataset) -> None:
        config = EvaluationConfig(offcentre_step_m=2.0)
        require_margin(wide, Protocol(offcentre_m=5), config)  # the positions end at 4 m
        with pytest.raises(DatasetError, match=r"offcentre=6 needs 12 m of imagery around each tile, and .* has 9 m"):
            require_margin(wide, Protocol(offcentre_m=6), config)
        require_margin(wide, Protocol(offcentre_m=9), config.model_copy(update={"offcentre_step_m": 0.0}))

    @pytest.mark.parametrize("text", ["offcentre=4", "heading+offcentre=4"])
    def test_the_outcome_equals_positions_one_by_one(self, text: str, model: S2S, wide: PairDataset) -> None:
        protocol, config = Protocol.parse(text), EvaluationConfig(batch=4, offcentre_step_m=3.0)
        geometry = wide.info.geometry
        gallery = embed_gallery(model, wide, geometry, protocol, 1, range(PAIRS), config, "cpu")
        outcome = ask(model, wide, protocol, 1, gallery, range(PAIRS), config, "cpu")
        cameras = offcentre(wide.ids, 4.0, 1)
        size = self.SIDE + 2 * self.MARGIN
        centres: dict[tuple[int, int], tuple[np.ndarray, Tensor]] = {}
        for tile in range(PAIRS):
            pixels = wide.wide_tile(tile)
            for number, grid in enumerate((e, n) for e in (-3.0, 0.0, 3.0) for n in (-3.0, 0.0, 3.0)):
                shift = np.rint(2 * (np.array(grid) - cameras[tile])).astype(int)
                row, column = (size - self.SIDE) // 2 - shift[1], (size - self.SIDE) // 2 + shift[0]
                view = geometry.satellite(pixels[row : row + self.SIDE, column : column + self.SIDE], "north-up")
                with torch.no_grad():
                    centres[tile, number] = shift / 2, model.embed_satellite(view[None])[0].double()
        for i in range(PAIRS):
            query = asked(wide[i].street[None], [wide.ids[i]], protocol, 1)
            with torch.no_grad():
                if protocol.heading:
                    views, headings = at_all_headings(model.embed_street_turned, query.street, query.seen)
                else:
                    views, headings = model.embed_street(query.street)[None], np.zeros(1)
            best: dict[int, tuple[float, float, np.ndarray]] = {}
            for (tile, _), (offset, descriptor) in centres.items():
                squares = (views[0].double() - descriptor).square().sum(1)
                found = (float(squares.min()), float(headings[int(squares.argmin())]), offset)
                best[tile] = min(best.get(tile, found), found, key=lambda item: item[0])
            order = sorted(best, key=lambda tile: best[tile][0])
            assert outcome.ranks[i] == 1 + order.index(i)
            if protocol.heading:
                error = abs(best[i][1] - query.headings[0]) % 360
                assert outcome.own_heading_errors[i] == pytest.approx(min(error, 360 - error), abs=1e-9)
            first, offset = order[0], best[order[0]][2]
            in_tile = np.hypot(*offset) if first == i else math.nan
            assert outcome.tile_metres[i] == pytest.approx(in_tile, abs=1e-9, nan_ok=True)
            if PAIRS - 1 in (first, i):
                assert np.isnan(outcome.metres[i])  # the place of the last pair is unknown
            elif first == i:
                assert outcome.metres[i] == pytest.approx(in_tile, abs=1e-9)
            else:
                apart = wide.latlon[first] - wide.latlon[i]
                east = apart[1] * METRES_PER_DEGREE + offset[0]
                north = apart[0] * 111_200 + offset[1]
                assert outcome.metres[i] == pytest.approx(np.hypot(east, north), rel=1e-3)

    def test_the_centre_alone_and_grids(self) -> None:
        assert grid_of(16, 0).tolist() == [[0, 0]]
        assert len(grid_of(16, 4)) == 81
        assert np.abs(grid_of(10, 4)).max() == 8
        assert len(np.unique(grid_of(0.3, 0.1), axis=0)) == 49

    def test_a_data_set_without_a_margin(self, model: S2S, dataset: PairDataset) -> None:
        config = EvaluationConfig(protocols=("offcentre=16",))
        with pytest.raises(DatasetError, match=r"offcentre=16 needs 32 m of imagery around each tile, and .* has 0 m"):
            measure_protocols(model, dataset, config)
        with pytest.raises(DatasetError, match=r"prepare\.margin_m=32"):
            measure(model, dataset, dataset.info.geometry, Protocol(offcentre_m=16), 0)
        config = EvaluationConfig(protocols=("offcentre=16",), offcentre_step_m=0.01)
        with pytest.raises(ConfigError, match=r"offcentre_step_m=0\.01 makes 10,246,401 positions"):
            measure_protocols(model, dataset, config)


def test_an_empty_split_is_named(model: S2S, dataset: PairDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PairDataset, "__len__", lambda self: 0)
    with pytest.raises(DatasetError, match="the split is empty"):
        measure(model, dataset, dataset.info.geometry, Protocol(), 0)

"""Calibration on a data set: how its pictures are asked, and which tiles are searched."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from s2s_ray.data.batch import Sample
from s2s_ray.data.schema import TileSize
from s2s_ray.errors import DatasetError, InputError
from s2s_ray.localization import calibrate as module
from s2s_ray.localization.calibrate import FIELDS_OF_VIEW, calibrate
from s2s_ray.localization.fitting import Trials, fit
from tests.support.landscape import degrees, unit

WIDTH, HEIGHT, TILE_PX, MARGIN_PX = 24, 4, 8, 16  # half a metre a pixel
RANDOM = np.random.default_rng(0)
FREQUENCIES, PHASES = RANDOM.normal(size=(3, WIDTH, 2)) / 12, RANDOM.uniform(0, 6, (3, WIDTH))


def view(point: np.ndarray) -> Tensor:
    """Return what is seen at a place in metres, uint8 3 H W: smooth in the place, different in each direction."""
    colours = 128 + 100 * np.sin(FREQUENCIES @ point + PHASES)
    return torch.from_numpy(colours.astype(np.uint8))[:, None].expand(3, HEIGHT, WIDTH).contiguous()


class Pairs:
    """A split whose tiles, instead of pixels, hold where they are: east and north of the pair in half metres."""

    def __init__(self, count: int, *, margin_m: float, seed: int = 1, split: str = "val") -> None:
        self.points = np.random.default_rng(seed).uniform(0, 800, (count, 2))
        self.latlon, self.positions = degrees(self.points), np.full((count, 2), np.nan)
        self.zones, self.height, self.width = np.zeros(count, np.int64), HEIGHT, WIDTH
        self.uri, self.tile_size = f"data/{split}", TileSize(TILE_PX / 2, TILE_PX)
        margin_px = round(2 * margin_m)
        self.info = SimpleNamespace(margin_m=margin_m, margin_px=margin_px, digest="digest")

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, row: int) -> Sample:
        return Sample(view(self.points[row]), view(self.points[row]), row)

    def wide_tile(self, row: int) -> np.ndarray:
        side = TILE_PX + 2 * self.info.margin_px
        middle = (side - 1) / 2
        north, east = np.meshgrid(*[np.arange(side) - middle] * 2, indexing="ij")
        return np.stack([np.full((side, side), row), east / 2, -north / 2], axis=-1)


class Model:
    """The mean of each column is the descriptor; of tiles it is computed from where their middle is."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs, self.asked = pairs, list[tuple[Tensor, Tensor | None]]()
        self.geometry = SimpleNamespace(height=HEIGHT, width=WIDTH, north_up=self.north_up)
        self.cut: list[np.ndarray] = []

    def north_up(self, tile: np.ndarray) -> Tensor:
        assert tile.shape == (TILE_PX, TILE_PX, 3)
        row, east, north = tile.mean(axis=(0, 1))
        self.cut.append(np.array([row, east, north]))
        return view(self.pairs.points[round(row)] + (east, north))

    def embed_satellite(self, views: Tensor) -> Any:
        return unit(views.double().mean(2).flatten(1).numpy() - 128)

    def embed_street(self, views: Tensor, seen: Tensor | None = None) -> Any:
        self.asked.append((views, seen))
        rows = views.double().mean(2) - 128
        return unit((rows if seen is None else rows * seen[:, :1]).flatten(1).numpy())

    def embed_turned(self, views: Tensor, seen: Tensor | None = None) -> Any:
        turned = [
            self.embed_street(views.roll(columns, -1), None if seen is None else seen.roll(columns, -1))
            for columns in range(WIDTH)
        ]
        del self.asked[-len(turned) + 1 :]
        return np.stack(turned, axis=1), np.arange(WIDTH) * 360.0 / WIDTH


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[Trials]:
    """What is fitted; the fit itself is tested elsewhere, and is done for the first kind only."""
    seen: list[Trials] = []
    kinds: list[Any] = []

    def first(trials: Trials) -> Any:
        seen.append(trials)
        if not kinds:
            kinds.append(fit(trials))
        return kinds[0].model_copy(update={"fov": trials.fov, "heading_known": trials.heading_known})

    monkeypatch.setattr(module, "fit", first)
    return seen


def run(pairs: Pairs, others: Pairs | None = None, **options: Any) -> tuple[Any, Model]:
    model = Model(pairs)
    return calibrate(model, pairs, checkpoint="ab", others=others, **options), model  # type: ignore[arg-type]


def test_a_dense_gallery_lies_around_the_pictures(fitted: list[Trials]) -> None:
    pairs = Pairs(30, margin_m=MARGIN_PX / 2)
    found, model = run(pairs, every_m=4.0)
    assert (found.checkpoint, found.dataset, found.dataset_digest) == ("ab", "data/val", "digest")
    assert [(kind.fov, kind.heading_known) for kind in found.kinds] == [
        (fov, known) for known in (True, False) for fov in FIELDS_OF_VIEW
    ]
    assert found.spacing_m == 4.0
    trials = fitted[0]
    assert trials.dense
    assert found.tiles == len(trials.tiles) == len(model.cut)
    cut = np.stack(model.cut)
    offsets = cut[:, 1:]
    assert np.abs(offsets).max() <= MARGIN_PX / 2
    np.testing.assert_allclose(trials.tiles, degrees(pairs.points[cut[:, 0].astype(int)] + offsets), atol=1e-8)
    for row in range(30):
        mine = np.unique(offsets[cut[:, 0] == row, 0])
        assert len(mine) >= 3
        np.testing.assert_allclose(np.diff(mine), 4.0, atol=0.51)
    starts = np.array([offsets[cut[:, 0] == row].min(axis=0) for row in range(30)])
    assert starts.std(axis=0).min() > 0.5, "the grids miss the pictures at random"


def test_the_true_heading_and_tile_match_best(fitted: list[Trials]) -> None:
    """Turned by its true heading, a picture is most similar to the tiles around its place."""
    run(Pairs(25, margin_m=MARGIN_PX / 2), every_m=2.0)
    for trials in fitted:
        if trials.fov != 360:
            continue
        best = [np.unravel_index(one.argmax(), one.shape) for one in trials.similarities]
        tiles, turns = np.array(best).T
        metres = np.hypot(*((trials.tiles[tiles] - trials.places) * (111_000, 76_000)).T)
        assert (metres < 4).mean() > 0.9
        away = (trials.headings[turns] - trials.true_headings + 180) % 360 - 180
        assert (np.abs(away) < 1).mean() > 0.9
    assert len({len(trials.headings) for trials in fitted}) == 2


def test_a_part_of_the_horizon_is_seen_around_the_heading(fitted: list[Trials]) -> None:
    pairs = Pairs(20, margin_m=0.0)
    _, model = run(pairs)
    batches = len(model.asked) // 8
    columns = (fitted[4].true_headings * WIDTH / 360).round().astype(int)
    for number, trials in enumerate(fitted):
        asked = model.asked[number * batches : (number + 1) * batches]
        views = torch.cat([views for views, _ in asked])
        if trials.fov == 360:
            assert all(seen is None for _, seen in asked)
            continue
        seen = torch.cat([seen for _, seen in asked if seen is not None])
        count = round(trials.fov / 360 * WIDTH)
        assert set(seen.sum(-1).flatten().tolist()) == {count}
        assert not (views * ~seen[:, None]).any(), "black where nothing was seen"
        for row in range(20):
            whole = view(pairs.points[row])
            middle = 0 if trials.heading_known else int(columns[row])
            expected = whole.roll(-middle, -1)
            assert torch.equal(views[row], expected * seen[row])
            # North is in the middle column: the picture's own middle is that many columns clockwise of it.
            centre = WIDTH // 2 + (int(columns[row]) if trials.heading_known else 0)
            shown = sorted((np.flatnonzero(seen[row, 0].numpy()) - centre + WIDTH // 2) % WIDTH)
            assert shown == list(range(shown[0], shown[0] + count))
            assert abs(shown[0] + (count - 1) / 2 - WIDTH / 2) <= 1


def test_without_a_margin_training_tiles_are_searched_as_well(fitted: list[Trials]) -> None:
    pairs, others = Pairs(25, margin_m=0.0), Pairs(40, margin_m=0.0, seed=2, split="train")
    pairs.latlon[3] = np.nan
    found, _ = run(pairs, others)
    trials = fitted[0]
    assert not trials.dense
    assert found.spacing_m is None
    assert found.tiles == len(trials.tiles) == 24 + 40
    np.testing.assert_array_equal(trials.tiles[24:], others.latlon)
    assert trials.similarities.shape == (24, 64, 1)
    np.testing.assert_allclose(trials.similarities[:, range(24), 0].diagonal(), 1, atol=1e-3)


def test_some_of_the_pictures(fitted: list[Trials]) -> None:
    found, _ = run(Pairs(60, margin_m=0.0), pictures=20)
    assert found.tiles == 60
    assert all(len(trials.places) == 20 for trials in fitted)


def test_the_same_seed_gives_the_same_calibration(fitted: list[Trials]) -> None:
    first, second, third = (run(Pairs(20, margin_m=8.0), seed=seed)[0] for seed in (0, 0, 5))
    assert first == second
    assert len(fitted) == 24
    assert not np.array_equal(fitted[4].true_headings, fitted[20].true_headings)
    assert third.checkpoint == "ab"


def test_what_cannot_be_calibrated_is_named() -> None:
    pairs = Pairs(30, margin_m=0.0)
    with pytest.raises(InputError, match=r"^pictures=19: expected at least 20"):
        run(pairs, pictures=19)
    for every_m in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match=f"^every_m={every_m:g}: expected metres above 0"):
            run(pairs, every_m=every_m)
    pairs.latlon[:15] = np.nan
    with pytest.raises(DatasetError, match=r"^data/val: 15 pictures with a position are too few"):
        run(pairs)
    pairs.width = 99
    with pytest.raises(DatasetError, match=r"^data/val has images of 99 x 4 pixels, the model takes 24 x 4"):
        run(pairs)


class Photographs(Pairs):
    """Pictures that show seven columns of the horizon, around its ends."""

    SHOWN = (21, 22, 23, 0, 1, 2, 3)

    def __getitem__(self, row: int) -> Sample:
        sample, seen = super().__getitem__(row), torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
        seen[:, list(self.SHOWN)] = True
        return Sample(sample.polar, sample.street * seen, row, seen)


def test_photographs_are_asked_with_what_they_show(fitted: list[Trials]) -> None:
    pairs = Photographs(20, margin_m=0.0)
    _, model = run(pairs)
    batches = len(model.asked) // 8
    for number, trials in enumerate(fitted):
        asked = model.asked[number * batches : (number + 1) * batches]
        views = torch.cat([views for views, _ in asked])
        seen = torch.cat([seen for _, seen in asked if seen is not None])
        count = min(len(Photographs.SHOWN), round(trials.fov / 360 * WIDTH))
        assert set(seen.sum(-1).flatten().tolist()) == {count}
        for row in range(20):
            turned = round(float(trials.true_headings[row]) * WIDTH / 360)
            assert torch.equal(views[row], view(pairs.points[row]).roll(-turned, -1) * seen[row])
            own = set(((seen[row, 0].nonzero()[:, 0] + turned) % WIDTH).tolist())
            assert own <= set(Photographs.SHOWN)
            if not trials.heading_known:
                assert abs(float(seen[row, 0].nonzero().double().mean()) - (WIDTH - 1) / 2) <= 0.5

"""Variations of the pairs in training: what is drawn, and what becomes of a batch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from s2s_ray.config import AugmentationConfig, load_config
from s2s_ray.data.augmentation import Draw, Draws, draw, query_views, reference_views
from s2s_ray.data.batch import Batch
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.prepare import prepare
from s2s_ray.data.sampler import GlobalBatchSampler
from s2s_ray.data.schema import TileSize
from s2s_ray.errors import ConfigError
from s2s_ray.geo.polar import polar_transform
from s2s_ray.geo.prepare import prepare_satellite
from tests.support.random_source import prepare_random

if TYPE_CHECKING:
    from tests.support.pair_folder import PairFolder

WIDTH = 40
EVERYTHING = AugmentationConfig(
    fov=(60, 300), fov_probability=0.7, fov_epochs=4, offcentre_m=6.0, rotate=0.5, heading_noise=20.0
)
STILL = Draw(mirrored=False, turned=0, noise=0, first=0, shown=WIDTH, east_m=0.0, north_m=0.0)


def drawn(config: AugmentationConfig, count: int = 2000, *, epoch: int = 9, flip: float = 0.5) -> list[Draw]:
    return [draw(config, flip, 360, seed=3, epoch=epoch, id=f"pair/{k}") for k in range(count)]


class TestDraws:
    def test_nothing_varies_by_default_but_the_mirroring_that_there_always_was(self) -> None:
        assert not AugmentationConfig().active
        for k, found in enumerate(drawn(AugmentationConfig(), 200)):
            digest = hashlib.blake2b(f"3/9/pair/{k}".encode(), digest_size=8).digest()
            mirrored = int.from_bytes(digest, "big") / 2**64 < 0.5
            assert found == Draw(mirrored, 0, 0, found.first, 360, 0.0, 0.0)

    def test_they_depend_on_seed_epoch_and_id_alone(self) -> None:
        assert drawn(EVERYTHING, 50) == drawn(EVERYTHING, 50)
        first = draw(EVERYTHING, 0.5, 360, seed=3, epoch=9, id="a")
        others = [(4, 9, "a"), (3, 8, "a"), (3, 9, "b")]
        assert all(draw(EVERYTHING, 0.5, 360, seed=s, epoch=e, id=i) != first for s, e, i in others)

    def test_one_setting_leaves_what_another_draws(self) -> None:
        less = EVERYTHING.model_copy(update={"heading_noise": 0.0, "rotate": 0.0})
        for one, other in zip(drawn(EVERYTHING, 100), drawn(less, 100), strict=True):
            assert other == Draw(**{**asdict(one), "noise": 0, "turned": 0})

    def test_fields_of_view_shrink_over_the_epochs(self) -> None:
        for epoch, (smallest, largest) in {0: (360, 360), 1: (285, 345), 4: (60, 300), 50: (60, 300)}.items():
            found = [one.shown for one in drawn(EVERYTHING, epoch=epoch)]
            parts = [shown for shown in found if shown < 360]
            if epoch:
                assert abs(len(parts) / len(found) - 0.7) < 0.05
                assert smallest <= min(parts) < smallest + 10
                assert largest - 10 < max(parts) <= largest
            else:
                assert not parts

    def test_distances_fill_a_disc_evenly_and_angles_their_range(self) -> None:
        found = drawn(EVERYTHING)
        distances = np.hypot([one.east_m for one in found], [one.north_m for one in found])
        assert distances.max() <= 6.0
        for part in (0.25, 0.5, 0.75):
            assert abs((distances < 6.0 * math.sqrt(part)).mean() - part) < 0.04
        assert abs(np.mean([one.east_m for one in found])) < 0.25
        assert abs(np.mean([one.north_m for one in found])) < 0.25
        noise = np.array([one.noise for one in found])
        assert (noise.min(), noise.max()) == (-20, 20)
        assert abs(noise.mean()) < 1
        turned = np.array([one.turned for one in found])
        assert abs((turned > 0).mean() - 0.5) < 0.05
        assert turned.max() > 350


class TestQueries:
    def test_they_are_rolled_and_partly_unseen(self) -> None:
        rng = np.random.default_rng(0)
        street = torch.from_numpy(rng.integers(1, 256, (3, 3, 4, WIDTH), dtype=np.uint8))
        seen = torch.from_numpy(rng.random((3, 4, WIDTH)) < 0.8)
        noises, firsts, counts = (2, -3, 0), (5, 35, 0), (7, 12, WIDTH)
        draws = [
            Draw(False, 0, noise, first, shown, 0.0, 0.0)
            for noise, first, shown in zip(noises, firsts, counts, strict=True)
        ]
        for mask in (None, seen):
            found = query_views(street, mask, Draws.of(draws))
            for k, one in enumerate(draws):
                for column in range(WIDTH):
                    source = (column - one.noise) % WIDTH
                    inside = (column - one.first) % WIDTH < one.shown
                    visible = torch.full((4,), inside) & (True if mask is None else mask[k, :, source])
                    assert torch.equal(found.seen[k, :, column], visible)
                    assert torch.equal(found.street[k, :, :, column], street[k, :, :, source] * visible)

    def test_without_a_draw_what_the_data_set_marks_is_unseen(self) -> None:
        street = torch.full((2, 3, 4, WIDTH), 9, dtype=torch.uint8)
        seen = torch.zeros((2, 4, WIDTH), dtype=torch.bool)
        seen[0, 1, 2] = True
        assert query_views(street, None, None).seen.all()
        found = query_views(street, seen, None)
        assert found.street.sum() == 27
        assert torch.equal(found.seen, seen)

    def test_no_pairs(self) -> None:
        found = query_views(torch.zeros((0, 3, 4, WIDTH), dtype=torch.uint8), None, Draws.of([]))
        assert found.street.shape == (0, 3, 4, WIDTH)
        assert found.seen.shape == (0, 4, WIDTH)


def smooth_tile(side: int, seed: int) -> np.ndarray:
    """A tile without sharp edges, so that a rounding of a position changes a pixel little."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    waves = [np.sin(a * x + b * y + c) for a, b, c in rng.uniform(0.05, 0.35, (6, 3)) * (1, 1, 10)]
    planes = [np.tensordot(rng.normal(size=6), waves, 1) for _ in range(3)]
    return np.stack([(plane - plane.min()) / np.ptp(plane) * 255 for plane in planes], -1).astype(np.uint8)


class TestReferences:
    def test_a_reference_is_the_shifted_tile_prepared(self) -> None:
        side, margin, height, width = 64, 12, 16, 48
        size = TileSize(32.0, side)
        cases = [(0, 0, False, 0), (12, -12, False, 0), (-7, 3, True, 0), (5, 9, False, 31), (-12, -1, True, 11)]
        wide = [smooth_tile(side + 2 * margin, k) for k in range(len(cases))]
        draws = [Draw(mirrored, turned, 0, 0, width, east / 2, north / 2) for east, north, mirrored, turned in cases]
        tiles = torch.from_numpy(np.stack(wide)).permute(0, 3, 1, 2)
        found = reference_views(tiles, size, height, width, Draws.of(draws))
        assert found.dtype == torch.uint8
        for k, (east, north, mirrored, turned) in enumerate(cases):
            row, column = margin - north, margin + east
            shifted = prepare_satellite(wide[k][row : row + side, column : column + side], height, width)
            expected = shifted.flip(-1) if mirrored else shifted
            difference = (found[k].int() - expected.roll(turned, -1).int()).abs()
            assert difference.max() <= 1  # the same to rounding
            assert (difference > 0).float().mean() < 0.01

    def test_a_centre_between_pixels(self) -> None:
        side, margin, height, width = 24, 5, 6, 10
        wide = smooth_tile(side + 2 * margin, 1).astype(np.float64)
        east, north = 1.3, -2.45  # pixels
        offsets = Draws.of([Draw(False, 0, 0, 0, width, east / 2, north / 2)])
        tiles = torch.from_numpy(wide.astype(np.uint8)).permute(2, 0, 1)[None]
        found = reference_views(tiles, TileSize(side / 2, side), height, width, offsets)[0]
        for i in range(height):
            for j in range(width):
                radius, angle = side / (2 * height) * (height - 1 - i), 2 * math.pi * j / width
                y = side / 2 + radius * math.cos(angle) + margin - north
                x = side / 2 - radius * math.sin(angle) + margin + east
                r, c = int(y), int(x)
                top = wide[r, c] * (c + 1 - x) + wide[r, c + 1] * (x - c)
                bottom = wide[r + 1, c] * (c + 1 - x) + wide[r + 1, c + 1] * (x - c)
                assert found[:, i, j].numpy() == pytest.approx(top * (r + 1 - y) + bottom * (y - r), abs=0.52)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data set of random pairs with a margin of 8 m, 4 pixels, around tiles of 64 m."""
    return prepare_random(tmp_path_factory.mktemp("augmentation"), 8).data.uri


def same(one: Batch, other: Batch) -> bool:
    parts: list[Callable[[Batch], Tensor]] = [lambda b: b.polar, lambda b: b.street, lambda b: b.index]
    parts += [lambda b: b.tiles if b.tiles is not None else torch.zeros(0)]
    drawn = (asdict(batch.draws) if batch.draws is not None else {} for batch in (one, other))
    return all(torch.equal(part(one), part(other)) for part in parts) and all(
        torch.equal(a, b) for a, b in zip(*(values.values() for values in drawn), strict=True)
    )


class TestDataSet:
    def test_both_images_of_a_pair_are_turned_alike(self, uri: str) -> None:
        plain = PairDataset(uri, "train")
        dataset = PairDataset(uri, "train", flip=0.5, augmentation=AugmentationConfig(rotate=1.0))
        turned = []
        for index in range(len(dataset)):
            sample, expected = dataset[2, index], plain[index]
            assert sample.draw is not None
            turned.append(sample.draw.turned)
            for one, other in ((sample.polar, expected.polar), (sample.street, expected.street)):
                mirrored = other.flip(-1) if sample.draw.mirrored else other
                assert torch.equal(one, torch.roll(mirrored, sample.draw.turned, -1))
            assert torch.equal(dataset[index].street, expected.street)  # without an epoch: as it is
        assert len(set(turned)) > 4

    def test_a_reference_around_the_camera_is_the_aligned_tile(self, uri: str) -> None:
        dataset = PairDataset(uri, "train", flip=0.5, augmentation=AugmentationConfig(offcentre_m=8.0, rotate=1.0))
        batch = dataset.collate([dataset[1, k] for k in range(6)])
        assert batch.tiles is not None
        assert batch.tiles.shape == (6, 3, 40, 40)
        assert batch.draws is not None
        found = reference_views(batch.tiles, dataset.tile_size, 32, 40, batch.draws)
        assert (found.float() - batch.polar.float()).abs().mean() > 2
        centred = Draws.of([Draw(**{**asdict(dataset[1, k].draw), "east_m": 0.0, "north_m": 0.0}) for k in range(6)])  # type: ignore[arg-type]
        still = reference_views(batch.tiles, dataset.tile_size, 32, 40, centred)
        # but for the outermost rows, where the aligned tile ends and the one with a margin goes on
        assert (still.int() - batch.polar.int())[:, :, 2:].abs().max() <= 1

    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    @pytest.mark.parametrize("workers", [0, 2])
    def test_batches_do_not_depend_on_the_processes_that_load_them(self, uri: str, workers: int) -> None:
        dataset = PairDataset(uri, "train", flip=0.5, seed=1, augmentation=EVERYTHING)
        sampler = GlobalBatchSampler(dataset.shard_sizes, seed=1, window=2, batch=5, epoch=3)
        loader: DataLoader[Batch] = DataLoader(
            dataset,  # type: ignore[arg-type]
            batch_sampler=sampler,
            collate_fn=dataset.collate,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
        )
        expected = [dataset.collate([dataset[key] for key in reversed(part)]) for part in sampler]
        backward = [
            Batch(
                batch.polar.flip(0),
                batch.street.flip(0),
                batch.index.flip(0),
                None,
                None if batch.tiles is None else batch.tiles.flip(0),
                None if batch.draws is None else batch.draws.each(lambda part: part.flip(0)),
            )
            for batch in expected
        ]
        assert all(same(one, other) for one, other in zip(loader, backward, strict=True))

    def test_an_empty_share_has_all_parts(self, uri: str) -> None:
        dataset = PairDataset(uri, "train", augmentation=EVERYTHING)
        batch = dataset.collate([]).to("cpu")
        assert batch.tiles is not None
        assert batch.tiles.shape == (0, 3, 40, 40)
        assert batch.draws is not None
        assert len(batch.draws.turned) == 0
        assert reference_views(batch.tiles, dataset.tile_size, 32, 40, batch.draws).shape == (0, 3, 32, 40)
        assert PairDataset(uri, "train").collate([]).draws is None

    def test_a_centre_beyond_the_margin_is_refused(self, uri: str, pairs: PairFolder, tmp_path: Path) -> None:
        wanted = AugmentationConfig(offcentre_m=8.5)
        with pytest.raises(ConfigError, match=r"augmentation.offcentre_m=8.5 is more than the margin .*, 8 m: prepare"):
            PairDataset(uri, "train", augmentation=wanted)
        for k, split in enumerate(("train", "train", "val", "test")):
            pairs.add(str(k), split)
        prepare(pairs.config(tmp_path / "set", keep_tiles=True))
        with pytest.raises(ConfigError, match=r"offcentre_m=8.5 is more than the margin of .*, 0 m"):
            PairDataset(str(tmp_path / "set"), "train", augmentation=wanted)


def test_the_middle_of_a_tile_is_as_the_polar_transform_has_it() -> None:
    tiles = torch.from_numpy(smooth_tile(40, 0)).permute(2, 0, 1)[None].double()
    draws = Draws.of([STILL])
    found = reference_views(tiles.to(torch.uint8), TileSize(20.0, 40), 8, WIDTH, draws)
    assert (found[0] - polar_transform(tiles[0], 8, WIDTH)).abs().max() <= 0.51


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("fov=[90,60]", "augmentation.fov.*the smallest field of view must not be above the largest"),
        ("fov=[0,90]", "augmentation.fov.0"),
        ("fov=[90,361]", "augmentation.fov.1"),
        ("rotate=2", "augmentation.rotate"),
        ("offcentre_m=-1", "augmentation.offcentre_m"),
        ("heading_noise=181", "augmentation.heading_noise"),
        ("fov_epochs=-1", "augmentation.fov_epochs"),
    ],
)
def test_settings_out_of_range_are_refused(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("tiny", [f"augmentation.{setting}"])

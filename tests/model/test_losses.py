"""The losses against loops over triplets and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pyproj import Geod
from torch import Tensor

from s2s_ray.config import LossConfig
from s2s_ray.geo.places import Places
from s2s_ray.model.losses import (
    adversarial_loss,
    allowed_negatives,
    info_nce,
    reconstruction_loss,
    retrieval_loss,
    squared_distances,
    triplet_loss,
    turned_info_nce,
)

DOUBLE = torch.float64
NAN = math.nan


def descriptors(batch: int, size: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit descriptors of both views, alike enough that losses are spread over several magnitudes."""
    generator = torch.Generator().manual_seed(seed)
    satellite = torch.randn(batch, size, dtype=DOUBLE, generator=generator)
    street = satellite + torch.randn(batch, size, dtype=DOUBLE, generator=generator)
    return F.normalize(satellite, dim=1), F.normalize(street, dim=1)


def triplets_by_hand(
    satellite: Tensor, street: Tensor, alpha: float, negatives: Tensor | None = None
) -> list[tuple[float, tuple[str, int, int]]]:
    """Every triplet's loss, one by one: (loss, (view of the anchor, its pair, the negative's pair))."""
    views = {"satellite": satellite.tolist(), "street": street.tolist()}
    losses = []
    for anchor_view, other_view in (("satellite", "street"), ("street", "satellite")):
        for i, anchor in enumerate(views[anchor_view]):
            for j, negative in enumerate(views[other_view]):
                if i == j or (negatives is not None and not negatives[i, j]):
                    continue
                positive = views[other_view][i]
                to_positive = sum((a - b) ** 2 for a, b in zip(anchor, positive, strict=True))
                to_negative = sum((a - b) ** 2 for a, b in zip(anchor, negative, strict=True))
                loss = math.log(1 + math.exp(alpha * (to_positive - to_negative)))
                losses.append((loss, (anchor_view, i, j)))
    return losses


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_distances_of_unit_descriptors() -> None:
    satellite, _ = descriptors(4)
    _, street = descriptors(3, seed=1)
    assert squared_distances(satellite, street).shape == (4, 3)
    torch.testing.assert_close(squared_distances(satellite, street), torch.cdist(satellite, street).square())


@pytest.mark.parametrize("batch", [2, 3, 6])
@pytest.mark.parametrize("alpha", [1.0, 10.0])
def test_triplet_loss_is_the_mean_over_every_triplet(batch: int, alpha: float) -> None:
    satellite, street = descriptors(batch)
    losses = [loss for loss, _ in triplets_by_hand(satellite, street, alpha)]
    found = triplet_loss(satellite, street, alpha=alpha)
    assert len(losses) == 2 * batch * (batch - 1)
    assert (found.kept, found.valid) == (len(losses), len(losses))
    assert found.loss.item() == pytest.approx(mean(losses), rel=1e-9)


def test_both_directions_count() -> None:
    """Satellites far apart, streets all alike: only the satellites' anchors have a negative as near as the positive."""
    satellite = torch.eye(3, dtype=DOUBLE)
    street = torch.tensor([[1.0, 0.0, 0.0]] * 3, dtype=DOUBLE)
    anchors_satellite = 6 * math.log(2)
    street_positive = [0.0, 2.0, 2.0]
    anchors_street = sum(
        math.log(1 + math.exp(street_positive[i] - street_positive[j])) for i in range(3) for j in range(3) if i != j
    )
    expected = (anchors_satellite + anchors_street) / 12
    assert triplet_loss(satellite, street, alpha=1.0).loss.item() == pytest.approx(expected)
    assert triplet_loss(street, satellite, alpha=1.0).loss.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("discard", "batch", "kept"),
    [
        (0.0, 5, 40),
        (10.0, 5, 36),
        (10.0, 3, 11),  # 10.8 of 12
        (50.0, 3, 6),
        (90.0, 5, 4),
        (95.0, 5, 2),
        (99.0, 5, 1),
        (99.9999, 5, 1),  # at least one
        (95.0, 2, 1),
        (33.3, 3, 9),  # 8.004
    ],
)
def test_mining_keeps_the_hardest_of_both_directions(discard: float, batch: int, kept: int) -> None:
    satellite, street = descriptors(batch, seed=3)
    losses = sorted((loss for loss, _ in triplets_by_hand(satellite, street, 10.0)), reverse=True)
    found = triplet_loss(satellite, street, alpha=10.0, discard=discard)
    assert (found.kept, found.valid) == (kept, len(losses))
    assert found.loss.item() == pytest.approx(mean(losses[:kept]), rel=1e-9)


@pytest.mark.parametrize("percentage", [1, 5, 7, 10, 20, 29, 30, 55, 57, 58, 80, 90, 95, 99])
def test_a_percentage_that_comes_out_whole_keeps_exactly_the_rest(percentage: int) -> None:
    """Rounding of 1 - p/100 must not keep an additional triplet."""
    batch = 25  # 1200 triplets, so that every percentage is a whole number of them
    satellite, street = descriptors(batch)
    assert triplet_loss(satellite, street, alpha=10.0, discard=float(percentage)).kept == 12 * (100 - percentage)


def test_mining_among_ties_keeps_its_number() -> None:
    satellite = street = torch.tensor([[1.0, 0.0]] * 4, dtype=DOUBLE)
    found = triplet_loss(satellite, street, alpha=10.0, discard=90.0)
    assert (found.kept, found.valid) == (3, 24)
    assert found.loss.item() == pytest.approx(math.log(2))


def test_mining_sends_no_gradient_through_the_discarded() -> None:
    satellite, street = descriptors(4, seed=5)
    hardest = max(triplets_by_hand(satellite, street, 10.0))[1]
    satellite.requires_grad_()
    street.requires_grad_()
    triplet_loss(satellite, street, alpha=10.0, discard=99.0).loss.backward()
    view, anchor, negative = hardest
    moved = {
        "satellite": {i for i in range(4) if satellite.grad[i].abs().max() > 0},
        "street": {i for i in range(4) if street.grad[i].abs().max() > 0},
    }
    other = "street" if view == "satellite" else "satellite"
    assert moved == {view: {anchor}, other: {anchor, negative}}


ASYMMETRIC = torch.tensor(
    [
        [False, True, False, True],
        [True, True, True, False],
        [True, False, True, True],
        [False, False, True, False],
    ]
)


@pytest.mark.parametrize("discard", [0.0, 50.0, 90.0])
def test_forbidden_negatives_neither_count_nor_take_a_place(discard: float) -> None:
    satellite, street = descriptors(4, seed=7)
    losses = sorted((x for x, _ in triplets_by_hand(satellite, street, 10.0, ASYMMETRIC)), reverse=True)
    kept = max(1, math.ceil(len(losses) * (100 - discard) / 100))
    found = triplet_loss(satellite, street, alpha=10.0, discard=discard, negatives=ASYMMETRIC)
    assert (found.kept, found.valid) == (kept, len(losses)) == (kept, 14)
    assert found.loss.item() == pytest.approx(mean(losses[:kept]), rel=1e-9)
    assert found.loss.item() != pytest.approx(triplet_loss(satellite, street, alpha=10.0, discard=discard).loss.item())


def test_the_mask_is_left_as_it_was() -> None:
    mask = ASYMMETRIC.clone()
    triplet_loss(*descriptors(4), alpha=10.0, negatives=mask)
    assert torch.equal(mask, ASYMMETRIC)


@pytest.mark.parametrize(("batch", "allowed"), [(1, True), (3, False)])
def test_without_a_valid_triplet_the_loss_is_zero(batch: int, allowed: bool) -> None:
    satellite, street = descriptors(batch)
    satellite.requires_grad_()
    negatives = torch.full((batch, batch), allowed)
    found = triplet_loss(satellite, street, alpha=10.0, discard=50.0, negatives=negatives)
    assert (found.loss.item(), found.kept, found.valid) == (0.0, 0, 0)
    found.loss.backward()
    assert satellite.grad.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_a_sharp_loss_does_not_overflow(dtype: torch.dtype) -> None:
    satellite = torch.eye(2, dtype=dtype).requires_grad_()
    wrong = torch.eye(2, dtype=dtype).flip(0)
    found = triplet_loss(satellite, wrong, alpha=1e4)
    assert found.loss.item() == pytest.approx(2e4)  # log(1 + exp(x)) = x
    found.loss.backward()
    assert satellite.grad.isfinite().all()
    assert triplet_loss(satellite, torch.eye(2, dtype=dtype), alpha=1e4).loss.item() == 0.0


@pytest.mark.parametrize("discard", [0.0, 60.0])
@pytest.mark.parametrize("negatives", [None, ASYMMETRIC])
def test_gradients_of_the_triplet_loss(discard: float, negatives: Tensor | None) -> None:
    satellite, street = descriptors(4, seed=11)

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return triplet_loss(a, b, alpha=3.0, discard=discard, negatives=negatives).loss

    assert torch.autograd.gradcheck(loss, (satellite.requires_grad_(), street.requires_grad_()))


def info_nce_by_hand(
    satellite: Tensor, street: Tensor, scale: float, smoothing: float, negatives: Tensor | None
) -> list[float]:
    """The cross-entropy of every anchor that has a negative, one by one."""
    losses = []
    for anchors, others in ((satellite, street), (street, satellite)):
        for i, anchor in enumerate(anchors.tolist()):
            chosen = [j for j in range(len(others)) if j == i or negatives is None or negatives[i, j]]
            if len(chosen) == 1:
                continue
            odds = [
                math.exp(scale * sum(a * b for a, b in zip(anchor, others[j].tolist(), strict=True))) for j in chosen
            ]
            share = smoothing / len(chosen)
            losses.append(
                -sum(
                    (share + (1 - smoothing) * (j == i)) * math.log(one / sum(odds))
                    for j, one in zip(chosen, odds, strict=True)
                )
            )
    return losses


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("negatives", [None, ASYMMETRIC])
def test_info_nce_is_the_mean_cross_entropy_of_both_directions(smoothing: float, negatives: Tensor | None) -> None:
    satellite, street = descriptors(4, seed=13)
    losses = info_nce_by_hand(satellite, street, 10.0, smoothing, negatives)
    found = info_nce(satellite, street, scale=10.0, label_smoothing=smoothing, negatives=negatives)
    assert len(losses) == 8
    assert found.loss.item() == pytest.approx(mean(losses), rel=1e-9)
    assert (found.kept, found.valid) == ((24, 24) if negatives is None else (14, 14))


def test_info_nce_is_pytorchs_cross_entropy() -> None:
    satellite, street = descriptors(5)
    logits, own = 7.0 * satellite @ street.T, torch.arange(5)
    expected = (
        F.cross_entropy(logits, own, label_smoothing=0.2) + F.cross_entropy(logits.T, own, label_smoothing=0.2)
    ) / 2
    torch.testing.assert_close(info_nce(satellite, street, scale=7.0, label_smoothing=0.2).loss, expected)


def test_an_anchor_without_a_negative_does_not_count() -> None:
    satellite, street = descriptors(4, seed=17)
    negatives = torch.ones(4, 4, dtype=torch.bool)
    negatives[2] = False
    found = info_nce(satellite.requires_grad_(), street, scale=10.0, label_smoothing=0.1, negatives=negatives)
    losses = info_nce_by_hand(satellite.detach(), street, 10.0, 0.1, negatives)
    assert (len(losses), found.valid) == (6, 18)
    assert found.loss.item() == pytest.approx(mean(losses), rel=1e-9)
    found.loss.backward()
    assert satellite.grad.isfinite().all()


def turned_by_hand(
    satellite: Tensor, turned: Tensor, scale: float, smoothing: float, negatives: Tensor | None
) -> list[float]:
    """The cross-entropy of every street view over tiles and headings, one by one."""
    losses, headings = [], turned.shape[1]
    for i in range(len(satellite)):
        tiles = [j for j in range(len(satellite)) if j == i or negatives is None or negatives[i, j]]
        if len(tiles) == 1:
            continue
        odds = {
            (j, t): math.exp(scale * float(turned[i, t] @ satellite[j]))
            for j in tiles
            for t in range(headings)
            if j != i or t not in (1, headings - 1)
        }
        total = sum(odds.values())
        of_tiles = [math.log(sum(one for (k, _), one in odds.items() if k == j) / total) for j in tiles]
        losses.append(-(1 - smoothing) * math.log(odds[i, 0] / total) - smoothing * mean(of_tiles))
    return losses


SEPARATE = torch.tensor(
    [[True, True, False, True], [True] * 4, [False] * 4, [False, True, True, True]]
)  # the third has no negative


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("negatives", [None, ASYMMETRIC, SEPARATE])
def test_turned_info_nce_chooses_tile_and_heading(smoothing: float, negatives: Tensor | None) -> None:
    satellite, _ = descriptors(4, seed=13)
    turned = F.normalize(torch.randn(4, 5, 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(1)), dim=2)
    turned.requires_grad_()
    losses = turned_by_hand(satellite, turned.detach(), 6.0, smoothing, negatives)
    found = turned_info_nce(satellite, turned, scale=6.0, label_smoothing=smoothing, negatives=negatives)
    assert len(losses) == (3 if negatives is SEPARATE else 4)
    assert found.item() == pytest.approx(mean(losses), rel=1e-9)

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return turned_info_nce(a, b, scale=6.0, label_smoothing=smoothing, negatives=negatives)

    assert torch.autograd.gradcheck(loss, (satellite.requires_grad_(), turned))


def test_without_negatives_turned_info_nce_is_zero() -> None:
    satellite, street = descriptors(1)
    turned = street[:, None].repeat(1, 4, 1).requires_grad_()
    found = turned_info_nce(satellite, turned, scale=10.0, label_smoothing=0.1)
    found.backward()
    assert found.item() == 0.0
    assert turned.grad.eq(0).all()


@pytest.mark.parametrize(("batch", "allowed"), [(1, True), (3, False)])
def test_without_negatives_info_nce_is_zero(batch: int, allowed: bool) -> None:
    satellite, street = descriptors(batch)
    found = info_nce(
        satellite.requires_grad_(),
        street,
        scale=10.0,
        label_smoothing=0.1,
        negatives=torch.full((batch, batch), allowed),
    )
    assert (found.loss.item(), found.kept, found.valid) == (0.0, 0, 0)
    found.loss.backward()
    assert satellite.grad.eq(0).all()


@pytest.mark.parametrize("negatives", [None, ASYMMETRIC])
def test_gradients_of_info_nce(negatives: Tensor | None) -> None:
    satellite, street = descriptors(4, seed=11)

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return info_nce(a, b, scale=5.0, label_smoothing=0.1, negatives=negatives).loss

    assert torch.autograd.gradcheck(loss, (satellite.requires_grad_(), street.requires_grad_()))


def test_a_sharp_info_nce_does_not_overflow() -> None:
    satellite = torch.eye(2).requires_grad_()
    found = info_nce(satellite, torch.eye(2).flip(0), scale=1e4)
    assert found.loss.item() == pytest.approx(1e4)
    found.loss.backward()
    assert satellite.grad.isfinite().all()


def test_the_configuration_chooses_the_retrieval_loss() -> None:
    satellite, street = descriptors(4, seed=3)
    triplets = retrieval_loss(LossConfig(alpha=3.0), satellite, street, discard=50.0, negatives=ASYMMETRIC)
    assert triplets == triplet_loss(satellite, street, alpha=3.0, discard=50.0, negatives=ASYMMETRIC)
    config = LossConfig(retrieval="infonce", scale=20.0, label_smoothing=0.2)
    found = retrieval_loss(config, satellite, street, negatives=ASYMMETRIC)
    plain = info_nce(satellite, street, scale=20.0, label_smoothing=0.2, negatives=ASYMMETRIC)
    assert found == plain

    def turn(street: Tensor) -> Tensor:
        return torch.stack([street.roll(column, 1) for column in range(5)], 1)

    mixed = retrieval_loss(
        config.model_copy(update={"turned": 0.25}), satellite, street, negatives=ASYMMETRIC, turn=turn
    )
    turned = turned_info_nce(satellite, turn(street), scale=20.0, label_smoothing=0.2, negatives=ASYMMETRIC)
    torch.testing.assert_close(mixed.loss, 0.75 * plain.loss + 0.25 * turned)
    assert mixed[1:] == plain[1:]


def test_near_pairs_are_not_negatives() -> None:
    """Northings of 5e6 m that differ by decimetres, which single precision cannot distinguish."""
    positions = torch.tensor(
        [
            [500_000.0, 5_400_000.0],
            [500_000.0, 5_400_024.9],  # 24.9 m from the first
            [500_000.0, 5_400_025.1],  # 25.1 m from it
            [500_015.0, 5_400_020.0],  # exactly 25 m from it
            [NAN, NAN],
            [500_000.0, NAN],
        ],
        dtype=DOUBLE,
    )
    zones = torch.tensor([32, 32, 32, 32, 32, 32])
    allowed = allowed_negatives(positions, zones, 25.0)
    assert allowed.dtype == torch.bool
    expected = torch.ones(6, 6, dtype=torch.bool)
    for i, j in [(0, 1), (1, 2), (1, 3), (2, 3)]:
        expected[i, j] = expected[j, i] = False
    for i in range(4):
        expected[i, i] = False  # never its own negative; the loss leaves the diagonal out anyhow
    off_diagonal = ~torch.eye(6, dtype=torch.bool)
    assert torch.equal(allowed[off_diagonal], expected[off_diagonal])


def test_zones_are_never_compared() -> None:
    positions = torch.tensor([[500_000.0, 5_400_000.0]] * 4, dtype=DOUBLE)
    allowed = allowed_negatives(positions, torch.tensor([32, 33, 32, 0]), 25.0)
    near = [(i, j) for i in range(4) for j in range(4) if i != j and not allowed[i, j]]
    assert near == [(0, 2), (2, 0)]


@pytest.mark.parametrize(("latitude", "longitude"), [(48.1, 12.0), (0.0, 12.0), (-17.0, 180.0), (90.0, 0.0)])
def test_near_pairs_on_both_sides_of_a_border_are_not_negatives(latitude: float, longitude: float) -> None:
    """Places 7 and 30 m away from a border of UTM zones, the equator, the date line and the pole."""
    wgs84 = Geod(ellps="WGS84")
    rows = []
    for azimuth, metres in ((0, 0), (45, 7), (225, 7), (225, 30)):
        east, north, _ = wgs84.fwd(longitude, latitude, azimuth, metres)
        rows.append((north, east))
    places = Places.on_ellipsoid(np.array(rows))
    points, frames = torch.from_numpy(places.points), torch.from_numpy(places.frames)
    allowed = allowed_negatives(points, frames, places.straight_m(25.0))
    assert [(i, j) for i in range(4) for j in range(i + 1, 4) if allowed[i, j]] == [(0, 3), (1, 3)]


def test_small_distances_between_large_coordinates() -> None:
    """Positions 3 cm apart: through a matrix product the squares of northings would cancel to noise."""
    steps = torch.arange(6, dtype=DOUBLE)[:, None] * torch.tensor([[0.0, 0.03]], dtype=DOUBLE)
    positions = torch.tensor([[512_345.678, 5_412_345.678]], dtype=DOUBLE) + steps
    zones = torch.ones(6, dtype=torch.int64)
    apart = (torch.arange(6)[:, None] - torch.arange(6)).abs()
    assert torch.equal(allowed_negatives(positions, zones, 0.02), apart >= 1)
    assert torch.equal(allowed_negatives(positions, zones, 0.04), apart >= 2)


def test_near_pairs_drop_out_after_the_loss() -> None:
    """The released code zeroes such a distance before the loss, where the triplet still adds log 2."""
    satellite, street = descriptors(3, seed=2)
    positions = torch.tensor([[0.0, 0.0], [3.0, 4.0], [100.0, 0.0]], dtype=DOUBLE)
    negatives = allowed_negatives(positions, torch.tensor([1, 1, 1]), 6.0)
    far = [(0, 2), (1, 2), (2, 0), (2, 1)]
    losses = [loss for loss, (_, i, j) in triplets_by_hand(satellite, street, 10.0) if (i, j) in far]
    found = triplet_loss(satellite, street, alpha=10.0, negatives=negatives)
    assert (found.valid, found.loss.item()) == (8, pytest.approx(mean(losses), rel=1e-9))


@pytest.mark.parametrize("label", [0.0, 0.9, 1.0])
def test_adversarial_loss_is_the_cross_entropy(label: float) -> None:
    logits = torch.randn(3, 1, 4, 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    probabilities = [1 / (1 + math.exp(-logit)) for logit in logits.flatten().tolist()]
    expected = -mean([label * math.log(p) + (1 - label) * math.log(1 - p) for p in probabilities])
    assert adversarial_loss(logits, label, 60).item() == pytest.approx(expected, rel=1e-12)


def test_adversarial_loss_of_sure_logits_is_finite() -> None:
    assert adversarial_loss(torch.full((1, 1, 2, 3), 1e4), 0.0, 6).item() == pytest.approx(1e4)


def test_reconstruction_loss_is_the_mean_absolute_difference() -> None:
    generator = torch.Generator().manual_seed(0)
    fake, real = (torch.rand(2, 3, 4, 5, dtype=DOUBLE, generator=generator) for _ in range(2))
    differences = [abs(a - b) for a, b in zip(fake.flatten().tolist(), real.flatten().tolist(), strict=True)]
    assert reconstruction_loss(fake, real, 120).item() == pytest.approx(mean(differences), rel=1e-12)


def test_the_shares_of_two_workers_add_up() -> None:
    logits = torch.randn(5, 1, 2, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    images = torch.randn(2, 5, 3, 4, 6, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    shares = [slice(0, 3), slice(3, 5)]
    parts = [adversarial_loss(logits[share], 0.9, logits.numel()) for share in shares]
    torch.testing.assert_close(sum(parts), adversarial_loss(logits, 0.9, logits.numel()))
    count = images[0].numel()
    parts = [reconstruction_loss(images[0, share], images[1, share], count) for share in shares]
    torch.testing.assert_close(sum(parts), reconstruction_loss(*images, count))

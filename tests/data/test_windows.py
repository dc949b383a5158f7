"""Windows within what pictures show, in training and under the protocols of evaluation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from s2s_ray.config.protocol import Protocol
from s2s_ray.data.augmentation import Draw, Draws, query_views
from s2s_ray.data.windows import extent, window
from s2s_ray.evaluation.asked import asked

WIDTH = 36


def part(first: int, columns: int) -> Tensor:
    """Return a picture's mask that shows some columns, 1 H W."""
    seen = torch.zeros(1, 2, WIDTH, dtype=torch.bool)
    seen[..., [column % WIDTH for column in range(first, first + columns)]] = True
    return seen


def shown(seen: Tensor) -> set[int]:
    return set(seen[0].any(0).nonzero()[:, 0].tolist())


@pytest.mark.parametrize("first", [0, 5, 30, 35])
@pytest.mark.parametrize("columns", [1, 7, 35])
def test_the_arc_that_is_seen(first: int, columns: int) -> None:
    start, length = extent(part(first, columns))
    assert (start.item(), length.item()) == (first, columns)


def test_all_or_nothing_is_the_whole_horizon() -> None:
    for seen in (part(0, WIDTH), part(0, 0)):
        assert [value.item() for value in extent(seen)] == [0, WIDTH]
    assert [value.item() for value in extent(part(3, 2) | part(8, 2))] == [3, 7]


def test_a_window_lies_within_what_is_seen() -> None:
    found = set()
    for drawn in range(WIDTH):
        first, columns = window(part(32, 9), torch.tensor([drawn]), torch.tensor([5]))
        assert columns.item() == 5
        found.add(first.item())
    assert found == {32, 33, 34, 35, 0}  # every place within it
    first, columns = window(part(32, 9), torch.tensor([3]), torch.tensor([20]))
    assert (first.item(), columns.item()) == (32, 9)
    whole = torch.ones(1, 2, WIDTH, dtype=torch.bool)
    assert [v.item() for v in window(whole, torch.tensor([33]), torch.tensor([5]))] == [33, 5]


def test_a_window_between_two_parts_shows_both() -> None:
    for drawn in range(WIDTH):
        seen = part(0, 2) | part(12, 2)
        first, columns = window(seen, torch.tensor([drawn]), torch.tensor([3]))
        assert shown(seen & part(int(first), int(columns)))


@pytest.mark.parametrize(("columns", "fov_columns"), [(7, 20), (7, 7), (7, 3), (24, 5)])
def test_training_asks_with_a_part_of_a_photograph(columns: int, fov_columns: int) -> None:
    street = torch.full((1, 3, 2, WIDTH), 200, dtype=torch.uint8)
    for first in range(0, WIDTH, 5):
        for noise in (0, -4):
            one = Draw(False, 0, noise, first, fov_columns, 0.0, 0.0)
            query = query_views(street * part(30, columns)[:, None], part(30, columns), Draws.of([one]))
            assert len(shown(query.seen)) == min(columns, fov_columns)
            assert shown(query.seen) <= shown(part(30 + noise, columns))
            assert torch.equal(query.street[:, 0] > 0, query.seen)


@pytest.mark.parametrize("name", ["heading", "fov=180", "fov=30", "heading+fov=90", "heading+fov=30"])
@pytest.mark.parametrize("columns", [6, 7, 13])
def test_protocols_ask_for_a_part_of_a_photograph(name: str, columns: int) -> None:
    protocol = Protocol.parse(name)
    count = round(protocol.fov / 360 * WIDTH)
    ids = [f"p{k}" for k in range(40)]
    seen = part(28, columns).expand(len(ids), -1, -1)
    street = (1 + torch.arange(WIDTH, dtype=torch.uint8)).expand(len(ids), 3, 2, WIDTH) * seen[:, None]
    query = asked(street, ids, protocol, 0, seen)
    assert query.seen is not None
    assert torch.equal(query.street[:, 0] > 0, query.seen)
    for k in range(len(ids)):
        own = set((query.street[k, 0, 0][query.seen[k, 0]].long() - 1).tolist())
        assert len(own) == min(columns, count)
        assert own <= shown(part(28, columns))
        turned = round(query.headings[k] / 360 * WIDTH)
        at = query.seen[k, 0].nonzero()[:, 0]
        if protocol.heading:  # the picture's own middle is in the middle
            assert at.tolist() == list(range((WIDTH - len(own)) // 2, (WIDTH - len(own)) // 2 + len(own)))
            assert all((at + turned) % WIDTH == query.street[k, 0, 0, at].long() - 1)
        else:
            assert set(at.tolist()) == own
    if columns <= count:
        assert np.all(query.headings == query.headings[0])  # its own

"""Galleries: positions of pictures, colours of frames, and captions."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from s2s_ray.evaluation.galleries import (
    TRUE,
    Match,
    RetrievalRow,
    SynthesisRow,
    evenly_spaced,
    pixels,
    retrieval_gallery,
    rolled_up,
    save,
    synthesis_gallery,
    training_curves,
)
from s2s_ray.geo.images import Pixels
from s2s_ray.geo.polar import polar_transform


def plain(value: int, height: int = 12, width: int = 12) -> Pixels:
    return np.full((height, width, 3), value, np.uint8)


def shown(axes: Axes) -> int:
    """The value of the plain image in these axes."""
    data = axes.images[0].get_array()
    assert data is not None
    return int(data[0, 0, 0])


def frame(axes: Axes) -> str:
    colours = {to_hex(spine.get_edgecolor()) for spine in axes.spines.values()}
    assert len(colours) == 1
    return colours.pop()


def from_the_top(figure: Figure) -> list[list[Axes]]:
    """Axes by row, each row from left to right."""
    rows: dict[float, list[Axes]] = {}
    for axes in figure.axes:
        middle = round(axes.get_position().y0 + axes.get_position().height / 2, 3)
        rows.setdefault(middle, []).append(axes)
    return [sorted(rows[y], key=lambda axes: axes.get_position().x0) for y in sorted(rows, reverse=True)]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Return pairs of texts, and of texts and images, that overlap or leave the page."""
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in figure.texts]
    boxes += [("image", axes.get_window_extent(renderer)) for axes in figure.axes]
    page = figure.bbox
    found = [(name, "page") for name, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > page.x1 or box.y1 > page.y1]
    return found + [
        (name, other)
        for i, (name, box) in enumerate(boxes)
        for other, second in boxes[:i]
        if min(box.x1, second.x1) > max(box.x0, second.x0) and min(box.y1, second.y1) > max(box.y0, second.y0)
    ]


def retrieval_rows() -> Sequence[RetrievalRow]:
    found = [Match(plain(10 + i), correct=i == 0, metres=(0.0, 3.26, 431.7, 9_876.0, 12_345.6)[i]) for i in range(5)]
    missed = [Match(plain(20 + i), correct=False) for i in range(5)]
    several = [Match(plain(30 + i), correct=i in (1, 3), metres=3.0) for i in range(5)]
    return [
        RetrievalRow("first", plain(1, 12, 66), found, 1),
        RetrievalRow("cost$5$-" + "x" * 50, plain(2, 12, 66), missed, 88_123),
        RetrievalRow("third", plain(3, 12, 66), several, 2),
    ]


def test_retrieval_gallery_frames_the_correct_tiles() -> None:
    figure = retrieval_gallery(retrieval_rows(), 92_802)
    rows = from_the_top(figure)
    assert [[shown(axes) for axes in row] for row in rows] == [
        [1, 10, 11, 12, 13, 14],
        [2, 20, 21, 22, 23, 24],
        [3, 30, 31, 32, 33, 34],
    ]
    green = [[shown(axes) for axes in row if frame(axes) == TRUE] for row in rows]
    assert green == [[10], [], [31, 33]]


def test_retrieval_gallery_shows_metres_rank_and_id() -> None:
    figure = retrieval_gallery(retrieval_rows(), 92_802)
    written = texts(figure)
    assert [text for text in written if text.endswith(" m") or text.endswith("km")][:5] == [
        "0.0 m",
        "3.3 m",
        "432 m",
        "9,876 m",
        "12 km",
    ]
    assert "found first" in written
    assert "true tile ranks 88,123 of 92,802" in written
    assert "Closest 5 of 92,802 satellite tiles" in written
    assert "first" in written
    assert overlaps(figure) == []


def test_galleries_with_few_tiles_and_other_shapes_fit_the_page() -> None:
    row = RetrievalRow("a", plain(1, 40, 60), [Match(plain(2), correct=True), Match(plain(3), correct=False)], 1)
    figure = retrieval_gallery([row], 2)
    assert "Closest 2 of 2 satellite tiles" in texts(figure)
    assert overlaps(figure) == []
    assert overlaps(synthesis_gallery([SynthesisRow("a", plain(1), *[plain(2, 40, 60)] * 3)] * 2)) == []


def test_synthesis_gallery_has_its_columns_in_order_and_one_row_of_titles() -> None:
    rows = [SynthesisRow(str(i), plain(i), *(plain(i + k, 14, 77) for k in (10, 20, 30))) for i in range(3)]
    figure = synthesis_gallery(rows)
    assert [[shown(axes) for axes in row] for row in from_the_top(figure)] == [
        [i, 10 + i, 20 + i, 30 + i] for i in range(3)
    ]
    assert texts(figure) == ["Satellite", "Polar", "Synthesised", "Real street view"]
    assert overlaps(figure) == []


def test_images_keep_their_aspect() -> None:
    synthesis = synthesis_gallery([SynthesisRow("a", plain(0), *(plain(1, 14, 77),) * 3)])
    matches = [Match(plain(2), correct=True)]
    streets = (plain(1, 14, 77), plain(1, 40, 60))
    retrieval = retrieval_gallery([RetrievalRow("a", street, matches, 1) for street in streets], 9)
    for axes in [*synthesis.axes, *retrieval.axes]:
        box = axes.get_window_extent()
        height, width = axes.images[0].get_array().shape[:2]  # type: ignore[union-attr]
        assert box.width / box.height == pytest.approx(width / height)


def test_training_curves_plot_the_history() -> None:
    history = [
        {"epoch": e, "r_loss": 1.0 / (e + 1), "d_loss": 0.5, "gan": 0.7, "discard": 90.0 * (e >= 3)} for e in range(5)
    ]
    history[1] |= {"recall_at_1": 0.25, "recall_at_1_percent": 0.5, "gallery": 300}
    history[4] |= {"recall_at_1": 0.75, "recall_at_1_percent": 1.0, "gallery": 300}
    figure = training_curves(history)
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    triplet = panels["Triplet loss (R)"].lines[0]
    assert np.asarray(triplet.get_xdata()).tolist() == [1, 2, 3, 4, 5]
    assert np.asarray(triplet.get_ydata()).tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    recall = panels["Validation recall"]
    curves = {str(line.get_label()): line for line in recall.lines}
    assert np.asarray(curves["R@1"].get_xdata()).tolist() == [2, 5]
    assert np.asarray(curves["R@1%"].get_ydata()).tolist() == [0.5, 1.0]
    assert "R@5" not in curves
    assert not [line for line in panels["L1, weighted (G)"].lines if not str(line.get_label()).startswith("_")]
    assert [text.get_text().strip() for text in recall.texts] == ["mining 90%"]
    assert recall.texts[0].get_position()[0] == 3.5  # between epochs 3 and 4, as they are shown
    assert recall.get_xlabel() == "Epoch (gallery of 300 tiles)"


def test_save_writes_png_and_pdf(tmp_path: Path) -> None:
    figure = synthesis_gallery([SynthesisRow("a", plain(200), *(plain(v, 14, 77) for v in (90, 120, 150)))])
    for name in ("deep/picture.png", "picture.pdf"):
        save(figure, str(tmp_path / name))
    with Image.open(io.BytesIO((tmp_path / "deep" / "picture.png").read_bytes())) as image:
        drawn = np.asarray(image.convert("RGB"))
    assert drawn.shape[1] == 1200
    middle = drawn[drawn.shape[0] // 2 + 10]
    assert [value for value in (200, 90, 120, 150) if (middle == value).all(1).sum() > 50] == [200, 90, 120, 150]
    assert (tmp_path / "picture.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("count", "rows", "chosen"),
    [(300, 4, [37, 112, 187, 262]), (6, 6, [0, 1, 2, 3, 4, 5]), (3, 8, [0, 1, 2]), (10, 1, [5]), (5, 0, [])],
)
def test_rows_are_spread_evenly(count: int, rows: int, chosen: list[int]) -> None:
    assert evenly_spaced(count, rows) == chosen


def test_a_polar_image_rolls_up_to_its_tile() -> None:
    """A smooth tile with another slope along each axis in each colour, so that any turn or mirror would show."""
    size = 64
    down, right = np.mgrid[:size, :size].astype(np.float32)
    tile = np.stack([40 + 2 * down, 40 + 2 * right, 200 - down - right], -1)
    polar = polar_transform(torch.from_numpy(tile).permute(2, 0, 1), size // 2, 256)
    back = rolled_up(polar.permute(1, 2, 0).round().byte().numpy())
    assert back.shape == (size, size, 3)
    inside = np.hypot(down - size // 2, right - size // 2) < size // 2 - 2
    assert np.abs(back.astype(float) - tile)[inside].max() < 4
    assert (back[0, 0] == 255).all()


def test_pixels_takes_both_scales() -> None:
    planes = torch.tensor([-1.0, 0.0, 1.0])[:, None, None].expand(3, 2, 5)
    assert pixels(planes).shape == (2, 5, 3)
    assert pixels(planes)[0, 0].tolist() == [0, 128, 255]
    assert pixels(torch.full((3, 2, 5), 7, dtype=torch.uint8))[1, 4].tolist() == [7, 7, 7]

"""The figures and the page of a run: their contents, and that they can be read."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection
from PIL import Image

from s2s_ray.config import Config, EvaluationConfig, ModelConfig
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.prepare import prepare
from s2s_ray.evaluation.error_map import error_map
from s2s_ray.evaluation.evaluate import evaluate
from s2s_ray.evaluation.figures import draw_figures, save_figures
from s2s_ray.evaluation.galleries import comparison_gallery
from s2s_ray.evaluation.report import report_page
from s2s_ray.geo.places import Places
from s2s_ray.model.checkpoint import save_model
from s2s_ray.model.s2s import S2S

if TYPE_CHECKING:
    from tests.support.pair_folder import PairFolder

SMALL = {"height": 32, "width": 40, "channels": 4, "residual_blocks": 1, "street_blocks": [1, 1, 1], "masks": 2}
HISTORY = [{"epoch": k, "r_loss": 1.0 / (k + 1), "recall_at_1": 0.1 * k, "gallery": 9} for k in range(3)]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, pair_folder: type[PairFolder]) -> Config:
    folder = tmp_path_factory.mktemp("figures")
    pairs = pair_folder(folder / "pairs")
    for split, count in (("train", 3), ("test", 9)):
        for number in range(count):
            pairs.add(f"{split}-{number}", split, latitude=-35.3 + number / 10_000, longitude=149.1)
    config = pairs.config(folder / "data")
    prepare(config)
    return config.model_copy(update={"model": ModelConfig.model_validate(SMALL)})


def model(config: Config, **options: object) -> S2S:
    torch.manual_seed(0)
    return S2S(ModelConfig.model_validate(config.model.model_dump() | options))


@pytest.mark.slow
def test_every_figure_as_png_and_pdf(config: Config, tmp_path: Path) -> None:
    dataset = PairDataset(config.data.uri, "test")
    figures = draw_figures(model(config), dataset, EvaluationConfig(gallery_rows=2, radius_m=20.0), history=HISTORY)
    assert list(figures) == ["retrieval", "synthesis", "errors", "curves"]
    files = save_figures(figures, str(tmp_path))
    assert len(files) == 8
    for file in files:
        if file.endswith(".pdf"):
            assert Path(file).read_bytes().startswith(b"%PDF")
        else:
            with Image.open(file) as image:
                assert image.width == 1200
    silent = model(config, ablation="retrieval_only")
    assert list(draw_figures(silent, dataset, EvaluationConfig(gallery_rows=2))) == ["retrieval", "errors"]


def test_the_map_shows_each_query_with_its_error() -> None:
    positions = np.array([[700.0, 50.0], [800.0, 90.0], [750.0, 70.0], [710.0, 55.0], [1.0, 1.0]])
    zones = np.array([32755, 32755, 32755, 32755, 0])
    metres = np.array([0.2, 300.0, 40.0, 5.0, np.nan])
    figure = error_map(Places(positions, zones), metres, radius_m=25.0)
    assert figure is not None
    [dots] = [part for part in figure.axes[0].collections if isinstance(part, PathCollection)]
    drawn = {tuple(place): value for place, value in zip(dots.get_offsets().tolist(), dots.get_array(), strict=True)}
    assert drawn == {(0.0, 0.0): 1.0, (10.0, 5.0): 5.0, (50.0, 20.0): 40.0, (100.0, 40.0): 300.0}
    shares = np.asarray(figure.axes[1].lines[0].get_ydata())
    assert shares.tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8])  # one of five is unknown
    assert error_map(Places(positions, np.zeros(5, np.int64)), metres) is None


@pytest.mark.parametrize(("latitude", "longitude"), [(48.1, 12.0), (0.0, 9.0), (-17.0, 180.0)])
def test_the_map_shows_queries_on_both_sides_of_a_border(latitude: float, longitude: float) -> None:
    corners = [(latitude + y, (longitude + x + 180) % 360 - 180) for x in (-1e-3, 1e-3) for y in (-1e-3, 1e-3)]
    figure = error_map(Places.on_ellipsoid(np.array(corners)), np.array([1.0, 2.0, 3.0, 4.0]))
    assert figure is not None
    [dots] = [part for part in figure.axes[0].collections if isinstance(part, PathCollection)]
    drawn = np.asarray(dots.get_offsets())
    assert len(drawn) == 4
    assert np.ptp(drawn, axis=0) == pytest.approx([222.6 * np.cos(np.radians(latitude)), 221.8], rel=0.01)


def test_the_comparison_has_a_row_per_model_and_a_column_per_place() -> None:
    view, tile = np.zeros((8, 44, 3), np.uint8), np.zeros((20, 20, 3), np.uint8)
    figure = comparison_gallery({"one": [view] * 3, "two": [view] * 3}, [tile] * 3, [view] * 3)
    assert len(figure.axes) == 3 + 2 * 3 + 3
    assert [text.get_text() for text in figure.texts] == ["satellite", "one", "two", "real street view"]


class Reader(HTMLParser):
    """The references of a page, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("ablation", ["full", "retrieval_only"])
def test_the_page_of_a_run_is_self_contained(config: Config, tmp_path: Path, ablation: str) -> None:
    network = model(config, ablation=ablation)
    save_model(network, {"run": "<first>", "step": 12}, tmp_path / "checkpoint")
    dataset = PairDataset(config.data.uri, "test")
    measured = evaluate(network, dataset, EvaluationConfig(batch=4))
    figures = draw_figures(network, dataset, EvaluationConfig(gallery_rows=1), history=HISTORY)
    page = report_page(str(tmp_path / "checkpoint"), measured, figures, config, HISTORY).decode()
    reader = Reader()
    reader.feed(page)
    assert len(reader.sources) == len(figures)
    for source in reader.sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            image.load()
    assert "Run <first>" in reader.text
    assert f"{100 * measured.street_to_satellite.recall['5']:.2f}%" in reader.text
    assert config.to_yaml() in reader.text
    assert re.search(r"Of a gallery of 9; R@1 by chance\s+11.111%", reader.text)
    assert ("The model synthesises no street views." in reader.text) == (ablation == "retrieval_only")
    tree = {**config.model_dump(mode="json"), "data": {"uri": "abfs://:pl4nted-pw@account/data"}}
    old = Config.from_stored(tree, "config.yaml")
    page = report_page(str(tmp_path / "checkpoint"), measured, {}, old, HISTORY).decode()
    assert "abfs://:***@account/data" in page
    assert "pl4nted-pw" not in page

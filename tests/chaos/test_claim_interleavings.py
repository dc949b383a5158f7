"""Starts of one sweep, preparations of one data set, and the pruning of a run, under every order of their operations.

In every schedule `sweep.yaml`, `plan.json` and `dataset.json` are written once, all that is written beside them belongs
to the processes that wrote them, one of two different starts is refused, and equal ones both succeed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from s2s_ray import storage
from s2s_ray.config import Config, load_config
from s2s_ray.data import description, plan, prepare, shard
from s2s_ray.data.schema import Record
from s2s_ray.errors import DatasetError, NotFoundError, SweepError
from s2s_ray.geo.views import ViewGeometry
from s2s_ray.model.checkpoint_meta import MODEL_FILE
from s2s_ray.sweep.origin import SweepOrigin
from s2s_ray.training.checkpoint_store import CheckpointStore
from s2s_ray.trials.claim import claim
from tests.support.scenarios import RANDOM, Ended, Scenario, Trial, trial
from tests.support.small_releases import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def world() -> Iterator[Trial]:
    with trial() as world:
        yield world


@pytest.fixture
def summary(record_property: Callable[[str, object], None]) -> Callable[[dict[str, int], int], None]:
    def record(counts: dict[str, int], least: int) -> None:
        schedules = sum(count for kind, count in counts.items() if kind != "milliseconds")
        record_property("schedules", schedules)
        print(counts)
        assert schedules >= least, counts

    return record


SWEEP = "memory://sweeps/first"


@pytest.mark.parametrize("batches", [(8, 8), (8, 9)], ids=["equal", "other"])
def test_two_starts_of_a_sweep(
    world: Trial,
    batches: tuple[int, int],
    summary: Callable[[dict[str, int], int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # JSON is YAML, and much faster to read
    monkeypatch.setattr(yaml, "safe_dump", lambda tree, **options: json.dumps(tree))
    monkeypatch.setattr(yaml, "safe_load", json.loads)
    monkeypatch.setattr(description, "read_dataset_info", lambda uri: SimpleNamespace(digest="d"))
    configs = [load_config("tiny", [f"train.batch={batch}"]) for batch in batches]

    def stored() -> int:
        return int(SweepOrigin.at(SWEEP).config["train"]["batch"])

    def starting(config: Config) -> Callable[[], int]:
        def start() -> int:
            claim(config, SWEEP, SweepOrigin)
            return stored()

        return start

    def check(ended: Ended) -> None:
        for number, outcome in enumerate(ended.outcomes):
            assert not outcome.ok or outcome.value == stored() == batches[number]
            if not ended.faulty(number):
                refused = isinstance(outcome.error, SweepError) and stored() != batches[number]
                assert outcome.ok or refused, f"start {number} {outcome}"

    scenario = Scenario(lambda: None, [starting(config) for config in configs], check, ("memory://sweeps",))
    summary(world.run(scenario), 100)


DATA = "memory://data/set"


class Pairs:
    """A source of a few pairs whose images are a few pixels of one colour."""

    tile_size = None

    def __init__(self, count: int, colour: int) -> None:
        self.count, self.colour = count, colour

    def views(self, height: int, width: int) -> ViewGeometry:
        return ViewGeometry(height, width)

    def records(self) -> Sequence[Record]:
        splits = ("train", "train", "val")
        return [Record(f"{self.colour}-{number}", splits[number % 3]) for number in range(self.count)]  # type: ignore[arg-type]


@pytest.mark.parametrize("heights", [(32, 32), (32, 48)], ids=["equal", "other"])
def test_two_preparations(
    world: Trial,
    heights: tuple[int, int],
    summary: Callable[[dict[str, int], int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = Pairs(3, 1)
    images = {"polar": b"p", "street": b"s"}
    monkeypatch.setattr(prepare, "open_source", lambda config: source)
    monkeypatch.setattr(shard, "open_source", lambda config: source)
    monkeypatch.setattr(plan, "_pairs_per_shard", lambda *arguments: 4)

    def encoded(source: Pairs, record: Record, plan: shard.Plan, warnings: object = None) -> shard.Encoded:
        return shard.Encoded({name: image * plan.geometry.height for name, image in images.items()}, "sphere")  # type: ignore[arg-type]

    monkeypatch.setattr(shard, "encode_record", encoded)

    def configured(height: int) -> Config:
        return Config.from_tree(
            {
                "model": {"height": height, "width": 40},
                "source": {"kind": "synthetic"},
                "data": {"uri": DATA},
                "prepare": {"parallel": False, "splits": ["train", "val"]},
            }
        )

    configs = [configured(height) for height in heights]

    def preparing(config: Config) -> Callable[[], str]:
        return lambda: prepare.prepare(config).digest

    digests: dict[str, int] = {}

    def prepared() -> None:
        for height in set(heights):
            world.store.objects.clear()
            digests[preparing(configured(height))()] = height
        world.store.objects.clear()

    def check(ended: Ended) -> None:
        for number, outcome in enumerate(ended.outcomes):
            if not ended.faulty(number):
                assert outcome.ok or (isinstance(outcome.error, DatasetError) and heights[0] != heights[1]), (
                    f"preparation {number} {outcome}"
                )
        if not ended.scheduler.faults:
            assert len({outcome.value for outcome in ended.outcomes if outcome.ok}) == 1
        # the same commands complete what was begun; one of two different ones is refused
        for config in configs if ended.scheduler.faults else ():
            try:
                preparing(config)()
            except DatasetError:
                continue
        info = description.read_dataset_info(DATA)
        height = digests[info.digest]
        for number, outcome in enumerate(ended.outcomes):
            assert not outcome.ok or digests[outcome.value] == heights[number] == height
        for split in info.splits.values():
            for file in (*split.shards, split.records):
                assert storage.sha256(storage.read_bytes(f"{DATA}/{file.name}")) == file.sha256, "a mix"

    scenario = Scenario(prepared, [preparing(config) for config in configs], check, (DATA,))
    summary(world.run(scenario, with_fault=0, random=RANDOM), 300 + RANDOM)


RUN = "memory://runs/run/checkpoints"


def test_a_reader_of_the_best_checkpoint_while_others_are_deleted(
    world: Trial, summary: Callable[[dict[str, int], int], None]
) -> None:
    """A run prunes the former best checkpoint when it has a better one; a reader gets all of one, or NotFoundError."""
    recalls = {1: 0.3, 2: 0.5, 3: 0.1, 4: 0.2}

    def prepare_run() -> None:
        for step, recall in recalls.items():
            checkpoint(f"{RUN}/{step:08d}", step, recall=recall)

    def write_and_prune() -> None:
        checkpoint(f"{RUN}/{5:08d}", 5, recall=0.6)
        CheckpointStore(RUN).keep_best()

    def read() -> tuple[int | None, bytes]:
        best = CheckpointStore(RUN).best()
        if best is None:
            return None, b""
        with tempfile.TemporaryDirectory() as folder:
            directory = storage.fetch(f"{RUN}/{best:08d}", Path(folder))
            return best, (directory / MODEL_FILE).read_bytes()

    def check(ended: Ended) -> None:
        reader = ended.outcomes[1]
        assert reader.ok or ended.faulty(1) or isinstance(reader.error, NotFoundError), reader
        if reader.ok:
            step, weights = reader.value
            assert step in (1, 2, 3, 4, 5)
            assert weights == f"weights {step}".encode()
        steps = CheckpointStore(RUN).steps()
        assert 2 in steps or 5 in steps, "the best or a better one is always there"
        assert CheckpointStore(RUN).best() in (2, 5)
        if ended.outcomes[0].ok:
            assert steps == [5]

    summary(world.run(Scenario(prepare_run, [write_and_prune, read], check, (RUN,)), with_fault=0), 500)

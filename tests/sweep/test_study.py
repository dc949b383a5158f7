"""A sweep's study without a cluster: trials, interruptions, early stopping across starts, the report."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import pyarrow.parquet as pq
import pytest
from optuna.storages import JournalStorage
from optuna.trial import TrialState
from ray import cloudpickle

from s2s_ray.config import Config
from s2s_ray.errors import ConfigError, DamagedError, DiskFullError, SweepError
from s2s_ray.storage.lease import driving
from s2s_ray.sweep import sweep
from s2s_ray.sweep.origin import SweepOrigin
from s2s_ray.sweep.report import write_report
from s2s_ray.sweep.search import StandIn, StudySearch, early_stopping
from s2s_ray.sweep.space import Space
from s2s_ray.sweep.study import JOURNAL, SweepStudy, read_records, run_name, sampler
from s2s_ray.sweep.trial import EPOCH, FAILED, STARTED, BestSoFar, trial_config

SPACE = {"loss.alpha": {"low": 1.0, "high": 100.0, "log": True}, "mining.start": {"choices": ["never", "plateau"]}}


def config(**tune: Any) -> Config:
    return Config.from_tree({"train": {"epochs": 9}, "tune": {"space": SPACE, **tune}})


def search(settings: Config, root: Path) -> tuple[StudySearch, SweepStudy]:
    study, space = SweepStudy(settings.tune, str(root)), Space(settings)
    study.prepare(space)
    return StudySearch(settings, space, study), study


def run(searcher: StudySearch, name: str, *recalls: float, **more: float) -> dict[str, Any]:
    """Run a trial that reports these recalls and finishes."""
    params = searcher.suggest(name)
    assert params is not None
    result: dict[str, Any] = {}
    for epoch, recall in enumerate(recalls):
        result = {"recall_at_1": recall, EPOCH: epoch + 1, STARTED: 0.0, "training_iteration": epoch + 1, **more}
        searcher.on_trial_result(name, result)
    searcher.on_trial_complete(name, result)
    return params


def test_trials_are_recorded_with_their_outcome(tmp_path: Path) -> None:
    searcher, study = search(config(), tmp_path)
    first = run(searcher, "a", 0.1, 0.3)
    assert first == {"loss.alpha": 10.0, "mining.start": "plateau"}, (
        "the first trial has the configuration's own values"
    )
    run(searcher, "b", 0.5)
    searcher.suggest("c")
    searcher.on_trial_complete("c", {FAILED: "diverged at step 3"})
    searcher.failure_reason = lambda name: f"{name} ran out of memory"
    searcher.suggest("d")
    searcher.on_trial_complete("d", error=True)
    searcher.suggest("e")
    found = study.records()
    assert [record.state for record in found] == ["complete", "complete", "failed", "failed", "running"]
    assert [record.values.get("recall_at_1") for record in found] == [0.3, 0.5, None, None, None]
    assert [record.reason for record in found[2:4]] == ["diverged at step 3", "d ran out of memory"]
    assert found[0].epochs == 2
    assert found[0].run == run_name(first)
    best = study.best()
    assert best is not None
    assert best.number == 1


def test_a_new_start_continues_interrupted_trials(tmp_path: Path) -> None:
    before, _ = search(config(), tmp_path)
    run(before, "a", 0.1)
    interrupted = before.suggest("b")
    after, study = search(config(), tmp_path)
    assert [record.state for record in study.records()] == ["complete"]
    assert after.suggest("c") == interrupted, "the same values belong to the same run"
    assert run(after, "d", 0.2) not in (interrupted, None)
    assert [record.number for record in study.records()] == [0, 2, 3]
    closed = study.study.get_trials()[1]
    assert closed.state == TrialState.FAIL
    assert study.study.get_trials()[2].user_attrs["resumes"] == 1


class Killed(BaseException):
    """Ends a start as a kill does."""


@pytest.mark.parametrize("suggested", [True, False])
@pytest.mark.parametrize("writes", range(6))
def test_a_trial_is_not_lost_if_the_start_that_resumes_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int, suggested: bool
) -> None:
    """The first trial has the configuration's own values, which no sampler would propose again."""
    before, study = search(config(), tmp_path)
    if suggested:
        before.suggest("a")
    else:
        study.study.ask()  # killed before any value was suggested
    left = [writes]

    def write(lost: Any, operation: Any, record: Any) -> None:
        if not left[0]:
            raise Killed
        left[0] -= 1
        original(lost, operation, record)

    original = JournalStorage._write_log
    with monkeypatch.context() as patch, suppress(Killed):
        patch.setattr(JournalStorage, "_write_log", write)
        SweepStudy(config().tune, str(tmp_path)).prepare(Space(config()))
    after, study = search(config(), tmp_path)
    assert after.suggest("b") == {"loss.alpha": 10.0, "mining.start": "plateau"}
    assert after.suggest("c") != {"loss.alpha": 10.0, "mining.start": "plateau"}
    assert [record.state for record in study.records()] == ["running"] * 2


def test_a_trial_that_an_earlier_version_lost_is_resumed(tmp_path: Path) -> None:
    """Its start was killed after it had closed the interrupted trial and before it had enqueued the next."""
    before, study = search(config(), tmp_path)
    lost = before.suggest("a")
    study._close(study.study.get_trials()[0])
    after, _ = search(config(), tmp_path)
    assert after.suggest("b") == lost
    assert after.suggest("c") != lost


def test_a_later_start_does_not_repeat_proposals(tmp_path: Path) -> None:
    before, _ = search(config(), tmp_path)
    proposed = [run(before, f"a{k}", 0.1)["loss.alpha"] for k in range(4)]
    after, _ = search(config(), tmp_path)
    proposed += [run(after, f"b{k}", 0.1)["loss.alpha"] for k in range(4)]
    assert len(set(proposed)) == 8


def test_seeds_fix_the_proposals(tmp_path: Path) -> None:
    def proposed(name: str, seed: int) -> list[Any]:
        searcher, _ = search(config(seed=seed), tmp_path / name)
        return [run(searcher, f"t{k}", 0.1 * k)["loss.alpha"] for k in range(12)]

    assert proposed("a", 1) == proposed("b", 1)
    assert proposed("c", 2) != proposed("a2", 1)


def test_the_study_may_be_a_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    searcher, _ = search(config(study=url), tmp_path / "sweep")
    run(searcher, "a", 0.25)
    assert optuna.load_study(study_name="sweep", storage=url).best_value == 0.25
    with pytest.raises(ConfigError, match=r"tune\.study='nonsense' cannot be opened"):
        SweepStudy(config(study="nonsense").tune, str(tmp_path))


def test_to_read_a_sweep_creates_nothing_in_a_database(tmp_path: Path) -> None:
    database = tmp_path / "study.db"
    settings = config(study=f"sqlite:///{database}")
    assert read_records(settings.tune, str(tmp_path)) == []
    assert not database.exists()
    database.touch()  # a database without any table
    assert read_records(settings.tune, str(tmp_path)) == []
    assert database.read_bytes() == b""


@pytest.mark.parametrize("read", [SweepStudy, read_records])
@pytest.mark.parametrize("url", ["nonsense", "unheard+of://host/db", "sqlite:///{folder}/nowhere/study.db"])
def test_a_database_that_cannot_be_opened_is_named(tmp_path: Path, read: Any, url: str) -> None:
    tune = config(study=url.format(folder=tmp_path)).tune
    if read is read_records and "sqlite" in url:
        assert read(tune, str(tmp_path)) == []
    else:
        with pytest.raises(ConfigError, match=r"tune\.study='.*' cannot be opened"):
            read(tune, str(tmp_path))


def test_sweeps_of_one_name_share_a_database_but_no_trial(tmp_path: Path) -> None:
    settings = config(study=f"sqlite:///{tmp_path}/study.db")
    names = []
    for nonce in ("0123456789ab", "ba9876543210", ""):  # earlier versions wrote none
        origin = SweepOrigin(nonce=nonce, dataset="x", config={})
        names.append(origin.study(settings.tune))
        study = SweepStudy(settings.tune, str(tmp_path), names[-1])
        run(StudySearch(settings, Space(settings), study), "a", 0.25)
        assert len(read_records(settings.tune, str(tmp_path), names[-1])) == 1
    assert names == ["sweep-01234567", "sweep-ba987654", "sweep"]
    assert SweepOrigin(nonce="x", dataset="x", config={}).study(config().tune) == "sweep", "a journal is its own"


def test_a_trial_that_the_storage_ended_has_no_outcome(tmp_path: Path) -> None:
    before, study = search(config(), tmp_path)
    before.suggest("a")
    before.fault = lambda name: DiskFullError("the disk of /runs is full")
    with pytest.raises(DiskFullError, match="the disk of /runs is full"):
        before.on_trial_complete("a", error=True)
    assert isinstance(before.ended_by, DiskFullError), "Ray Tune keeps its text alone"
    assert [record.state for record in study.records()] == ["running"]


def test_a_sweep_that_was_taken_over_records_nothing_more(tmp_path: Path) -> None:
    lost: list[bool] = []

    def check() -> None:
        if lost:
            raise SweepError("another process took it over")

    settings = config()
    study = SweepStudy(settings.tune, str(tmp_path), check=check)
    searcher = StudySearch(settings, Space(settings), study)
    run(searcher, "a", 0.25)
    searcher.suggest("b")
    before = (tmp_path / JOURNAL).read_bytes()
    lost.append(True)
    for act in (
        lambda: searcher.suggest("c"),
        lambda: searcher.on_trial_result("b", {"recall_at_1": 0.5, EPOCH: 1, STARTED: 0.0, "training_iteration": 1}),
        lambda: searcher.on_trial_complete("b", {"recall_at_1": 0.5}),
        lambda: study.study.enqueue_trial({}),
        study.save,
    ):
        with pytest.raises(SweepError, match="took it over"):
            act()
    assert (tmp_path / JOURNAL).read_bytes() == before


def test_ray_tune_can_pickle_the_searcher_of_a_driven_sweep(tmp_path: Path) -> None:
    settings = config()
    with driving(str(tmp_path), "sweep 'sweep'", SweepError) as lease:
        study = SweepStudy(settings.tune, str(tmp_path), check=lease.check)
        assert cloudpickle.dumps(StudySearch(settings, Space(settings), study))  # type: ignore[no-untyped-call]


def test_optuna_opens_the_journal(tmp_path: Path) -> None:
    searcher, _ = search(config(), tmp_path)
    run(searcher, "a", 0.25)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.journal"))
    [found] = optuna.get_all_study_summaries(optuna.storages.JournalStorage(backend))
    assert (found.study_name, found.n_trials) == ("sweep", 1)


def test_samplers_by_name() -> None:
    assert isinstance(sampler(config(sampler="RandomSampler").tune, 0), optuna.samplers.RandomSampler)
    assert isinstance(sampler(config(sampler="QMCSampler").tune, 0), optuna.samplers.QMCSampler)
    with pytest.raises(ConfigError, match=r"tune\.sampler='Simplex': optuna\.samplers has .*TPESampler"):
        sampler(config(sampler="Simplex").tune, 0)
    with pytest.raises(ConfigError, match=r"tune\.sampler_options=\{'speed': 3\}: .*speed"):
        sampler(config(sampler_options={"speed": 3}).tune, 0)


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_early_stopping_remembers_the_trials_of_an_earlier_start(kind: str) -> None:
    settings = config(scheduler=kind)
    past = [[{"epoch": epoch, "recall_at_1": 0.5} for epoch in range(9)] for _ in range(4)]
    fresh: Any = early_stopping(settings, [])
    informed: Any = early_stopping(settings, past)
    poor = {EPOCH: 1, "recall_at_1": 0.1}
    for scheduler, decision in ((informed, "STOP"), (fresh, "CONTINUE")):
        trial = StandIn("poor")
        scheduler.on_trial_add(None, trial)
        assert scheduler.on_trial_result(None, trial, poor) == decision


def test_a_grace_period_as_long_as_the_training_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tune\.grace_epochs=9: with train\.epochs=9 nothing could be stopped"):
        early_stopping(config(grace_epochs=9), [])


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"sampler": "Simplex"}, r"tune\.sampler='Simplex'"),
        ({"grace_epochs": 9}, r"tune\.grace_epochs=9"),
        ({"space": {"loss.alhpa": {"low": 1.0, "high": 2.0}}}, r"loss\.alhpa"),
    ],
)
def test_a_refused_sweep_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], named: str
) -> None:
    """Otherwise the corrected sweep would be refused as a different one."""
    monkeypatch.setattr(sweep, "check_ready", lambda config: None)
    monkeypatch.setattr(sweep, "max_concurrent", lambda config, limit: 1)
    with pytest.raises(ConfigError, match=named):
        sweep.sweep(config(**wrong, storage=str(tmp_path / "sweeps")))
    assert list(tmp_path.iterdir()) == []


def test_only_the_best_epoch_counts_once_its_checkpoint_is_stored() -> None:
    reported: list[dict[str, float]] = []
    flushed: list[int] = []

    class Store:
        def flush(self) -> None:
            flushed.append(len(reported))

    class Fake:
        store = Store()

    report = BestSoFar(["recall_at_1", "l1"])(Fake(), reported.append)  # type: ignore[arg-type]
    report({"epoch": 0})  # not validated, so there is nothing to report yet
    for epoch, (recall, l1) in enumerate([(0.2, 0.5), (0.4, 0.3), (0.3, 0.1), (0.4, 0.2)], start=1):
        report({"epoch": epoch, "recall_at_1": recall, "l1": l1})
    report({"epoch": 5})
    assert [(entry[EPOCH], entry["recall_at_1"], entry["l1"]) for entry in reported] == [
        (2, 0.2, 0.5),
        (3, 0.4, 0.3),
        (4, 0.4, 0.3),
        (5, 0.4, 0.2),
        (6, 0.4, 0.2),
    ]
    assert flushed == [0, 1, 2, 3, 4]


METRES = {"metric": "fov=90.metres_median"}


def of_metres(**tune: Any) -> Config:
    """A sweep for the smallest error in metres under a protocol."""
    tree = {"train": {"epochs": 9}, "evaluation": {"protocols": ["fov=90"]}, "tune": {"space": SPACE, **METRES, **tune}}
    return Config.from_tree(tree)


class TestAnotherMetric:
    def test_the_trial_with_the_smallest_error_is_best(self, tmp_path: Path) -> None:
        settings = of_metres()
        searcher, study = search(settings, tmp_path)
        assert study.objectives == ["fov=90.metres_median"]
        for name, metres in (("a", 20.0), ("b", 7.5), ("c", 30.0)):
            run(searcher, name, 0.5, **{"fov=90.metres_median": metres})
        best = study.best()
        assert best is not None
        assert (best.number, best.values) == (1, {"fov=90.metres_median": 7.5})
        assert study.study.directions[0].name == "MINIMIZE"
        write_report(str(tmp_path), settings, study, best)
        page = (tmp_path / "report.html").read_text()
        assert "number 1, fov=90.metres_median 7.5." in page
        rows = [page.index(f"<td>{number}</td>") for number in (1, 0, 2)]
        assert rows == sorted(rows), "the best one first"
        start = study.records()[0]
        result = sweep.SweepResult(str(tmp_path), best, start, settings, None, study.records())  # type: ignore[arg-type]
        [line, _] = sweep.describe(result).splitlines()
        assert line == (
            "best of 3 trials: number 1, fov=90.metres_median 7.5, -12.5 against the configuration's own values"
        )

    def test_the_smallest_error_is_the_best_epoch(self) -> None:
        reported: list[dict[str, float]] = []
        fake: Any = type("Fake", (), {"store": type("Store", (), {"flush": lambda self: None})()})()
        report = BestSoFar(["fov=90.metres_median"])(fake, reported.append)
        for epoch, metres in enumerate((9.0, 4.0, None, 6.0)):
            report({"epoch": epoch, "recall_at_1": 0.1} | ({} if metres is None else {"fov=90.metres_median": metres}))
        assert [entry["fov=90.metres_median"] for entry in reported] == [9.0, 4.0, 4.0, 4.0]

    @pytest.mark.parametrize("kind", ["asha", "median"])
    def test_large_errors_are_stopped_early(self, kind: str) -> None:
        past = [[{"epoch": epoch, "fov=90.metres_median": 5.0} for epoch in range(9)] for _ in range(4)]
        for history, metres, decision in ((past, 50.0, "STOP"), (past, 1.0, "CONTINUE"), ([], 50.0, "CONTINUE")):
            scheduler: Any = early_stopping(of_metres(scheduler=kind), history)
            trial = StandIn("new")
            scheduler.on_trial_add(None, trial)
            assert scheduler.on_trial_result(None, trial, {EPOCH: 1, "fov=90.metres_median": metres}) == decision

    def test_a_trial_keeps_its_best_checkpoint_by_the_same_metric(self) -> None:
        assert trial_config(of_metres(), {}, "sweeps/x").train.best_metric == "fov=90.metres_median"
        assert trial_config(config(), {}, "sweeps/x").train.best_metric == "recall_at_1"

    def test_a_sweep_cannot_continue_with_another_metric(self, tmp_path: Path) -> None:
        search(config(), tmp_path)
        with pytest.raises(SweepError, match=r"has other objectives than fov=90\.metres_median"):
            SweepStudy(of_metres().tune, str(tmp_path))


@pytest.mark.parametrize("two", [False, True])
def test_the_report_has_every_trial(tmp_path: Path, two: bool) -> None:
    settings = config(**({"synthesis": "l1", "scheduler": "none"} if two else {}))
    searcher, study = search(settings, tmp_path)
    for k in range(8):
        run(searcher, f"t{k}", 0.05 * k, l1=0.5 - 0.03 * k if k < 6 else 0.6)
    searcher.suggest("lost")
    searcher.on_trial_complete("lost", error=True)
    write_report(str(tmp_path), settings, study, study.best())
    table = pq.read_table(tmp_path / "trials.parquet").to_pydict()
    assert table["number"] == list(range(9))
    assert table["state"] == ["complete"] * 8 + ["failed"]
    assert table["recall_at_1"] == pytest.approx([0.05 * k for k in range(8)] + [None], abs=1e-12)
    assert table["loss.alpha"][0] == 10.0
    assert set(table["mining.start"]) <= {"never", "plateau"}
    pictures = {path.stem for path in (tmp_path / "plots").iterdir()}
    assert pictures == {"history", "importance", "parallel_coordinate", "slice", *(["pareto_front"] if two else [])}
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(pictures)
    assert "http" not in page, "self-contained"
    assert "its process was lost" in page
    if two:
        assert [k for k, best in enumerate(table["pareto"]) if best] == [5, 7]


def test_a_trial_without_objectives_is_closed(tmp_path: Path) -> None:
    searcher, study = search(config(synthesis="l1", scheduler="none"), tmp_path)
    for name, result in (("a", None), ("b", {"recall_at_1": 0.5}), ("c", {"recall_at_1": float("nan"), "l1": 0.1})):
        searcher.suggest(name)
        searcher.on_trial_complete(name, result)
    assert [trial.state for trial in study.study.get_trials()] == [
        TrialState.PRUNED,
        TrialState.PRUNED,
        TrialState.FAIL,
    ]
    assert [record.state for record in study.records()] == ["failed"] * 3
    assert "nan" in study.records()[2].reason


def test_a_second_completion_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    searcher, study = search(config(), tmp_path)
    run(searcher, "a", 0.25)
    searcher.on_trial_complete("a", {"recall_at_1": 0.75})
    assert "trial 0 finished twice" in caplog.text
    assert study.study.best_value == 0.25


def test_a_sweep_of_the_first_version_continues(tmp_path: Path) -> None:
    """Version 0.1.0 subclassed Ray's OptunaSearch."""
    root = tmp_path / "night"
    shutil.copytree(Path(__file__).parents[1] / "fixtures" / "written_by_0.1.0" / "sweeps" / "night", root)
    settings = SweepOrigin.at(str(root)).configuration(str(root))
    space, study = Space(settings), SweepStudy(settings.tune, str(root))
    assert study.prepare(space) == 2
    before = study.records()
    assert [record.state for record in before] == ["complete"] * 2
    assert all((root / "trials" / record.run).is_dir() for record in before)
    searcher = StudySearch(settings, space, study)
    assert run(searcher, "third", 0.5) not in [record.params for record in before]
    assert study.records()[:2] == before
    assert [record.number for record in study.records()] == [0, 1, 2]


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    searcher, _ = search(config(), tmp_path)
    run(searcher, "a", 0.25)
    journal = tmp_path / JOURNAL
    journal.write_text("{\n" + journal.read_text())
    for read in (SweepStudy, read_records):
        with pytest.raises(DamagedError, match=rf"{journal} is not a journal of Optuna"):
            read(config().tune, str(tmp_path))


def test_a_study_with_other_objectives_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    SweepStudy(config(study=url).tune, str(tmp_path))
    with pytest.raises(SweepError, match="has other objectives than recall_at_1, l1"):
        SweepStudy(config(study=url, synthesis="l1", scheduler="none").tune, str(tmp_path))


def test_a_sampler_that_does_not_suit_the_space_is_named(tmp_path: Path) -> None:
    grid = config(sampler="GridSampler", sampler_options={"search_space": {"loss.beta": [1, 2]}})
    searcher, _ = search(grid, tmp_path)
    searcher.suggest("first")  # the configuration's own values
    with pytest.raises(ConfigError, match=r"tune\.sampler='GridSampler' cannot sample tune\.space: .*loss\.alpha"):
        searcher.suggest("second")

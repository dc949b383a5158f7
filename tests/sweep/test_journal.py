"""A journal whose last line was not written completely, on a disk that may be full."""

from __future__ import annotations

import errno
from pathlib import Path

import optuna
import pytest

from s2s_ray.config import Config
from s2s_ray.errors import DamagedError, DiskFullError
from s2s_ray.sweep import journal
from s2s_ray.sweep.journal import cut_torn_tail, open_journal
from s2s_ray.sweep.study import JOURNAL, SweepStudy, read_records

TUNE = Config.from_tree({"tune": {"space": {"loss.alpha": {"low": 1.0, "high": 9.0}}}}).tune


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    """The content of a journal with two finished trials."""
    study = SweepStudy(TUNE, str(tmp_path)).study
    for value in (0.25, 0.5):
        study.tell(study.ask(), value)
    return (tmp_path / JOURNAL).read_bytes()


def lines(content: bytes) -> int:
    return content.count(b"\n")


@pytest.mark.parametrize(
    "tail",
    [
        b"{",
        b'{"op_code":5,"worker_id"',
        b"\0" * 4096,
        b"\xff\xfe garbage \n more",
        b"\n\n",
        b"[1, 2]\n",
        b"7\n",
        b"9" * 5000,
    ],
    ids=["a byte", "half a line", "zeros", "garbage", "empty lines", "a list", "a number", "a long number"],
)
def test_a_torn_tail_is_cut_once(whole: bytes, tail: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / JOURNAL
    path.write_bytes(whole + tail)
    assert len(read_records(TUNE, str(tmp_path))) == 2, "it can be read meanwhile"
    assert path.read_bytes() == whole + tail, "only the driver changes it"
    study = SweepStudy(TUNE, str(tmp_path))
    assert f"{path}: cut {len(tail)} bytes of a change that was not written completely" in caplog.text
    assert [record.values for record in study.records()] == [{"recall_at_1": 0.25}, {"recall_at_1": 0.5}]
    study.study.tell(study.study.ask(), 0.75)
    caplog.clear()
    assert len(SweepStudy(TUNE, str(tmp_path)).records()) == 3
    assert not caplog.text


@pytest.mark.parametrize("cut", [2, 10, 40, 100, 300])
def test_only_the_changes_that_are_cut_into_are_lost(whole: bytes, cut: int, tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    path.write_bytes(whole[:-cut])
    assert cut_torn_tail(path, "journal") < 200
    assert path.read_bytes() == whole[: whole[:-cut].rfind(b"\n") + 1]
    SweepStudy(TUNE, str(tmp_path))


def test_a_whole_line_without_its_newline_is_kept(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    path.write_bytes(whole[:-1])
    assert cut_torn_tail(path, "journal") == 0
    assert path.read_bytes() == whole


@pytest.mark.parametrize("content", [b"", b"\0\0", b'{"op_', b'{"op_code":0,"worker_id":"x', b"{\0\0"])
def test_a_first_line_that_is_torn_is_cut(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    path.write_bytes(content)
    assert cut_torn_tail(path, "journal") == len(content)
    assert path.read_bytes() == b""
    assert cut_torn_tail(tmp_path / "absent", "journal") == 0


@pytest.mark.parametrize("content", [b"notes of a holiday", b"SQLite format 3\0", b'{"a": 1}\n', b"\x89PNG\r\n"])
def test_another_kind_of_file_is_left_alone(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"study\.journal is not a journal of Optuna: it has no whole line"):
        SweepStudy(TUNE, str(tmp_path))
    assert path.read_bytes() == content


def test_a_change_that_does_not_fit_on_the_disk_leaves_nothing(
    whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / JOURNAL
    study = optuna.load_study(study_name=TUNE.name, storage=open_journal(path, str(path)))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("optuna.storages.journal._file.os.fsync", full)
        with pytest.raises(DiskFullError, match=str(path)):
            study.ask()
    assert path.read_bytes() == whole
    study.ask()
    assert lines(path.read_bytes()) > lines(whole)
    assert journal.cut_torn_tail(path, "journal") == 0

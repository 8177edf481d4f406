"""Pages at the end of other commands: they are there, they name faults, and they spoil nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

import evaluate
from report import writing
from report.finishing import finish_cross_validation, finish_evaluation, finish_run, finish_with
from report.writing import Written, write_training_report
from tests.report import folders
from utils.config import RunConfig
from utils.runs import prepare_predictions

PAGE = Written(kind="training", path=Path("p.html"), num_bytes=1, viewer_cases=0)


def test_a_page_that_fails_is_a_warning(tmp_path, capsys):
    assert finish_with(lambda: write_training_report(tmp_path)) is None
    assert "warning: no page was written about this run: " in capsys.readouterr().err
    assert finish_with(lambda: 1 / 0) is None
    assert "ZeroDivisionError" in capsys.readouterr().err

    def interrupted():
        raise KeyboardInterrupt

    assert finish_with(interrupted) is None


def test_seconds_are_said_where_they_are_many(capsys, monkeypatch):
    assert finish_with(lambda: PAGE) == PAGE
    assert capsys.readouterr().out == "page about this run: p.html\n"
    monkeypatch.setattr("report.finishing.WORTH_SAYING_S", -1.0)
    finish_with(lambda: PAGE)
    assert capsys.readouterr().out == "page about this run: p.html (0.0 s)\n"


def test_a_training_has_its_page_in_its_folder(tmp_path):
    folder = folders.make_training(tmp_path / "results")
    finish_run(RunConfig(results=folder))
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize("changes", [{"report": False}, {"benchmark": True}, {"exec_mode": "evaluate"}], ids=str)
def test_no_page_where_none_is_wanted_or_nothing_was_made(tmp_path, changes):
    folder = folders.make_training(tmp_path / "results")
    finish_run(RunConfig(results=folder, **changes))
    assert not (folder / "report.html").exists()


def test_of_several_processes_the_first_writes(tmp_path, monkeypatch):
    folder = folders.make_training(tmp_path / "results")
    monkeypatch.setenv("LOCAL_RANK", "1")
    finish_run(RunConfig(results=folder))
    assert not (folder / "report.html").exists()


def test_masks_have_a_page_and_renew_that_of_their_training(tmp_path):
    results = folders.make_training(tmp_path / "results")
    (results / "checkpoints" / "last.ckpt").touch()
    masks = folders.make_scored(tmp_path).rename(results / "preds_task_77_dim_3_fold_0")
    options = {"run": {"exec_mode": "predict"}}
    folders.run_record(results, options, {"predictions": str(masks)}, name="run_predict.json")
    finish_run(RunConfig(results=results, exec_mode="predict"))
    assert "<title>Prediction and evaluation</title>" in (masks / "report.html").read_text(encoding="utf-8")
    assert "Training of" in (results / "report.html").read_text(encoding="utf-8")
    # Once masks begin to change, neither is true any more.
    prepare_predictions(masks)
    assert not (masks / "report.html").exists() and not (results / "report.html").exists()


def test_scores_elsewhere_have_their_page_beside_them(tmp_path, capsys):
    masks = folders.make_scored(tmp_path)
    labels = tmp_path / "data" / "labelsTr"
    words = ["--preds", str(masks), "--lbls", str(labels)]
    assert evaluate.main([*words, "--csv", str(tmp_path / "mine.csv")]) == 0
    assert (tmp_path / "mine.html").is_file() and not (masks / "report.html").exists()
    assert evaluate.main([*words, "--no_report"]) == 0 and not (masks / "report.html").exists()
    assert evaluate.main(words) == 0 and (masks / "report.html").is_file()
    assert str(masks / "report.html") in capsys.readouterr().out


def test_a_page_that_cannot_be_written_spoils_no_evaluation(tmp_path, monkeypatch, capsys):
    masks = folders.make_scored(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "write_atomically", full)
    assert evaluate.main(["--preds", str(masks), "--lbls", str(tmp_path / "data" / "labelsTr")]) == 0
    assert "warning: no page was written about this run: [Errno 28]" in capsys.readouterr().err


def test_a_cross_validation_without_a_fold_warns(tmp_path, capsys):
    finish_cross_validation(tmp_path, "77")
    assert "holds no finished fold of task 77" in capsys.readouterr().err


def test_finish_evaluation_reads_the_files_that_it_is_given(tmp_path):
    masks = folders.make_scored(tmp_path)
    table, summary = tmp_path / "a.csv", tmp_path / "a.json"
    (masks / "scores.csv").rename(table)
    (masks / "summary.json").rename(summary)
    finish_evaluation(masks, table, summary)
    assert "0.333" in (tmp_path / "a.html").read_text(encoding="utf-8")

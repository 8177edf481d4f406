"""The pages of small folders: what stands in them, what is missing is said, and no text becomes markup."""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from report.page import asset, policy
from report.records import read_epochs
from report.viewer import library_source
from report.views import Room
from report.writing import find_kind, write_report
from scripts import report as command
from tests.conftest import PROJECT
from tests.report import folders
from utils.errors import UserError, run_cli


class Reader(HTMLParser):
    """Collects elements, text by element, and addresses; knows whether every element is closed."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements, self.addresses, self.open, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action") and value]
        if tag not in ("br", "img", "input", "meta", "hr", "col"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)


def read(path) -> tuple[str, Reader]:
    page, reader = path.read_text(encoding="utf-8"), Reader()
    reader.feed(page)
    assert not reader.open
    return " ".join(" ".join(reader.text).split()), reader


def test_a_training_without_its_data_says_so_and_shows_its_curves(tmp_path):
    written = write_report(folders.make_training(tmp_path / "results"))
    text, reader = read(written.path)
    assert written.kind == "training" and written.path == tmp_path / "results" / "report.html"
    for part in ("Training of results, fold 0", "0.750 best mean Dice", "10.0 min of training", "Dice of the valid",
                 "plan are not where the record says", "main.py --task 77", "abc"):  # fmt: skip
        assert part in text
    assert reader.elements.count("figure") == 4
    # Nothing of the viewer is in a page without one.
    assert written.num_bytes < 60_000 and "niivue" not in written.path.read_text(encoding="utf-8").lower()


def test_a_training_that_was_interrupted_says_how_far_it_came(tmp_path):
    text, _ = read(write_report(folders.make_training(tmp_path / "results", finished=False)).path)
    assert (
        "has not come to its end: 2 of at most 9 epochs are done" in text
        and "There is no run.json: the run has not" in text
    )
    assert "Training of results, fold 3" in text


def test_epochs_are_counted_from_one(tmp_path):
    text, _ = read(write_report(folders.make_training(tmp_path / "results")).path)
    # The record says epoch 1, counted from 0; the log has two.
    assert "2 best epoch" in text and "2 epochs" in text and "epoch=0 is the first one" in text


def test_a_training_shows_the_cases_of_its_best_validation(tmp_path):
    folder = folders.make_training(tmp_path / "results")
    cases = {"good": [[8, 0, 0]], "poor": [[0, 3, 9]]}
    folders.write_json(folder / "validation.json", {"version": 1, "epoch": 1, "targets": ["organ"], "cases": cases})
    written = write_report(folder)
    text, _ = read(written.path)
    assert "Validation after epoch 2, the best one" in text and written.viewer_cases == 0
    assert text.index("poor 0.000") < text.index("good 1.000")


def test_masks_of_an_earlier_training_are_called_so(tmp_path, capsys):
    folder = folders.make_training(tmp_path / "results")
    (folder / "preds_task_77_dim_3_fold_0").mkdir()
    options = {"run": {"exec_mode": "predict"}}
    folders.run_record(folder, options, {}, name="run_predict.json")
    assert "by other weights" not in read(write_report(folder).path)[0]
    record = json.loads((folder / "run.json").read_text(encoding="utf-8")) | {"time": "2026-11-28T22:00:00+00:00"}
    folders.write_json(folder / "run.json", record)
    assert "were predicted before this training ended, by other weights" in read(write_report(folder).path)[0]
    assert "warning: The masks in preds_task_77_dim_3_fold_0" in capsys.readouterr().err


def test_scores_of_masks_that_have_changed_are_called_so(tmp_path):
    folder = folders.make_scored(tmp_path)
    os.utime(folder / "scores.csv", (1e9, 1e9))
    os.utime(folder / "plain.nii.gz", (2e9, 2e9))
    os.utime(folder / f"{folders.EVIL}.nii.gz", (1e9, 1e9))
    assert "1 mask changed after scores.csv was written (plain.nii.gz)" in read(write_report(folder).path)[0]


def test_a_decision_that_does_not_know_all_folds_is_called_so(tmp_path):
    root = folders.make_cross_validation(tmp_path)
    os.utime(root / "77_best" / "decision.json", (1e9, 1e9))
    assert "Folds ended after the decision (77_best) was made" in read(write_report(root).path)[0]


@pytest.mark.parametrize("name", ["run.json", "checkpoints/training.json", "validation.json"])
def test_damaged_records_of_a_training_are_named_and_absent_ones_are_not(tmp_path, capsys, name):
    folder = folders.make_training(tmp_path / "results")
    clean, _ = read(write_report(folder).path)
    assert "and left out: " not in clean
    (folder / name).write_text('{"epochs": ')
    text, _ = read(write_report(folder).path)
    assert f"Damaged, and left out: {folder / name}: " in text
    assert f"warning: Damaged, and left out: {folder / name}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [("77_3d_fullres/fold_1/done.json", '{"fold": 1}'), ("77_best/decision.json", "[]"), ("77_best/scores.json", "{")],
)
def test_damaged_records_of_a_cross_validation_are_named(tmp_path, name, content):
    root = folders.make_cross_validation(tmp_path)
    (root / name).write_text(content)
    assert f"Damaged, and left out: {root / name}: " in read(write_report(root).path)[0]


def test_where_damage_leaves_nothing_the_error_names_it(tmp_path):
    folder = folders.make_scored(tmp_path)
    (folder / "scores.csv").write_text("case,target\na,b\n")
    with pytest.raises(UserError, match=r"(?s)holds no scores.*Damaged, and left out: .*scores\.csv"):
        write_report(folder)


def test_a_log_of_two_lives_has_each_epoch_once_and_a_cut_off_line_is_passed_over(tmp_path):
    path = tmp_path / "logs.json"
    path.write_text(
        folders.log_lines([{"dice": 0.1, "x": None}, {"dice": 0.2}]) + "\n" + folders.log_lines([{"dice": 0.3}])
    )
    assert read_epochs(path) == {0: {"dice": 0.3}, 1: {"dice": 0.2}}
    assert read_epochs(tmp_path / "none.json") == {}


def test_an_evaluation_names_what_was_missed_and_shows_the_worst_cases(tmp_path):
    written = write_report(folders.make_scored(tmp_path))
    text, reader = read(written.path)
    assert (written.kind, written.viewer_cases) == ("evaluation", 2)
    assert "organ missed (in the label and nowhere in the mask) in 1: plain" in text
    assert folders.EVIL in text and "b" not in reader.elements[reader.elements.index("table") :][:5]
    rows = re.findall(
        r'<tr data-shows="(\d)"><th scope="row"><button[^>]*>([^<]*)</button>', written.path.read_text(encoding="utf-8")
    )
    assert [(number, html.unescape(case)) for number, case in rows] == [("0", "plain"), ("1", folders.EVIL)]


def test_a_prediction_lists_volumes_empty_masks_and_failures(tmp_path):
    written = write_report(folders.make_predicted(tmp_path))
    text, _ = read(written.path)
    assert (written.kind, written.viewer_cases) == ("prediction", 3)
    # 6 x 14 x 8 voxels of 2 mm^3, and 16 x 14 x 8.
    for part in ("broken </script> is truncated", f"{folders.EVIL} 1.34", "large 3.58", "empty none", "1 mask empty"):
        assert part in text
    # The most unusual volume comes first in the viewer.
    assert re.search(
        r"<select id=\"view-case\"><option value=\"0\">empty</option>", written.path.read_text(encoding="utf-8")
    )


def test_a_cross_validation_says_what_was_decided_and_why(tmp_path):
    written = write_report(folders.make_cross_validation(tmp_path))
    text, _ = read(written.path)
    assert written.kind == "cross-validation" and written.path == tmp_path / "77_report.html"
    for part in (
        "Not finished: 1 fold. The last that they said: 2d fold_2",
        "predicted with 3d_fullres: of 2 candidates it has the highest mean Dice, 0.8250 against 0.4250 of 2d",
        "only the largest component is kept of organ; it changes the mean Dice from 0.8250 to 0.8500",
        "3d_fullres 0.8250 0.8250 0.8250 0.8250 – 2.0 min", "case_00 0.800 0.800 –",
    ):  # fmt: skip
        assert part in text


def test_folds_that_failed_say_why_also_where_no_other_is_finished(tmp_path):
    root = folders.make_cross_validation(tmp_path)
    (root / "77_2d" / "fold_2" / "output.log").write_text("epoch 1\nerror: no <room> on the disk\n\n")
    (root / "77_3d_lowres" / "fold_0").mkdir(parents=True)
    (root / "77_3d_lowres" / "fold_0" / "output.log").write_bytes(b"x" * 9000 + b"\nepoch 7 of 9 \xff")
    text, _ = read(write_report(root / "77_best").path)
    assert "Not finished: 2 folds." in text
    assert "2d fold_2 : error: no <room> on the disk" in text and "3d_lowres fold_0 : epoch 7 of 9 \ufffd" in text


def test_a_training_with_one_target_has_no_second_curve_of_it(tmp_path):
    written = write_report(folders.make_training(tmp_path / "results"))
    assert "mean</li>" not in written.path.read_text(encoding="utf-8")


def test_every_kind_is_known_by_what_lies_in_its_folder(tmp_path):
    training, results = folders.make_training(tmp_path / "t"), folders.make_cross_validation(tmp_path / "cv")
    assert find_kind(training)[0] == "training"
    for folder in (results, results / "77_best", results / "77_2d"):
        assert find_kind(folder) == ("cross-validation", results, "77")
    with pytest.raises(UserError, match="holds nothing that a page can be made of"):
        find_kind(tmp_path)


def test_no_page_asks_for_anything(tmp_path):
    for written in (
        write_report(folders.make_scored(tmp_path / "a")),
        write_report(folders.make_training(tmp_path / "b")),
    ):
        _, reader = read(written.path)
        assert {address.partition(":")[0] for address in reader.addresses if not address.startswith("#")} <= {"data"}
        assert "link" not in reader.elements
        own = re.sub(
            r"<script type=\"text/plain\".*?</script>", "", written.path.read_text(encoding="utf-8"), flags=re.DOTALL
        )
        assert set(re.findall(r"https?://[^\"'\s<]+", own)) == set()


def test_the_browser_may_run_the_scripts_of_the_page_and_no_other(tmp_path):
    page = write_report(folders.make_scored(tmp_path)).path.read_text(encoding="utf-8")
    stated = html.unescape(re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1])
    assert stated == policy([asset("page.js"), asset("viewer.js"), library_source()])
    assert "default-src 'none'" in stated and "unsafe-eval" not in stated and "script-src 'sha256-" in stated


def test_a_page_keeps_to_its_limit(tmp_path, capsys):
    folder = folders.make_scored(tmp_path)
    written = write_report(folder, Room(max_mb=1.5))
    assert written.num_bytes <= 1.5e6 and written.viewer_cases == 2
    written = write_report(folder, Room(max_mb=1.0))
    text, _ = read(written.path)
    assert written.num_bytes <= 1e6 and written.viewer_cases == 0 and "raise --max_mb" in text
    assert run_cli(lambda: command.main([str(folder), "--max_mb", "0.5"])) == 2
    assert "--max_mb must be at least 1" in capsys.readouterr().err


def test_the_command_writes_where_it_is_told_and_leaves_the_viewer_out(tmp_path, capsys):
    folder, output = folders.make_scored(tmp_path), tmp_path / "page.html"
    assert command.main([str(folder), "--output", str(output), "--viewer_cases", "0"]) == 0
    assert "evaluation, 0 cases in the viewer" in capsys.readouterr().out
    assert "view-library" not in output.read_text(encoding="utf-8") and not (folder / "report.html").exists()
    assert run_cli(lambda: command.main([str(folder), "--cases", "nobody"])) == 2
    assert "no such case: nobody" in capsys.readouterr().err


def test_names_that_are_no_text_and_a_scan_without_numbers_do_no_harm(tmp_path):
    folder = folders.make_predicted(tmp_path)
    odd = np.full(folders.SHAPE, np.nan, np.float32)
    folders.write_volume(folder / "odd\udcff.nii.gz", folders.block(slice(1, 3)))
    folders.write_volume(tmp_path / "scans" / "odd\udcff.nii.gz", odd)
    written = write_report(folder)
    assert "odd\\udcff 0.448" in read(written.path)[0] and written.viewer_cases == 4


def test_two_runs_write_the_same_bytes(tmp_path):
    folder = folders.make_scored(tmp_path)
    first = write_report(folder).path.read_bytes()
    assert write_report(folder).path.read_bytes() == first


def test_the_viewer_is_the_file_that_its_table_names():
    vendor = PROJECT / "report" / "vendor"
    table = (vendor / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256((vendor / "niivue.umd.js").read_bytes()).hexdigest() in table
    assert "Copyright (c) 2021, Niivue" in (vendor / "LICENSE.niivue").read_text(encoding="utf-8")
    # It becomes the text of a script element.
    assert "</script" not in library_source().lower()


def test_a_page_takes_the_place_of_pages_only(tmp_path):
    folder = folders.make_scored(tmp_path)
    scan = folder / "plain.nii.gz"
    before = scan.read_bytes()
    with pytest.raises(UserError, match="is no HTML page; it stays as it is"):
        command.main([str(folder), "--output", str(scan)])
    assert scan.read_bytes() == before
    for _ in range(2):
        assert command.main([str(folder), "--output", str(tmp_path / "page.html"), "--viewer_cases", "0"]) == 0

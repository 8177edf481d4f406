"""The page of a folder of masks shows their prediction and their scores, and the doubtful ones first."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np

from evaluate import main as evaluate
from report.masks import read_masks
from report.prediction import doubtful_first, in_turn, read_prediction
from report.sources import CaseFiles, by_case
from report.views import SMALL, Room
from report.writing import write_prediction_report, write_report
from tests.report import folders
from tests.report.folders import viewer_titles, write_doubt
from utils.nifti import read_image


def predicted_and_scored(root):
    """The masks of `make_predicted`, with doubt, of which labels are known, too."""
    folder = folders.make_predicted(root)
    write_doubt(folder, "large", 2.5, True, "channel MRI is constant")
    write_doubt(folder, "empty", 0.5, False)
    for case in by_case(folder):
        folders.write_volume(root / "data" / "labelsTr" / f"{case}.nii.gz", folders.block(slice(4, 10)))
    return folder, ["--preds", str(folder), "--lbls", str(root / "data" / "labelsTr")]


def page(folder) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def headings(text: str) -> list[str]:
    return re.findall(r"<h2>([^<]*)</h2>", text)


def test_an_evaluation_keeps_what_the_page_said_of_the_prediction(tmp_path):
    folder, words = predicted_and_scored(tmp_path)
    write_report(folder)
    assert headings(page(folder)) == ["Result", "Failed scans", "Doubt", "Scans", "Viewer", "Volumes", "Run"]
    assert evaluate(words) == 0
    text = page(folder)
    assert headings(text) == ["Scores", "Failed scans", "Doubt", "Missed and invented", "Cases", "Viewer", "Spread",
                              "Scans", "Volumes", "Run that predicted"]  # fmt: skip
    for part in ("is truncated", "channel MRI is constant", "3.58", "1 of 2 scans doubtful"):
        assert part in text
    # The doubt beside the Dice that it foretold: 2 * 6 / (16 + 6).
    row = re.search(r"<tr[^>]*><th scope=\"row\">(?:<button[^>]*>)?large.*?</tr>", text[text.index('id="doubt"') :])[0]
    assert "2.50" in row and "0.545" in row


def test_predicted_again_the_page_shows_the_old_scores_as_old(tmp_path, capsys):
    folder, words = predicted_and_scored(tmp_path)
    assert evaluate([*words, "--no_report"]) == 0
    shutil.copy(folder / "large.nii.gz", folder / "more.nii.gz")
    written = write_prediction_report(folder)
    assert written.kind == "prediction" and "Scores" in headings(page(folder))
    assert "warning: 1 mask without a score in scores.csv (more)" in capsys.readouterr().err


def test_scores_that_are_damaged_do_not_hide_the_prediction(tmp_path, capsys):
    folder = folders.make_predicted(tmp_path)
    (folder / "scores.csv").write_text("case,target\na,b\n")
    write_prediction_report(folder)
    assert "Scans" in headings(page(folder)) and "Scores" not in headings(page(folder))
    assert "scores.csv" in capsys.readouterr().err


def test_without_a_page_of_its_own_an_evaluation_leaves_none_of_earlier_scores(tmp_path, capsys):
    folder, words = predicted_and_scored(tmp_path)
    write_report(folder)
    assert evaluate([*words, "--no_report"]) == 0 and (folder / "report.html").exists()
    assert evaluate(words) == 0
    assert evaluate([*words, "--no_report"]) == 0 and not (folder / "report.html").exists()
    assert "report.html showed the scores before and is removed" in capsys.readouterr().err


def test_masks_that_something_else_predicted_have_their_scores_alone(tmp_path):
    write_report(folders.make_scored(tmp_path))
    assert headings(page(tmp_path / "masks")) == ["Scores", "Missed and invented", "Cases", "Viewer", "Spread"]


def test_masks_of_another_program_have_the_names_that_they_were_scored_by(tmp_path):
    folder = folders.make_scored(tmp_path)
    labels = {"labels": {"background": 0, "organ": 1, "ignore": 2}}
    folders.write_json(tmp_path / "data" / "dataset.json", labels)
    assert evaluate(["--preds", str(folder), "--lbls", str(tmp_path / "data" / "labelsTr")]) == 0
    settings = json.loads(re.search(r'id="view-settings">(.*?)</script>', page(folder))[1])
    assert [each["name"] for each in settings["structures"]] == ["organ"]
    assert read_masks(folder).labels.ignore_value == 2


def test_the_doubtful_come_first_in_the_viewer_and_their_rows_open_it(tmp_path):
    folder, words = predicted_and_scored(tmp_path)
    write_report(folder)
    text = page(folder)
    # `empty` has the most unusual volume.
    assert viewer_titles(text)[:2] == ["large (doubtful, 2.50)", "empty (doubt 0.50)"]
    section = text[text.index('id="doubt"') : text.index('id="scans"')]
    assert re.findall(r'<tr data-shows="(\d)"><th scope="row"><button[^>]*>([^<]*)<', section) == [
        ("0", "large"), ("1", "empty"),
    ]  # fmt: skip
    assert evaluate(words) == 0
    # Of scored ones the worst and the most doubtful in turn: the empty mask has a Dice of 0.
    assert [title.split()[0] for title in viewer_titles(page(folder))[:2]] == ["empty", "large"]


def test_a_page_that_takes_long_says_so(tmp_path, capsys, monkeypatch):
    folder = folders.make_predicted(tmp_path)
    write_prediction_report(folder)
    assert "reading" not in capsys.readouterr().out
    monkeypatch.setattr("report.writing.MANY", 2)
    write_prediction_report(folder)
    assert "reading 3 scans for their page; Ctrl-C leaves it out" in capsys.readouterr().out


def test_all_doubtful_scans_are_in_the_viewer_unless_a_number_is_asked_for(tmp_path):
    order = [f"case_{number}" for number in range(60)]
    assert Room().choose(order) == order[:12] and Room().choose(order, order[:30]) == order[:30]
    assert Room().choose(order, order[:50]) == order[:40]
    assert Room(viewer_cases=0).choose(order, order[:30]) == []
    assert Room(viewer_cases=5).choose(order, order[:30]) == order[:5]
    assert Room(viewer_cases=50).choose(order, order[:5]) == order[:50]
    # Scores have an order of their own: behind the usual places only doubtful scans follow, the most doubtful first.
    worst, doubtful = order[::-1], order[:30]
    assert Room().choose(in_turn(worst, order), doubtful) == [*in_turn(worst[:6], order[:6]), *order[6:30]]
    assert Room().choose(worst, order[:35]) == [*worst[:12], *order[:28]]


def test_small_cases_may_be_more_than_asked_for_by_nobody(tmp_path):
    folders.write_volume(tmp_path / "a_0000.nii.gz", folders.scan())
    files = [CaseFiles(case="a", image=tmp_path / "a_0000.nii.gz")]
    assert Room().fits(files) and not Room(max_mb=1).fits(files)
    assert not Room(viewer_cases=12).fits(files * 13)
    # All channels count.
    size = (tmp_path / "a_0000.nii.gz").stat().st_size
    room = Room(max_mb=Room().max_mb - (Room().volume_bytes - 1.5 * size / SMALL) / 1e6)
    assert room.fits(files)
    folders.write_volume(tmp_path / "a_0001.nii.gz", folders.scan())
    assert not room.fits(files)


def test_doubtful_scans_without_a_place_in_the_viewer_are_named(tmp_path):
    folder = folders.make_predicted(tmp_path)
    for number, case in enumerate(("large", "empty", folders.EVIL)):
        write_doubt(folder, case, 4.0 - number, case != folders.EVIL)
    write_report(folder, Room(viewer_cases=1))
    assert viewer_titles(page(folder)) == ["large (doubtful, 4.00)"]
    assert "1 doubtful scan is not in the viewer: empty. nnunet report --cases" in page(folder)
    for room in (Room(), Room(viewer_cases=0)):
        write_report(folder, room)
        assert "not in the viewer: empty" not in page(folder)


def test_without_verdicts_doubt_and_volumes_take_turns(tmp_path):
    folder = folders.make_predicted(tmp_path)
    write_doubt(folder, folders.EVIL, 0.9, None)
    write_doubt(folder, "large", 0.1, None)
    assert doubtful_first(read_prediction(folder)) == [folders.EVIL, "empty", "large"]
    assert in_turn("ab", "bcd", "") == ["a", "b", "c", "d"]


def test_a_scan_that_is_no_file_is_read_by_who_knows_it(tmp_path):
    folder = folders.make_predicted(tmp_path)
    scans = (tmp_path / "scans").rename(tmp_path / "elsewhere")
    assert write_report(folder).viewer_cases == 0
    readers = {case: lambda path=path: read_image([path]) for case, path in by_case(scans).items()}
    assert write_report(folder, readers=readers).viewer_cases == 3
    odd = scans / "odd.nii.gz"
    folders.write_volume(odd, np.zeros((3, 3, 3), np.int16))
    write_report(folder, readers=readers | {"large": lambda: read_image([odd])})
    assert "large.nii.gz lies on another grid than its scan<" in page(folder)

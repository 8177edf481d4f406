"""The label audit on the page of a cross-validation."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from report.audit import audit_in_words, read_suspicions, suspect_titles, with_suspects
from report.notices import collecting, notices
from report.viewer import View
from report.views import Room, Views
from report.volumes import PackedCase
from report.writing import write_report
from tests.report import folders
from utils.files import file_digest
from utils.label_audit import AuditRow, write_audit


def row(rank: int, case: str, *, suspicious: bool = False, scope: str = "case") -> AuditRow:
    return AuditRow(
        rank=rank, case=case, scope=scope, score=9.0 - rank, suspicious=suspicious, kind="shifted",
        structure="foreground", where="0-1 2-3 4-5", suggestion="shift 1 0 0", decision="", label="", label_digest="",
    )  # fmt: skip


def audited(folder: Path) -> Path:
    rows = [row(1, "case_10", suspicious=True), row(1, "case_10", scope="place"), row(2, "case_00")]
    folder.joinpath("77_audit").mkdir(parents=True)
    write_audit(rows, folder / "77_audit" / "audit.csv")
    return folder


def test_the_page_lists_suspicious_labels_first(tmp_path):
    audited(folders.make_cross_validation(tmp_path))
    text = write_report(tmp_path).path.read_text(encoding="utf-8")
    section = text[text.index('id="label-audit"') :]
    assert "of 1 case of 2" in section.replace("</", " </") or "label of 1 case of 2" in section
    assert section.index("case_10") < section.index("case_00") and "shift 1 0 0" in section


def test_without_an_audit_or_with_a_damaged_one_the_page_says_nothing(tmp_path, capsys):
    folders.make_cross_validation(tmp_path)
    assert "label-audit" not in write_report(tmp_path).path.read_text(encoding="utf-8")
    (tmp_path / "77_audit").mkdir()
    (tmp_path / "77_audit/audit.csv").write_text("x")
    assert read_suspicions(tmp_path, "77") == () and "warning" in capsys.readouterr().err


def test_an_audit_of_earlier_networks_or_labels_is_left_out_and_the_page_says_so(tmp_path):
    audited(folders.make_cross_validation(tmp_path))
    (tmp_path / "label.nii.gz").write_bytes(b"before")
    details = tmp_path / "77_audit/audit.json"
    [fold, *_] = tmp_path.glob("77_*/fold_*/done.json")
    details.write_text(json.dumps({"configuration": fold.parent.parent.name[3:]}))
    lines = [dataclasses.replace(row(number, f"case_{number}0"), label=str(tmp_path / "label.nii.gz"),
                                 label_digest=file_digest(tmp_path / "label.nii.gz")) for number in (1, 2)]  # fmt: skip
    write_audit([lines[0], dataclasses.replace(lines[1], label_digest="another")], tmp_path / "77_audit/audit.csv")
    with collecting():
        assert [each.case for each in read_suspicions(tmp_path, "77")] == ["case_10"]
        assert "says nothing of them now: case_20" in notices()[0]
    os.utime(fold, (fold.stat().st_atime, details.stat().st_mtime + 60))
    assert read_suspicions(tmp_path, "77") == ()
    text = write_report(tmp_path).path.read_text(encoding="utf-8")
    assert "run audit-labels again" in text and 'id="label-audit"' not in text


def test_suspects_have_as_many_places_as_they_need_up_to_the_most_that_a_viewer_holds():
    names = [f"worst{number}" for number in range(12)]
    for number, shown, cases in ((3, 3, 12), (20, 20, 27), (50, 30, 40)):
        rows = [row(rank, f"bad{rank:02}", suspicious=True) for rank in range(number)]
        found = with_suspects(names, rows, [each.case for each in rows], Room())
        assert found[:shown] == [each.case for each in rows][:shown] and len(found) == cases
        assert sum(case.startswith("bad") for case in found) == shown


def test_suspicious_cases_without_a_place_in_the_viewer_are_named():
    shown = View(case="bad1", title="", packed=PackedCase(files={}, window=(0, 1), reduced=""), at_mm=(0, 0, 0))
    rows = [row(number, f"bad{number}", suspicious=number < 4) for number in range(1, 6)]
    text = str(audit_in_words(rows, Views(shown=(shown,), refused={"bad2": "its scan was not found"})))
    assert "1 suspicious case is not in the viewer: bad3. nnunet report --cases" in text


def test_suspects_take_three_of_four_places_of_the_viewer():
    rows = [row(number, f"bad{number}", suspicious=True) for number in range(1, 7)]
    known = [*(f"bad{number}" for number in range(1, 7)), "x", "y", "z", "w"]
    four, none = Room(viewer_cases=4), Room(viewer_cases=0)
    assert with_suspects(["x", "bad2", "y", "z"], rows, known, four) == ["bad1", "bad2", "bad3", "x"]
    sound = [row(number, f"bad{number}") for number in range(1, 7)]
    assert with_suspects(["x", "bad2"], sound, known, Room()) == ["x", "bad2", "bad1", "bad3"]
    assert with_suspects(["x", "bad2"], sound, known, Room(viewer_cases=2)) == ["x", "bad2"]
    assert with_suspects(["x"], rows, ["x"], four) == ["x"] and with_suspects([], rows, known, none) == []
    assert suspect_titles(rows, {"bad1": "bad1 (0.5)", "x": "x"}) == {
        "bad1": "bad1 (0.5): label looks shifted",
        "x": "x",
    }

"""The table of an audit survives writing, spreadsheets and people."""

from __future__ import annotations

import dataclasses

import pytest

from utils.errors import UserError
from utils.label_audit import COLUMNS, AuditRow, box_text, parse_box, read_audit, write_audit

ROW = AuditRow(
    rank=1, case="a,b", scope="case", score=12.345, suspicious=True, kind="swapped classes", structure="a and b",
    where="0-3 1-1 2-9", suggestion="swap 1 2", decision="", label="/data/a.nii.gz", label_digest="0f",
)  # fmt: skip


def test_what_is_written_is_read(tmp_path):
    write_audit([ROW], tmp_path / "audit.csv")
    [row] = read_audit(tmp_path / "audit.csv")
    assert row.score == 12.35 or row.score == 12.34
    assert (row.case, row.suspicious, row.where, row.suggestion) == ("a,b", True, ROW.where, "swap 1 2")


def test_a_spreadsheet_may_write_semicolons_commas_and_a_mark(tmp_path):
    text = "\ufeffcase;scope;score;where;decision;label_digest\r\nanna;case;3,5;0-1 0-1 0-1; remove ;ab\r\n"
    (tmp_path / "audit.csv").write_bytes(text.encode())
    [row] = read_audit(tmp_path / "audit.csv")
    assert (row.case, row.score, row.decision, row.label_digest) == ("anna", 3.5, "remove", "ab")


HEADER = ",".join(COLUMNS)
LINE = "1,anna,case,3.5,yes,shifted,Schädel,0-1 0-1 0-1,shift 0 0 1, remove ,/d/anna.nii.gz,sha256:12345678"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_spreadsheet_may_have_saved_it(tmp_path, encoding, mark, end):
    line = LINE.replace(",", mark)
    text = end.join([HEADER.replace(",", mark), line.replace("3.5", "3,5") if mark == ";" else line, mark * 11, "", ""])
    (tmp_path / "audit.csv").write_bytes(text.encode(encoding))
    [row] = read_audit(tmp_path / "audit.csv")
    assert (row.case, row.score, row.decision, row.structure) == ("anna", 3.5, "remove", "Schädel")
    assert row.label_digest == "12345678"


def test_a_digest_is_no_number_to_a_spreadsheet(tmp_path):
    write_audit([dataclasses.replace(ROW, label_digest="1e23")], tmp_path / "audit.csv")
    assert ",sha256:1e23\n" in (tmp_path / "audit.csv").read_text()
    assert read_audit(tmp_path / "audit.csv")[0].label_digest == "1e23"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([HEADER, LINE, LINE[:20]], "line 3: it has 6 cells, the first line 12"),
        ([HEADER, LINE.replace(" remove ", "swap 1, 2")], "line 2: it has 13 cells"),
        ([HEADER, LINE.replace(" remove ", '"remove'), LINE], "line 3: .*quotation mark"),
        ([HEADER, LINE.replace(" remove ", '"remove'), LINE.replace(" remove ", 'keep"')], "quotation mark"),
        ([HEADER, LINE.replace("anna,", ",")], "line 2: it names no case"),
        ([HEADER + ",decision", LINE + ",keep"], "two columns decision"),
        ([HEADER, LINE.replace("anna", "a" * 200_000)], "line 2: field larger"),
        ([f'"{HEADER}";', f'"{LINE}";remove'], r"audit\.csv"),
    ],
)  # fmt: skip
def test_a_damaged_table_is_refused_and_the_line_named(tmp_path, lines, message):
    (tmp_path / "audit.csv").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_audit(tmp_path / "audit.csv")


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"\xff\xfe\x00", b"", b"\x89PNG\r\n\x1a\n\x81\x00"])
def test_another_table_is_refused(tmp_path, content):
    (tmp_path / "audit.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"audit\.csv"):
        read_audit(tmp_path / "audit.csv")


def test_faulty_lines_are_named(tmp_path):
    (tmp_path / "audit.csv").write_text("case,scope,where,decision,label_digest,score\na,case,,,,x\nb,case,,,,1\n")
    with pytest.raises(UserError, match="line 2"):
        read_audit(tmp_path / "audit.csv")


def test_boxes_name_first_and_last_voxel():
    assert box_text([(0, 4), (1, 2), (2, 10)]) == ROW.where
    assert parse_box(ROW.where) == (slice(0, 4), slice(1, 2), slice(2, 10))
    with pytest.raises(ValueError, match="no box"):
        parse_box("3 4 5")
    # Backwards it would hold no voxel, and nothing would be done in silence.
    with pytest.raises(ValueError, match="no box"):
        parse_box("3-1 0-4 0-9")

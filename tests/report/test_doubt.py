"""Doubt on a prediction's page: the most doubtful scan first, its remarks and its verdict in words."""

from __future__ import annotations

import dataclasses

from inference.doubt_files import summary_line
from report.doubt import doubt_table, read_doubts
from report.notices import collecting, notices
from tests.report.folders import write_doubt as write


def test_the_most_doubtful_scan_comes_first_with_what_is_said_of_it(tmp_path):
    write(tmp_path, "fine", 0.2, False)
    write(tmp_path, "odd", 3.5, True, "channel MRI is constant", "voxels < 2 mm")
    (tmp_path / "cut.doubt.json").write_text('{"version": 1')
    with collecting():
        records = read_doubts(tmp_path)
        assert "cut.doubt.json" in str(notices())
    assert [record.case for record in records] == ["odd", "fine"]
    text = str(doubt_table(records))
    assert "1 of 2 scans doubtful" in text and text.index("words of odd") < text.index("words of fine")
    assert "channel MRI is constant; voxels &lt; 2 mm" in text and "0.625" in text


def test_without_verdicts_the_table_says_so(tmp_path):
    assert doubt_table(read_doubts(tmp_path)) is None
    write(tmp_path, "a", 0.2, None)
    assert "without a cross-validation there is no verdict" in str(doubt_table(read_doubts(tmp_path)))


def test_edited_masks_without_a_verdict_are_not_said_to_lack_a_cross_validation(tmp_path):
    write(tmp_path, "a", 0.2, False)
    [known] = read_doubts(tmp_path)
    edited = dataclasses.replace(known, doubtful=None, words="the mask was edited")
    text = str(doubt_table([edited]))
    assert "1 scan; edited masks have no verdict" in text and "the mask was edited" in text
    assert "A doubt of 1 is where the worst tenth" in text
    assert "no verdict on masks that were edited" in summary_line([edited])
    assert "there is no cross-validation" in summary_line([dataclasses.replace(edited, calibrated=False)])


def test_table_file_and_viewer_have_one_order(tmp_path):
    for case, *remarks in (("a",), ("b", "odd"), ("c", "odd", "odder")):
        write(tmp_path, case, 0.5, False, *remarks)
    records = read_doubts(tmp_path)
    assert [record.case for record in records] == ["c", "b", "a"]
    assert sorted(records, key=lambda record: record.rank) == records

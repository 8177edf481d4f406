"""Doubt on a prediction's page: the most doubtful scan first, its remarks and its verdict in words."""

from __future__ import annotations

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

"""Doubt on a prediction's page: the most doubtful scan first, its remarks and its verdict in words."""

from __future__ import annotations

from report.doubt import doubt_table, read_doubts
from report.notices import collecting, notices
from utils.certainty import Certainty, DoubtRecord
from utils.files import write_json


def write(folder, case: str, score: float, doubtful: bool | None, *remarks: str) -> None:
    said = Certainty(members=2, voxels=(1.0,), confidence=(0.5,), overlap=(0.5,), agreement=(0.625,))
    record = DoubtRecord(
        version=1, case=case, score=score, calibrated=doubtful is not None, doubtful=doubtful, words=f"words of {case}",
        remarks=remarks, targets=("organ",), certainties={"2d": said},
    )  # fmt: skip
    write_json(record, folder / f"{case}.doubt.json")


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

"""Series of a study become the channels of one scan, by their descriptions or by a table."""

from __future__ import annotations

import numpy as np
import pytest

from inference.page_scans import scans_again
from inference.scans import find_input
from tests.data_preprocessing.builders import make_plan
from tests.inference.dicom.made_up import values, write_series
from utils.errors import UserError
from utils.files import write_json


def write_study(folder, *names: str, study: str = "1.2.3", **options):
    return [
        write_series(
            folder / str(number), values(seed=number), number=number, study=study, SeriesDescription=name, **options
        )
        for number, name in enumerate(names)
    ]


def scans(place, words, channels=2):
    return {scan.case: scan for scan in find_input(place, channels, words).scans}


def problem(place, words, channels=2) -> str:
    (scan,) = scans(place, words, channels).values()
    with pytest.raises(UserError) as caught:
        scan.read()
    return str(caught.value)


@pytest.mark.parametrize("words", [("*t1*", "*FLAIR*"), ("number:2", "number:0"), ("t1?sag", "modality:CT")])
def test_patterns_say_which_series_is_which_channel(tmp_path, words):
    write_study(tmp_path / "anna", "FLAIR tra", "localizer", "T1 sag")
    if words[1].startswith("modality"):
        for kind in ("CT", "OT", "MR"):
            write_study(tmp_path / "ben" / kind, "T1 sag" if kind == "MR" else "x", study="5.6", Modality=kind)
        assert scans(tmp_path / "ben", words)["ben"].read().array.shape[0] == 2
        return
    found = find_input(tmp_path, 2, words)
    (scan,) = found.scans
    assert scan.case == "anna" and scan.header()[0] == (7, 6, 5, 2)
    array = scan.read().array[:, :, ::-1, ::-1]
    np.testing.assert_array_equal(array, np.stack([values(seed=2), values()]) - 1024.0)
    assert "series 1 'localizer' (CT, 5 files): --dicom_channels fits it to no channel" in found.left_out


def test_studies_are_cases_of_their_own(tmp_path):
    write_study(tmp_path / "a", "T1", "T2", study="1.1")
    write_study(tmp_path / "b", "T1", "T2", study="1.2")
    write_study(tmp_path / "c", "other", study="1.3")
    assert set(scans(tmp_path, ("T1", "T2"))) == {"a", "b"}
    # One pattern chooses among the series for a model of one channel.
    assert set(scans(tmp_path, ("T2",), 1)) == {"a_1", "b_1"}


def test_what_fits_no_or_several_series_is_a_problem_of_its_case(tmp_path):
    write_study(tmp_path / "a", "T1 pre", "T1 post")
    said = problem(tmp_path / "a", ("T1*", "T2*"))
    assert "2 series (0, 1) of description 'T1*' for channel 0 of the model" in said
    assert "no series of description 'T2*' for channel 1" in said


def test_channels_on_other_grids_are_refused(tmp_path):
    write_study(tmp_path, "T1")
    write_series(
        tmp_path / "1", values(), number=1, study="1.2.3", SeriesDescription="T2", origin=(-20.5, 10.25, 101.0)
    )
    assert "lies on another grid than 0" in problem(tmp_path, ("T1", "T2"))


def test_a_table_names_the_series(tmp_path):
    _, two = write_study(tmp_path / "a", "x", "x")
    table = tmp_path / "channels.csv"
    table.write_text(f"case,T1,T2\npatient 7,{two.uid},a_0\n")
    (scan,) = find_input(tmp_path, 2, (str(table),)).scans
    assert scan.case == "patient_7"
    np.testing.assert_array_equal(scan.read().array[0, :, ::-1, ::-1], values(seed=1) - 1024.0)
    table.write_text("case,T1,T2\np,nothing,a_0\n")
    with pytest.raises(UserError, match="p: nothing is no series of the input"):
        find_input(tmp_path, 2, (str(table),))
    table.write_text("case,T1\np,a_0\n")
    with pytest.raises(UserError, match="each line has a case and its 2 series"):
        find_input(tmp_path, 2, (str(table),))


@pytest.mark.parametrize("first", ["", "case,T1,T2\n"], ids=["none", "titles"])
def test_a_table_has_all_of_its_cases_with_and_without_titles(tmp_path, first):
    one, two = write_study(tmp_path / "a", "x", "x")
    table = tmp_path / "channels.csv"
    for left, right in ((one.uid, two.uid), ("a_0", "a_1")):
        table.write_text(f"{first}p,{left},{right}\nq,{right},{left}\n")
        assert set(scans(tmp_path, (str(table),))) == {"p", "q"}
    for left, right in (("1.2.3", two.uid), ("a_O", "a_1"), (one.uid, "a_l")):
        table.write_text(f"{first}p,{left},{right}\nq,{one.uid},{two.uid}\n")
        wrong = right if left == one.uid else left
        with pytest.raises(UserError, match=rf"p: {wrong} is no series of the input"):
            find_input(tmp_path, 2, (str(table),))


def test_the_first_case_of_a_table_is_none_of_titles_whatever_later_lines_say(tmp_path):
    one, two = write_study(tmp_path / "a", "x", "x")
    table = tmp_path / "channels.csv"
    for later in (f"{one.uid},{two.uid}", "a_0,a_1", "a_1,a_0"):
        table.write_text(f"p,a_0,a_1\nq,{later}\n")
        assert set(scans(tmp_path, (str(table),))) == {"p", "q"}


def test_brackets_of_a_description_mean_themselves(tmp_path):
    write_study(tmp_path, "t1 [sag] 3mm", "t2 [1-3]*?", "t2 2")
    assert [len(scans(tmp_path, (word,), 1)) for word in ("T1 [SAG]*", "t2 [1-3]*?")] == [1, 1]
    with pytest.raises(UserError, match="holds no DICOM series that --dicom_channels fits"):
        find_input(tmp_path, 1, ("t2 [1-3]",))


def test_as_many_patterns_as_channels_are_wanted(tmp_path):
    write_study(tmp_path, "T1", "T2")
    with pytest.raises(UserError, match="has 1 patterns, and the model 2 channels"):
        find_input(tmp_path, 2, ("T1",))
    (first, _) = find_input(tmp_path, 2).scans
    with pytest.raises(UserError, match="say by --dicom_channels which series"):
        first.read()


@pytest.mark.parametrize("by_table", [False, True])
def test_a_page_that_is_made_again_puts_the_same_series_together(tmp_path, monkeypatch, by_table):
    one, two = write_study(tmp_path / "scans" / "anna", "FLAIR", "T1")
    words = ["*T1*", "*flair*"]
    if by_table:
        (tmp_path / "table.csv").write_text(f"case,T1,FLAIR\nanna,{two.uid},{one.uid}\n")
        words = ["table.csv"]
    # Without a plan there are as many channels as patterns.
    plan = make_plan(channels=("zscore", "zscore")) if by_table else None
    monkeypatch.setattr("inference.page_scans.plan_behind", lambda masks, run: plan)
    options = {"input": "scans", "dicom_channels": words}
    (tmp_path / "masks").mkdir()
    write_json({"options": options, "working_folder": str(tmp_path)}, tmp_path / "masks" / "run.json")
    with scans_again(tmp_path / "masks") as readers:
        assert list(readers) == ["anna"]
        np.testing.assert_array_equal(readers["anna"]().array[0, :, ::-1, ::-1], values(seed=1) - 1024.0)

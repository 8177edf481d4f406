"""Scans are found in folders and by patterns, and files of one case become its channels."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_preprocessing.dataset.scan_search import File, find_files, group_channels


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def found(*places: object) -> list[tuple[str, str | None]]:
    problems: list[str] = []
    files = find_files([str(place) for place in places], problems, flag="--images")
    assert problems == []
    return [(file.key, file.channel) for file in files]


def test_a_folder_is_searched_with_its_folders_and_without_hidden_files(tmp_path):
    touch(tmp_path, "b.nii", "p/a.nii.gz", "._b.nii", ".git/x.nii", "notes.txt", "c.nii.txt")
    assert found(tmp_path) == [("b", None), ("p/a", None)]


def test_a_pattern_is_relative_to_its_fixed_part(tmp_path):
    touch(tmp_path, "p1/ct.nii.gz", "p2/ct.nii.gz", "p1/seg.nii.gz")
    assert found(tmp_path / "*/ct.nii.gz") == [("p1/ct", None), ("p2/ct", None)]
    assert found(tmp_path / "**/seg.nii.gz") == [("p1/seg", None)]


def test_case_and_channel_are_read_from_the_pattern(tmp_path):
    touch(tmp_path, "p_1/p_1_t1.nii.gz", "p_1/p_1_t2.nii.gz", "p_1/q_t2.nii.gz")
    assert found(f"{tmp_path}/{{case}}/{{case}}_{{channel}}.nii.gz") == [("p_1", "t1"), ("p_1", "t2")]


def test_several_patterns_are_one_for_each_channel(tmp_path):
    touch(tmp_path, "a/t1.nii", "a/t2.nii")
    assert found(f"{tmp_path}/{{case}}/t2.nii", f"{tmp_path}/{{case}}/t1.nii") == [("a", "0000"), ("a", "0001")]


def test_listed_files_are_called_relative_to_what_they_share(tmp_path):
    touch(tmp_path, "p1/ct.nii", "p2/ct.nii")
    assert found(tmp_path / "p1/ct.nii", tmp_path / "p2/ct.nii") == [("p1/ct", None), ("p2/ct", None)]


def test_what_finds_nothing_and_what_finds_a_name_twice_is_said(tmp_path):
    touch(tmp_path, "scans/a.nii", "scans/a.nii.gz", "x.dcm")
    problems: list[str] = []
    find_files([f"{tmp_path}/scans", f"{tmp_path}/x.dcm", f"{tmp_path}/none*"], problems, flag="--images")
    assert [problem.replace(str(tmp_path), "") for problem in problems] == [
        "--images /x.dcm: no scan there (.nii.gz, .nii, .nrrd, .nhdr, .mha, .mhd, or .png, .tif)",
        "--images /none*: no scan there (.nii.gz, .nii, .nrrd, .nhdr, .mha, .mhd, or .png, .tif)",
        "--images: /scans/a.nii and /scans/a.nii.gz are both called a",
    ]


def grouped(
    *keys: str, names: tuple[str, ...] = (), num_cases: int | None = None
) -> tuple[dict[str, list[str]], list[str]]:
    files = [File(key=key, path=Path(f"{key}.nii")) for key in keys]
    scans, words = group_channels(files, names, num_cases)
    return {scan.key: [path.stem for path in scan.paths] for scan in scans}, words


def test_numbered_files_are_channels():
    assert grouped("b_0000", "a_0001", "a_0000", "b_0001") == (
        {"a": ["a_0000", "a_0001"], "b": ["b_0000", "b_0001"]}, [],
    )  # fmt: skip
    assert grouped("a_0000")[0] == {"a": ["a_0000"]}


def test_years_are_no_channels():
    assert grouped("scan_2019", "scan_2020")[0] == {"scan_2019": ["scan_2019"], "scan_2020": ["scan_2020"]}


def test_last_words_are_channels_where_they_make_as_many_cases_as_labels():
    keys = ("1_t1", "1_flair", "2_t1", "2_flair")
    assert grouped(*keys, num_cases=2) == ({"1": ["1_flair", "1_t1"], "2": ["2_flair", "2_t1"]}, ["flair", "t1"])
    assert list(grouped(*keys, num_cases=4)[0]) == sorted(keys)


def test_names_of_channels_give_their_order():
    assert grouped("1_t1", "1_flair", names=("T1", "FLAIR")) == ({"1": ["1_t1", "1_flair"]}, ["t1", "flair"])


@pytest.mark.parametrize("names", [(), ("t1", "t2")])
def test_a_case_without_one_of_its_channels_is_not_taken_for_complete(names):
    scans, _ = grouped("1_t1", "1_t2", "2_t1", names=names, num_cases=2)
    assert scans == ({"1": ["1_t1", "1_t2"], "2": ["2_t1"]} if names else {k: [k] for k in ("1_t1", "1_t2", "2_t1")})

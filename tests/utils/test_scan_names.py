"""Files are scans by their endings in any case; what a folder holds besides is named."""

from __future__ import annotations

import pytest

from utils.scan_names import (
    group_channels,
    left_out,
    scan_ending,
    scan_files,
    scan_stem,
    scan_tree,
    split_channel,
)


@pytest.mark.parametrize(
    ("name", "stem", "ending"),
    [
        ("a.nii", "a", ".nii"), ("a.NII.GZ", "a", ".NII.GZ"), ("a.b.Nii.gz", "a.b", ".Nii.gz"),
        ("a\nb.nii.gz", "a\nb", ".nii.gz"), ("a.nii\n", "a.nii\n", ""), (".nii", ".nii", ""),
        ("a.nii.bz2", "a.nii.bz2", ""), ("a.NRRD", "a", ".NRRD"), ("a.seg.nhdr", "a.seg", ".nhdr"),
        ("a.mha", "a", ".mha"),
        ("a.mhd", "a", ".mhd"), ("a.png", "a", ".png"), ("a.TIFF", "a", ".TIFF"), ("a.jpg", "a.jpg", ""),
    ],
)  # fmt: skip
def test_endings(name, stem, ending):
    assert (scan_stem(name), scan_ending(name)) == (stem, ending)


def test_files_of_a_folder(tmp_path):
    for name in ("b.NII.GZ", "a.nii", "a\nb.nii.gz", "._a.nii", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "gone.nii").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.nii.gz").mkdir()
    assert [path.name for path in scan_files(tmp_path)] == ["a\nb.nii.gz", "a.nii", "b.NII.GZ", "gone.nii"]
    assert [path.name for path in scan_files(tmp_path, ".nii.gz")] == ["a\nb.nii.gz", "b.NII.GZ"]
    assert scan_files(tmp_path / "none") == []


def test_pictures_are_scans_where_there_are_no_volumes(tmp_path):
    for name in ("only/b.png", "only/a.TIF", "both/a.nrrd", "both/overlay.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in scan_files(tmp_path / "only")] == ["a.TIF", "b.png"]
    assert [path.name for path in scan_files(tmp_path / "both")] == ["a.nrrd"]
    assert [path.name for path in scan_tree(tmp_path)] == ["a.nrrd"]
    assert len(scan_tree(tmp_path / "only")) == 2


def test_what_is_left_out_is_named(tmp_path):
    for name in (
        "a.nii",
        "x.mgz",
        "y.nii.bz2",
        "z.HDR",
        "notes.txt",
        "z.nii\n",
        "sub/deep/c.NII.GZ",
        ".hidden/d.nii",
        "empty/e.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert left_out(tmp_path) == [
        "sub/ (a folder with 1 scans, such as c.NII.GZ)", "x.mgz (not read here)", "y.nii.bz2 (not read here)",
        "z.HDR (not read here)", "'z.nii\\n' (blanks or line breaks after its ending)",
    ]  # fmt: skip


def test_a_tree_follows_links_and_ends_where_they_go_in_circles(tmp_path):
    (tmp_path / "in/sub").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/b.nii").touch()
    (tmp_path / "in/sub/a.nii").touch()
    (tmp_path / "in/other").symlink_to(tmp_path / "out")
    (tmp_path / "in/sub/again").symlink_to(tmp_path / "in")
    found = [path.relative_to(tmp_path).as_posix() for path in scan_tree(tmp_path / "in")]
    assert found == ["in/other/b.nii", "in/sub/a.nii"]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a_0001", ("a", 1)), ("a_b_2019", ("a_b", 2019)), ("a\nb_0000", ("a\nb", 0)), ("a_0001_0002", ("a_0001", 2)),
        ("a_001", None), ("a_00001", None), ("_0000", None), ("a0000", None), ("a", None), ("a_0000\n", None),
    ],
)  # fmt: skip
def test_four_digits_at_the_end_are_a_channel(name, found):
    assert split_channel(name) == found


def test_files_are_grouped_by_case_and_channel():
    names = ["b_0001.nii", "a_0000.nii.gz", "notes.nii", "b_0000.nii", "a_0000.nii", "years_20201.nii"]
    groups = group_channels(names, scan_stem)
    assert groups.cases == {"b": {1: ["b_0001.nii"], 0: ["b_0000.nii"]}, "a": {0: ["a_0000.nii.gz", "a_0000.nii"]}}
    assert groups.others == ["notes.nii", "years_20201.nii"]

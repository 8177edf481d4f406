"""Headers that readers written in C do not survive."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.text_headers import LONGEST_LINE, require_harmless, require_text_name

META = "ObjectType = Image\nNDims = 3\nDimSize = 6 5 4\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: 6 5 4\nencoding: raw\n\n"
VOXELS = bytes(240)


def refused(path: Path, text: str, match: str) -> None:
    path.write_bytes(text.encode() + VOXELS)
    with pytest.raises(UserError, match=match):
        require_harmless(path)


@pytest.mark.parametrize(
    "named",
    ["sl%03d.raw 1 2 1", "LIST", "LIST 2", "my%20scan.raw", "sl%s.raw 1 4 1", "a b%c d.raw", "%"],
)
def test_a_metaimage_in_several_files_is_refused_packed_or_not(tmp_path, named):
    """What two files do not hold of four slices was taken from memory; other percent signs ended the process."""
    for text in (META, META.replace("NDims", "CompressedData = True\nNDims")):
        refused(tmp_path / "a.mhd", text.replace("LOCAL", named), "in several files, or in one whose name is read as")


@pytest.mark.parametrize("axes", ["-1", "0", "1", "5", "100", "3\nNDims = 2", "three", ""])
def test_a_metaimage_has_two_to_four_axes(tmp_path, axes):
    refused(tmp_path / "a.mha", META.replace("NDims = 3", f"NDims = {axes}"), "2, 3 or 4 axes")


@pytest.mark.parametrize("line", ["type: {}", "labels: {}", "{}", "content: {}"])
def test_a_long_line_of_an_nrrd_is_refused(tmp_path, line):
    long = line.format("x" * 2000)
    for end in ("\n", "\r", "\r\n"):
        refused(tmp_path / "a.nrrd", NRRD.replace("dimension", f"{long}{end}dimension"), "has a line of 20")


def test_what_is_usual_passes(tmp_path):
    for number, text in enumerate((
        NRRD, NRRD.replace("type", f"# {'x' * 3000}\nkey:={'x' * 3000}\ntype"), NRRD + "x" * 5000,
        NRRD.replace("type", f"content: {'x' * (LONGEST_LINE - 20)}\ntype"), META, META.replace("LOCAL", "a b.raw"),
        META.replace("NDims = 3", "Comment = 50 % of it\nNDims : 3 "), META.replace("\n", "\r\n"),
        META.replace("LOCAL", "list of t1.raw"),
    )):  # fmt: skip
        path = tmp_path / f"{number}.mha"
        path.write_bytes(text.encode() + VOXELS)
        require_harmless(path)


def test_a_name_that_is_no_text_is_refused(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/Do\xe9.nrrd"))
    with pytest.raises(UserError, match=r"Do\?\.nrrd has a name that is no UTF-8; rename it") as caught:
        require_text_name(path)
    assert caught.value.files == (path,)

"""Overlays of scans in other formats than their masks."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from report.sources import by_case, scans_of_folder
from report.writing import find_kind
from tests.tiny_task import write_scan
from utils.errors import UserError
from utils.geometry import Geometry
from utils.nifti import write_volume
from utils.overlay import draw_overlay


@pytest.mark.slow
def test_scan_mask_and_label_may_have_different_formats(tmp_path):
    pytest.importorskip("SimpleITK", reason="the extra `formats` is not installed")
    affine = tuple(map(tuple, np.diag([-1.0, 1, 2, 1]).tolist()))
    grid = Geometry(shape_xyz=(6, 5, 4), affine=affine, qform_code=1, sform_code=1, xyzt_units=2)
    scan = np.random.default_rng(0).uniform(0, 9, (4, 5, 6)).astype(np.float32)
    for name, array in (("images/a_0000.nrrd", scan), ("masks/a.mha", scan > 5), ("labels/a.nii.gz", scan > 4)):
        (tmp_path / name).parent.mkdir()
        write_volume(tmp_path / name, array if array.dtype == np.float32 else array.astype(np.uint8), grid)
    draw_overlay(tmp_path / "a.png", tmp_path / "images", tmp_path / "masks", labels=tmp_path / "labels", case="a")
    assert (tmp_path / "a.png").stat().st_size > 1000
    # The page of a prediction finds the same files.
    assert find_kind(tmp_path / "masks")[0] == "prediction"
    assert by_case(tmp_path / "masks") == {"a": tmp_path / "masks/a.mha"}
    assert scans_of_folder(tmp_path / "images") == {"a": tmp_path / "images/a_0000.nrrd"}


@pytest.mark.parametrize("target", ["images/a.nii.gz", "masks/a.nii.gz", "notes.txt"])
def test_a_scan_is_no_place_for_its_overlay(tmp_path, target):
    make_scan_and_mask(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    before = (tmp_path / target).read_bytes()
    with pytest.raises(UserError, match=r"--output .* it stays as it is"):
        draw_overlay(tmp_path / target, tmp_path / "images", tmp_path / "masks", labels=None, case=None)
    assert (tmp_path / target).read_bytes() == before


def test_no_mask_of_a_picture_is_a_place_for_an_overlay(tmp_path):
    for name in ("images/a", "images/b", "masks/a", "masks/b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.ones((8, 9), np.uint8)).save(tmp_path / f"{name}.png")
    for name in ("images/b", "masks/b", "masks/a"):
        with pytest.raises(UserError, match="is read here"):
            draw_overlay(tmp_path / f"{name}.png", tmp_path / "images", tmp_path / "masks", labels=None, case="a")


def test_an_earlier_overlay_is_replaced(tmp_path):
    make_scan_and_mask(tmp_path)
    for _ in range(2):
        draw_overlay(tmp_path / "a.png", tmp_path / "images", tmp_path / "masks", labels=None, case=None)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def make_scan_and_mask(root):
    for folder in ("images", "masks"):
        write_scan(root / folder / "a.nii.gz", np.ones((4, 5, 6), np.uint8))

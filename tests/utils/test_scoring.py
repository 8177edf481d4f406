"""A mask and its label: one grid, one reading, counts."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from utils.errors import UserError
from utils.nifti import read_label
from utils.schema import LabelScheme
from utils.scoring import class_indices, score_mask

LABELS = LabelScheme(names=("background", "organ", "lesion"), values=(0, 4, 9), ignore_value=7)
TRUTH = np.array([[[0, 4], [4, 9]], [[9, 7], [0, 0]]], dtype=np.uint8)
"""(x, y, z) as stored."""


def write(path, values, affine=None):
    nib.save(nib.Nifti1Image(values, np.diag([-1.0, 1, 2, 1]) if affine is None else affine), path)
    return path


def score(tmp_path, mask, affine=None):
    label = write(tmp_path / "label.nii.gz", TRUTH)
    volume = read_label(write(tmp_path / "mask.nii.gz", mask, affine))
    classes = class_indices(volume.array, LABELS, tmp_path / "mask.nii.gz")
    return score_mask(classes, volume.geometry, label, LABELS, of="its mask")


def test_counts_are_those_of_the_voxels_and_ignored_ones_are_left_out(tmp_path):
    mask = np.array([[[4, 4], [0, 9]], [[4, 9], [0, 0]]], dtype=np.uint8)
    assert score(tmp_path, mask).tolist() == [[1, 2, 1], [1, 0, 1]]


@pytest.mark.parametrize(
    ("mask", "affine", "reason"),
    [
        (TRUTH[:1], None, r"label\.nii\.gz has shape \(2, 2, 2\), its mask \(1, 2, 2\)"),
        (TRUTH, np.diag([-1.0, 1, 3, 1]), "lies 1 mm off its mask"),
        (TRUTH + np.uint8(1), None, "values that are no label: 1, 5, 8"),
    ],
    ids=["shape", "place", "values"],
)
def test_what_cannot_be_compared_is_refused(tmp_path, mask, affine, reason):
    with pytest.raises(UserError, match=reason):
        score(tmp_path, mask, affine)


def test_the_ignored_value_becomes_the_class_after_the_last():
    found = class_indices(TRUTH.astype(np.int64), LABELS, None)
    assert found.dtype == np.uint8 and np.unique(found).tolist() == [0, 1, 2, 3]

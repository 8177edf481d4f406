"""A case is read and checked as a whole: every fault of image and label is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_preprocessing.dataset.case_files import CaseFiles
from data_preprocessing.dataset.checks import check_case
from data_preprocessing.dataset.description_file import Dataset
from utils.nifti import Volume
from utils.schema import Geometry, LabelScheme


def volume(array: np.ndarray, *, origin_mm: float = 0.0) -> Volume:
    affine = ((1.0, 0.0, 0.0, origin_mm), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    geometry = Geometry(shape_xyz=array.shape[:-4:-1], affine=affine, qform_code=1, sform_code=1, xyzt_units=2)
    return Volume(array=array, spacing_mm=(1.0, 1.0, 1.0), geometry=geometry)


def problems_of(
    image: Volume, label: Volume | None, *, ignore_value: int | None = None, channel: str = "MRI"
) -> list[str]:
    files = CaseFiles(case="a", images=(Path("i/a.nii"),), label=Path("l/a.nii"))
    labels = LabelScheme(names=("background", "tumour"), values=(0, 2), ignore_value=ignore_value)
    dataset = Dataset(
        task="07", name="Task07_Toy", folder=Path("."), channels=(channel,), labels=labels, training=(files,), test=()
    )
    return [finding.message for finding in check_case(files, image, label, dataset)]


def scan() -> np.ndarray:
    return np.ones((1, 2, 3, 4), np.float32)


def mask(*values: int) -> np.ndarray:
    array = np.zeros((2, 3, 4), np.int16)
    array.ravel()[: len(values)] = values
    return array


def test_a_sound_case_has_no_problems():
    assert problems_of(volume(scan()), volume(mask(2))) == []
    assert problems_of(volume(scan()), None) == []
    assert problems_of(volume(scan()), volume(mask(2), origin_mm=0.001)) == []


def test_label_values_that_are_not_named_are_listed():
    assert problems_of(volume(scan()), volume(mask(2, 1, 7, -1))) == [
        "l/a.nii has label values that dataset.json does not name: -1, 1, 7"
    ]
    assert problems_of(volume(scan()), volume(mask(2, 9)), ignore_value=9) == []


def test_a_label_elsewhere_than_its_image_is_a_problem():
    assert problems_of(volume(scan()), volume(mask(), origin_mm=0.5)) == [
        "l/a.nii lies 0.5 mm away from its image (orientation or origin)"
    ]
    assert problems_of(volume(scan()), volume(mask()[:, :, :3])) == ["l/a.nii has shape (3, 3, 2), its image (4, 3, 2)"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinite_intensities_are_counted(value):
    image = scan()
    image[0, 0, 0, :2] = value
    assert problems_of(volume(image), None) == ["i/a.nii has 2 NaN or infinite intensities"]


def test_intensities_beyond_those_of_rgb_are_a_problem_of_rgb_alone():
    image = scan()
    image[0, 0, 0, 0] = 256
    assert problems_of(volume(image), None, channel="RGB_to_0_1") == [
        "i/a.nii channel 0 (RGB_to_0_1) holds 1 .. 256, and rgb_to_0_1 is for 0 .. 255"
    ]
    assert problems_of(volume(image), None) == [] and problems_of(volume(scan()), None, channel="rgb_to_0_1") == []


def test_an_empty_scan_and_a_wrong_number_of_channels_are_both_named():
    assert problems_of(volume(np.zeros((2, 2, 3, 4), np.float32)), None) == [
        "i/a.nii has 2 channels, dataset.json names 1 (MRI)",
        "i/a.nii is empty: all intensities are zero",
    ]

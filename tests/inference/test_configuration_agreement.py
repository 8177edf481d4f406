"""Configurations compared on the scan's grid: a handful of voxels that can be counted by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from inference.configuration_agreement import ConfigurationAgreement
from tests.models.builders import BRATS, TWO_CLASSES
from utils.schema import LabelScheme


def compared(labels: LabelScheme, *rows: list[int]) -> tuple[float | None, ...]:
    found = ConfigurationAgreement(labels, len(rows))
    for row in rows:
        found.add(np.array(row, np.uint8)[:, None, None])
    return found.result()


def test_dice_of_each_class_is_that_of_the_two_masks():
    # Anterior: two and one voxels, one shared; posterior: one and two, one shared.
    assert compared(TWO_CLASSES, [0, 1, 1, 2], [0, 1, 2, 2]) == pytest.approx((2 / 3, 2 / 3))
    assert compared(TWO_CLASSES, [0, 1, 1, 0], [1, 1, 0, 0]) == (0.5, None)
    assert compared(TWO_CLASSES, [0, 1, 1, 0]) == (None, None)


def test_of_three_every_two_are_compared():
    assert compared(TWO_CLASSES, [1, 0, 0], [1, 0, 0], [0, 1, 0]) == (pytest.approx(2 / 6), None)


def test_values_of_files_are_classes_and_regions_are_their_unions(monkeypatch):
    monkeypatch.setattr("inference.configuration_agreement._BLOCK_VOXELS", 2)
    values = dataclasses.replace(TWO_CLASSES, values=(0, 7, 250))
    assert compared(values, [0, 7, 7, 250], [0, 7, 250, 250]) == pytest.approx((2 / 3, 2 / 3))
    # Whole tumour: any class, of which all four voxels are shared; enhancing tumour: its own class alone.
    core, edema, enhancing = BRATS.values[2], BRATS.values[1], BRATS.values[3]
    found = compared(BRATS, [core, edema, edema, enhancing], [edema, edema, core, core])
    names = BRATS.target_names
    assert found[names.index("WT")] == 1.0 and found[names.index("ET")] == 0.0

from __future__ import annotations

import dataclasses

import numpy as np

from data_preprocessing.working_axes import WorkingAxes, working_axes, working_spacing
from tests.models.builders import make_plan
from utils.nifti import to_working
from utils.schema import Geometry

PLAN = dataclasses.replace(make_plan(), axes=(1, 0, 2))
STORED = dataclasses.replace(PLAN, orientation="stored", axes=(0, 1, 2))
# x of the file runs to the left, y downwards, z to the front.
AFFINE = ((-2.0, 0.0, 0.0, 9.0), (0.0, 0.0, 4.0, 1.0), (0.0, -3.0, 0.0, 7.0), (0.0, 0.0, 0.0, 1.0))


def test_a_ras_plan_turns_every_scan_alike():
    assert working_axes(PLAN, AFFINE) == WorkingAxes(order=PLAN.axes)


def test_a_stored_plan_sees_the_files_axes():
    file = np.arange(24).reshape(2, 3, 4)
    seen = working_axes(STORED, AFFINE).view(to_working(file, AFFINE))
    assert np.array_equal(seen, file.transpose(2, 1, 0))


def test_a_stored_plan_permutes_the_files_axes():
    file = np.arange(24).reshape(2, 3, 4)
    axes = working_axes(dataclasses.replace(STORED, axes=(1, 2, 0)), AFFINE)
    assert np.array_equal(axes.view(to_working(file, AFFINE)), file.transpose(2, 1, 0).transpose(1, 2, 0))


def test_channels_stay_in_front():
    assert WorkingAxes(order=(2, 0, 1), flipped=(0,)).view(np.zeros((5, 2, 3, 4))).shape == (5, 4, 2, 3)


def test_spacing_follows_the_axes():
    geometry = Geometry(shape_xyz=(2, 3, 4), affine=AFFINE, qform_code=1, sform_code=1, xyzt_units=2)
    axes = working_axes(STORED, AFFINE)
    # S is the file's y, A its z, R its x.
    assert working_spacing(STORED, (3.0, 4.0, 2.0), axes, geometry) == (4.0, 3.0, 2.0)

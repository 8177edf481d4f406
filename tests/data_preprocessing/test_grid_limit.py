"""Scans that a wrong voxel size would make endless."""

from __future__ import annotations

import pytest

from data_preprocessing.grid_limit import MOST_VOXELS, require_sensible
from utils.errors import UserError


def test_a_scan_that_its_voxel_size_makes_endless_is_refused():
    side = round(MOST_VOXELS ** (1 / 3)) - 1
    require_sensible((1000, 500, 500), (5, 5, 5), (side, side, side), (1, 1, 1))
    message = "9 x 9 x 9 voxels of 2e[+]03 x 1 x 1 mm would become 1.1e[+]12 voxels of 1 x 1 x 1 mm"
    with pytest.raises(UserError, match=message):
        require_sensible((9, 9, 9), (2e3, 1, 1), (2**10, 2**10, 2**20), (1, 1, 1))


@pytest.mark.parametrize("spacing", [(1e-4, 1e-4, 1e-4), (1, 1, 0.009), (101, 1, 1)])
def test_voxels_of_another_order_than_the_plan_s_are_refused(spacing):
    with pytest.raises(UserError, match=r"more than 100 times finer or coarser.*repair it"):
        require_sensible((9, 9, 9), spacing, (9, 9, 9), (1, 1, 1))


def test_thick_slices_are_no_mistake():
    require_sensible((9, 9, 9), (10, 0.3, 0.3), (300, 9, 9), (0.3, 0.3, 0.3))


def test_a_scan_that_grows_a_thousand_times_is_refused_where_it_becomes_large():
    require_sensible((24, 24, 24), (16, 16, 16), (384, 384, 384), (1, 1, 1))
    with pytest.raises(UserError, match=r"24 x 24 x 24 voxels of 50 x 50 x 50 mm would become 1.73e\+09 voxels"):
        require_sensible((24, 24, 24), (50, 50, 50), (1200, 1200, 1200), (1, 1, 1))

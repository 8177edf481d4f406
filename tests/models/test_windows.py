from __future__ import annotations

import itertools

import pytest
import torch
from monai.data.utils import compute_importance_map, dense_patch_slices

from models.windows import importance_map, window_starts

CPU = torch.device("cpu")


def test_the_last_window_ends_with_the_volume():
    assert window_starts([10], [4], [3]) == [(0,), (3,), (6,)]
    assert window_starts([9, 4], [4, 4], [3, 1]) == [(0, 0), (3, 0), (5, 0)]


@pytest.mark.parametrize("dim", [2, 3])
def test_windows_are_those_of_monai_in_its_order(dim):
    for size, window, step in itertools.product((5, 8, 13), (2, 5), (1, 2, 5)):
        sizes, windows, steps = ([n, n + 1, n][:dim] for n in (size, window, step))
        if any(not s <= w <= n for n, w, s in zip(sizes, windows, steps)):
            continue
        expected = [tuple(int(side.start) for side in box) for box in dense_patch_slices(sizes, windows, steps)]
        assert window_starts(sizes, windows, steps) == expected


def test_a_window_of_three_by_hand():
    # Deviation 3/8: exp(-1 / (2 * 9/64)) = 0.0286 beside the middle.
    weight = importance_map([3], blend="gaussian", device=CPU)
    assert torch.allclose(weight, torch.tensor([0.0286, 1.0, 0.0286]), atol=1e-4)
    assert torch.equal(importance_map([3], blend="constant", device=CPU), torch.ones(3))


@pytest.mark.parametrize("blend", ["gaussian", "constant"])
@pytest.mark.parametrize("window", [(8,), (40, 56, 40), (7, 128, 2), (192, 160)])
def test_weights_are_those_of_monai(window, blend):
    assert torch.equal(importance_map(window, blend=blend, device=CPU), compute_importance_map(window, mode=blend))

from __future__ import annotations

import itertools

import pytest
import torch
from monai.data.utils import compute_importance_map, dense_patch_slices

from models.inferer import InferenceSettings
from models.windows import (
    WindowLayout,
    even_starts,
    importance_map,
    sampled_importance,
    window_starts,
    window_weights,
)
from utils.rules import Rules

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


def test_even_windows_are_spread_out():
    # At most half a window apart: 4 windows over 10 voxels of room, at 0, 10/3, 20/3 and 10.
    assert even_starts([18], [8], 0.5) == [(0,), (3,), (7,), (10,)]
    # A half is rounded to the even neighbour.
    assert even_starts([13], [8], 0.5) == [(0,), (2,), (5,)]
    assert even_starts([8, 9], [8, 8], 0.5) == [(0, 0), (0, 1)]


def test_a_sampled_window_of_four_by_hand():
    # Around voxel 2, deviation 1/2: 10 * exp(-2 d^2).
    weight = sampled_importance([4], device=CPU)
    assert weight.dtype == torch.float16
    assert torch.allclose(weight.float(), torch.tensor([0.003354, 1.3534, 10.0, 1.3534]), rtol=1e-3)


def test_sampled_weights_that_half_precision_has_no_number_for_are_the_smallest_other_one():
    weight = sampled_importance([64, 64, 64], device=CPU)
    assert weight[0, 0, 0] == weight[weight > 0].min() > 0
    assert weight[32, 32, 32] == 10


def layout_of(*first_planes, window=(4, 4, 4), depth=10):
    """Batches of one window each, that begin at these planes."""
    batches = tuple(((first, 0, 0),) for first in first_planes)
    return WindowLayout(window=window, padded=(depth, 4, 4), low=(0, 0, 0), batches=batches, blended=True)


@pytest.mark.parametrize(
    ("importance", "blend"), list(itertools.product(("floor", "sampled"), ("gaussian", "constant")))
)
def test_windows_are_weighted_as_the_rules_and_the_blend_say(importance, blend):
    weight = window_weights(
        layout_of(0), InferenceSettings(blend=blend), Rules(importance=importance), device=CPU
    )  # fmt: skip
    expected = importance_map([4, 4, 4], blend=blend, device=CPU)
    if (importance, blend) == ("sampled", "gaussian"):
        expected = sampled_importance([4, 4, 4], device=CPU)
    assert torch.equal(weight, expected)


def test_a_single_window_needs_no_weights():
    whole = WindowLayout(window=(4,) * 3, padded=(4,) * 3, low=(0,) * 3, batches=(((0, 0, 0),),), blended=False)
    weight = window_weights(whole, InferenceSettings(), Rules(), device=CPU)
    assert torch.equal(weight, torch.ones(4, 4, 4))


def test_a_step_ends_where_the_next_windows_begin():
    # 0..2, 3..5, 6..9: the last windows finish what is left of the volume.
    assert layout_of(0, 3, 6).largest_step == 4
    assert layout_of(0, 5, 6, depth=8).largest_step == 5

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_loading.augment.cascade import Degradation, change_class, degrade, one_hot, remove_component

ALWAYS = Degradation(operator=1.0, removal=1.0, per_class=1.0)


def row(*values: int) -> torch.Tensor:
    """A volume of one row of voxels."""
    return torch.tensor(values, dtype=torch.uint8).reshape(1, 1, -1)


def test_one_hot_has_a_channel_per_foreground_class():
    channels = one_hot(row(0, 1, 2, 2)[None, None], 3)
    assert channels.dtype == torch.float32
    assert channels[0, :, 0, 0].tolist() == [[0, 1, 0, 0], [0, 0, 1, 1]]


@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        ("dilate", (0, 1, 1, 1, 1, 1, 1, 1, 1, 2)),
        ("erode", (0, 0, 0, 0, 0, 0, 1, 0, 2, 2)),
        ("open", (0, 0, 0, 0, 0, 1, 1, 1, 2, 2)),
        ("close", (0, 0, 1, 1, 1, 1, 1, 1, 2, 2)),
    ],
)
def test_operators_on_a_row_by_hand(operator, expected):
    before = row(0, 0, 1, 1, 0, 1, 1, 1, 2, 2)
    # A pair of voxels vanishes in an erosion, a gap of one in a closing; a dilation takes from class 2.
    assert change_class(before, 1, operator, 1).flatten().tolist() == list(expected)


@pytest.mark.parametrize("radius", [1, 2, 3, 8])
def test_a_point_grows_to_a_ball(radius):
    point = torch.zeros(19, 19, 19, dtype=torch.uint8)
    point[9, 9, 9] = 1
    squares = ((torch.stack(torch.meshgrid(*[torch.arange(19)] * 3, indexing="ij")) - 9) ** 2).sum(0)
    assert torch.equal(change_class(point, 1, "dilate", radius), (squares <= radius**2).to(torch.uint8))


def test_the_border_of_the_patch_does_not_erode():
    assert change_class(row(1, 1, 1, 1), 1, "erode", 2).flatten().tolist() == [1, 1, 1, 1]


def test_only_small_components_are_removed():
    classes = row(1, 1, 1, 1, 0, 1, 0, 2, 0, 0)
    gone = remove_component(classes, 1, np.random.default_rng(0), largest_share=0.2)
    assert gone.flatten().tolist() == [1, 1, 1, 1, 0, 0, 0, 2, 0, 0]
    assert torch.equal(remove_component(classes, 1, np.random.default_rng(0), largest_share=0.05), classes)


def test_components_touch_at_corners():
    # One component of 3 voxels, of which none is removed at a share of 2 voxels.
    classes = torch.zeros(3, 3, 3, dtype=torch.uint8)
    classes[0, 0, 0] = classes[1, 1, 1] = classes[2, 2, 2] = 1
    assert torch.equal(remove_component(classes, 1, np.random.default_rng(0), largest_share=2 / 27), classes)


def test_the_same_generator_gives_the_same_patches_and_values_are_never_invented():
    classes = torch.from_numpy(np.random.default_rng(0).choice([0, 1, 3], (4, 1, 6, 7, 8)).astype(np.uint8))
    first, second = (degrade(classes, 4, np.random.default_rng(5), ALWAYS) for _ in range(2))
    assert torch.equal(first, second) and not torch.equal(first, classes)
    assert set(first.unique().tolist()) <= {0, 1, 3}
    assert (first.shape, first.dtype) == (classes.shape, classes.dtype)


def test_patches_that_are_not_drawn_stay_as_they_are():
    classes = torch.ones(2, 1, 4, 4, dtype=torch.uint8)
    never = Degradation(operator=0.0, removal=0.0)
    assert torch.equal(degrade(classes, 2, np.random.default_rng(0), never), classes)

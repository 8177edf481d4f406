from __future__ import annotations

import numpy as np
import pytest

from inference.decision import PostProcessing
from inference.postprocessing import keep_largest
from utils.schema import LabelScheme

LABELS = LabelScheme(names=("background", "liver", "tumour"), values=(0, 1, 4))
ROW = (1, 1, 4, 0, 0, 4, 0, 1)


def processed(values: tuple[int, ...], **what) -> list[int]:
    mask = np.array(values, dtype=np.uint8).reshape(1, 1, -1)
    before = mask.copy()
    after = keep_largest(mask, LABELS, PostProcessing(**what))
    assert np.array_equal(mask, before) and after.dtype == np.uint8
    return after.flatten().tolist()


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ({}, ROW),
        ({"foreground": True}, (1, 1, 4, 0, 0, 0, 0, 0)),
        ({"classes": ("liver",)}, (1, 1, 4, 0, 0, 4, 0, 0)),
        # Both pieces of the tumour have one voxel.
        ({"classes": ("tumour",)}, ROW),
        ({"foreground": True, "classes": ("tumour",)}, (1, 1, 4, 0, 0, 0, 0, 0)),
    ],
)
def test_a_row_by_hand(what, expected):
    assert processed(ROW, **what) == list(expected)


def test_foreground_comes_before_the_classes():
    # Alone the class would lose its single voxel beside the other class; the largest foreground is on that side.
    row = (4, 4, 4, 1, 0, 1, 1, 0)
    assert processed(row, foreground=True, classes=("liver",)) == [4, 4, 4, 1, 0, 0, 0, 0]
    assert processed(row, classes=("liver",)) == [4, 4, 4, 0, 0, 1, 1, 0]


@pytest.mark.parametrize("step", [(1, 1, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0), (1, -1, 1)], ids=str)
@pytest.mark.parametrize("post", [PostProcessing(foreground=True), PostProcessing(classes=("liver",))])
def test_voxels_that_touch_at_a_corner_or_an_edge_are_connected(step, post):
    # Three voxels on a diagonal against two side by side: only together are the three the largest component.
    mask = np.zeros((8, 8, 8), np.uint8)
    for k in range(3):
        mask[tuple(3 + k * s for s in step)] = 1
    expected = mask.copy()
    mask[0, 0, :2] = 1
    assert np.array_equal(keep_largest(mask, LABELS, post), expected)


def test_an_empty_mask_stays_empty():
    assert processed((0, 0, 0), foreground=True, classes=("liver",)) == [0, 0, 0]


def test_a_background_of_another_value_is_what_remains():
    labels = LabelScheme(names=("background", "liver"), values=(7, 1))
    mask = np.array([1, 1, 7, 1], np.uint8).reshape(1, 1, 4)
    assert keep_largest(mask, labels, PostProcessing(foreground=True)).flatten().tolist() == [1, 1, 7, 7]


def test_a_component_counts_over_all_its_planes():
    # Two voxels in each of three planes outweigh four in one plane.
    mask = np.zeros((3, 1, 8), np.uint8)
    mask[:, 0, :2] = 1
    mask[1, 0, 4:] = 4
    expected = np.zeros_like(mask)
    expected[:, 0, :2] = 1
    assert np.array_equal(keep_largest(mask, LABELS, PostProcessing(foreground=True)), expected)

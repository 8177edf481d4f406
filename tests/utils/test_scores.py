"""Scores of masks small enough to count and measure by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from utils.schema import LabelScheme, Region
from utils.scores import CaseScores, dice_from_counts, finite_mean, label_counts, summarise, surface_scores

CLASSES = LabelScheme(names=("background", "a", "b"), values=(0, 4, 7))
REGIONS = LabelScheme(
    names=("background", "rim", "core"),
    values=(0, 1, 2),
    regions=(
        Region(name="whole", classes=(1, 2), write_class=1),
        Region(name="core", classes=(2,), write_class=2),
    ),
    ignore_value=255,
)


def test_dice_by_hand():
    assert dice_from_counts(np.array([[2, 1, 1], [0, 3, 0]])).tolist() == pytest.approx([2 / 3, 0])


def test_both_empty_scores_nan():
    assert math.isnan(dice_from_counts(np.array([[0, 0, 0]]))[0])


@pytest.mark.parametrize("counts", [[0, 1, 0], [0, 0, 1]])
def test_a_single_wrong_voxel_scores_zero(counts):
    assert dice_from_counts(np.array(counts)) == 0


def test_finite_mean_leaves_undefined_and_infinite_values_out():
    assert finite_mean([1.0, math.nan, 3.0, math.inf]) == 2
    assert math.isnan(finite_mean([math.nan]))
    per_column = finite_mean([[1.0, math.nan], [2.0, math.nan]], axis=0)
    assert per_column[0] == 1.5 and math.isnan(per_column[1])


def test_classes_are_counted_by_index():
    prediction, label = np.array([[0, 1, 2, 2]]), np.array([[0, 1, 1, 2]])
    assert label_counts(prediction, label, CLASSES).tolist() == [[1, 0, 1], [1, 1, 0]]


def test_regions_overlap_and_ignored_voxels_do_not_count():
    prediction, label = np.array([1, 2, 2, 1]), np.array([1, 1, 2, 3])
    assert label_counts(prediction, label, REGIONS).tolist() == [[3, 0, 0], [1, 1, 0]]


def box(shape: tuple[int, ...], *slices: slice) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[slices] = True
    return mask


def test_equal_masks_have_distance_zero_and_full_agreement():
    mask = box((6, 6, 6), slice(1, 4), slice(2, 5), slice(0, 6))
    scores = surface_scores(mask, mask, (1, 1, 1))
    assert scores.hd95_mm == 0 and scores.nsd == 1


def test_shift_by_one_voxel_is_as_far_as_its_spacing():
    thin = box((6, 4, 4), slice(2, 3), slice(0, 4), slice(0, 4))
    shifted = box((6, 4, 4), slice(3, 4), slice(0, 4), slice(0, 4))
    assert surface_scores(thin, shifted, (2.5, 1, 1)).hd95_mm == 2.5


def test_tolerance_is_in_mm_and_inclusive():
    thin = box((6, 4, 4), slice(2, 3), slice(0, 4), slice(0, 4))
    shifted = box((6, 4, 4), slice(3, 4), slice(0, 4), slice(0, 4))
    assert surface_scores(thin, shifted, (2.5, 1, 1), tolerance_mm=2.4).nsd == 0
    assert surface_scores(thin, shifted, (2.5, 1, 1), tolerance_mm=2.5).nsd == 1


def test_hd95_takes_the_worse_direction():
    # The label is one voxel of the predicted line: from label to prediction 0, back up to 9.
    prediction = box((1, 1, 10), slice(None), slice(None), slice(None))
    label = box((1, 1, 10), slice(None), slice(None), slice(0, 1))
    assert surface_scores(prediction, label, (1, 1, 1)).hd95_mm == pytest.approx(np.percentile(range(10), 95))


def test_nsd_counts_the_voxels_of_both_surfaces():
    prediction = box((1, 1, 4), slice(None), slice(None), slice(0, 4))
    label = box((1, 1, 4), slice(None), slice(None), slice(0, 1))
    # Of the prediction's four voxels two lie within 1 mm, of the label's one all.
    assert surface_scores(prediction, label, (1, 1, 1), tolerance_mm=1).nsd == pytest.approx(3 / 5)


def test_both_masks_empty_have_no_distance():
    empty = np.zeros((3, 3, 3), dtype=bool)
    scores = surface_scores(empty, empty, (1, 1, 1))
    assert math.isnan(scores.hd95_mm) and math.isnan(scores.nsd)


@pytest.mark.parametrize("swap", [False, True])
def test_one_mask_empty_is_infinitely_far(swap):
    pair = [np.zeros((3, 3, 3), dtype=bool), np.ones((3, 3, 3), dtype=bool)]
    scores = surface_scores(*(reversed(pair) if swap else pair), (1, 1, 1))
    assert scores.hd95_mm == math.inf and scores.nsd == 0


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
def test_agrees_with_monai():
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice
    from torch import from_numpy

    generator = np.random.default_rng(0)
    pair = [generator.random((1, 1, 9, 8, 7)) > 0.6 for _ in range(2)]
    spacing = (2.0, 1.0, 0.5)
    ours = surface_scores(pair[0][0, 0], pair[1][0, 0], spacing, tolerance_mm=0.6)
    theirs = [from_numpy(mask) for mask in pair]
    hd95 = compute_hausdorff_distance(*theirs, include_background=True, percentile=95, spacing=spacing)
    nsd = compute_surface_dice(*theirs, class_thresholds=[0.6], include_background=True, spacing=spacing)
    assert ours.hd95_mm == pytest.approx(hd95.item(), abs=1e-5)
    assert ours.nsd == pytest.approx(nsd.item(), abs=1e-5)


def test_summary_means_over_cases_then_targets():
    cases = [
        CaseScores(case="a", counts=((1, 0, 0),) * 2, dice=(1.0, math.nan), hd95_mm=(2.0, math.inf), nsd=(1, 0)),
        CaseScores(case="b", counts=((1, 0, 0),) * 2, dice=(0.5, 0.25), hd95_mm=(4.0, math.nan), nsd=(0, math.nan)),
    ]
    summary = summarise(cases, ("x", "y"))
    assert summary.num_cases == 2 and summary.dice == (0.75, 0.25) and summary.mean_dice == 0.5
    assert summary.hd95_mm[0] == 3 and math.isnan(summary.hd95_mm[1]) and summary.mean_hd95_mm == 3
    assert summary.unbounded == (0, 1) and summary.nsd == (0.5, 0.0)

"""Counts and Dice of predictions: region order, undefined cases, pooling over processes."""

from __future__ import annotations

import math

import pytest
import torch

from models.metrics import DiceAccumulator, case_counts, discretise
from tests.models.builders import BRATS, TWO_CLASSES, WITH_IGNORE
from utils.scores import label_counts


def test_classes_are_the_largest_logit():
    logits = torch.tensor([[0.0, 2.0], [1.0, 0.0], [0.5, 1.0]]).reshape(1, 3, 1, 1, 2)
    result = discretise(logits, TWO_CLASSES)
    assert result.dtype == torch.uint8 and result.tolist() == [[[[1, 0]]]]


def test_regions_are_probabilities_above_one_half():
    logits = torch.tensor([[0.1, -0.1], [0.0, 3.0], [-1.0, 1.0]]).reshape(1, 3, 1, 1, 2)
    assert discretise(logits, BRATS)[0, :, 0, 0].tolist() == [[True, False], [False, True], [False, True]]


def test_counts_by_hand():
    label = torch.tensor([[0, 1, 1, 2]], dtype=torch.uint8)
    prediction = torch.tensor([[1, 1, 0, 2]], dtype=torch.uint8)
    assert case_counts(prediction, label, TWO_CLASSES).tolist() == [[1, 1, 1], [1, 0, 0]]


def test_ignored_voxels_are_not_counted():
    label = torch.tensor([[0, 1, 2, 2]], dtype=torch.uint8)
    prediction = torch.tensor([[0, 1, 1, 0]], dtype=torch.uint8)
    assert case_counts(prediction, label, WITH_IGNORE).tolist() == [[1, 0, 0]]


def test_perfect_whole_tumour_alone_scores_in_its_own_slot():
    # 1 edema, 2 non-enhancing, 3 enhancing; only WT is predicted.
    label = torch.tensor([[[0, 1, 2, 3]]], dtype=torch.uint8)
    prediction = torch.stack([label > 0, torch.zeros_like(label, dtype=torch.bool), label > 5])
    dice = DiceAccumulator(BRATS)
    dice.add(case_counts(prediction, label, BRATS))
    assert BRATS.target_names == ("WT", "TC", "ET")
    assert dice.compute().tolist() == [1.0, 0.0, 0.0]


def test_tumour_core_is_non_enhancing_and_enhancing():
    label = torch.tensor([[[1, 2, 3]]], dtype=torch.uint8)
    core = torch.tensor([[[False, True, True]]])
    counts = case_counts(torch.stack([core, core, core]), label, BRATS)
    assert counts.tolist() == [[2, 0, 1], [2, 0, 0], [1, 1, 0]]


def test_device_and_file_scores_count_the_same():
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randint(0, 3, (5, 6, 7), generator=generator).to(torch.uint8)
    label = torch.randint(0, 3, (5, 6, 7), generator=generator).to(torch.uint8)
    assert (
        case_counts(prediction, label, TWO_CLASSES).tolist()
        == label_counts(prediction.numpy(), label.numpy(), TWO_CLASSES).tolist()
    )


def test_case_without_the_class_is_left_out_of_its_mean():
    dice = DiceAccumulator(TWO_CLASSES)
    dice.add(torch.tensor([[1, 1, 1], [0, 0, 0]]))
    dice.add(torch.tensor([[1, 0, 0], [1, 2, 0]]))
    assert dice.compute().tolist() == [0.75, 0.5]
    assert dice.mean() == 0.625


def test_target_in_no_case_is_nan_and_outside_the_mean():
    dice = DiceAccumulator(TWO_CLASSES)
    dice.add(torch.tensor([[1, 0, 0], [0, 0, 0]]))
    assert dice.compute()[0] == 1 and dice.compute()[1].isnan()
    assert dice.mean() == 1


def test_without_cases_the_mean_is_nan():
    assert math.isnan(DiceAccumulator(TWO_CLASSES).mean())


def test_merging_processes_equals_one_process():
    counts = [torch.tensor([[i, 1, 2], [0, i, 0]]) for i in range(3)]
    alone, first, second = (DiceAccumulator(TWO_CLASSES) for _ in range(3))
    for case in counts:
        alone.add(case)
    first.add(counts[0])
    for case in counts[1:]:
        second.add(case)
    states = []
    second.merge(lambda state: states.append(state) or state)
    first.merge(lambda state: state + states[0])
    assert first.compute().tolist() == pytest.approx(alone.compute().tolist(), nan_ok=True)

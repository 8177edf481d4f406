"""The loss: hand values, MONAI's formulas, deep supervision weights, ignored voxels, precision."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from monai.losses import DiceCELoss, DiceFocalLoss, DiceLoss, FocalLoss

from models.loss import SegmentationLoss, head_weights, shrink_label, soft_dice_loss
from tests.models.builders import BRATS, TWO_CLASSES, WITH_IGNORE


def random_case(num_outputs: int, num_classes: int, size: tuple[int, ...] = (4, 6, 5)):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, num_outputs, *size, generator=generator)
    return logits, torch.randint(0, num_classes, (2, 1, *size), generator=generator).to(torch.uint8)


def test_uniform_prediction_has_the_loss_computed_by_hand():
    # Four voxels, one of class 1. p = 1/2 everywhere: overlap 0.5, sizes 2 and 1, Dice 1/3; entropy log 2.
    loss = SegmentationLoss(WITH_IGNORE)
    label = torch.tensor([1, 0, 0, 0], dtype=torch.uint8).reshape(1, 1, 2, 2)
    value = loss(torch.zeros(1, 2, 2, 2), label)
    assert value.item() == pytest.approx((1 - 1 / 3) + math.log(2), abs=1e-4)


@pytest.mark.parametrize("size", [(4, 6, 5), (8, 6)], ids=["3d", "2d"])
def test_classes_agree_with_monai_dice_ce(size):
    logits, label = random_case(3, 3, size)
    monai = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    torch.testing.assert_close(SegmentationLoss(TWO_CLASSES)(logits, label), monai(logits, label.long()))


@pytest.mark.parametrize("size", [(4, 6, 5), (8, 6)], ids=["3d", "2d"])
def test_dice_of_each_patch_agrees_with_monai(size):
    logits, label = random_case(3, 3, size)
    monai = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=False)
    loss = SegmentationLoss(TWO_CLASSES, batch_dice=False)
    torch.testing.assert_close(loss(logits, label), monai(logits, label.long()))


def test_a_batch_counts_as_one_volume_or_each_patch_by_itself():
    # Patch 0: two voxels, both found. Patch 1: one voxel, missed. Together 2 * 2 / (2 + 3); apart (1 + 0) / 2.
    target = torch.tensor([[[[True, True]]], [[[True, False]]]])
    found = torch.tensor([[[[1.0, 1.0]]], [[[0.0, 0.0]]]])
    assert soft_dice_loss(found, target).item() == pytest.approx(1 - 4 / 5, abs=1e-4)
    assert soft_dice_loss(found, target, over_batch=False).item() == pytest.approx(1 - 1 / 2, abs=1e-4)


def test_focal_agrees_with_monai_dice_focal():
    logits, label = random_case(3, 3)
    monai = DiceFocalLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True, gamma=2.0)
    torch.testing.assert_close(SegmentationLoss(TWO_CLASSES, focal=True)(logits, label), monai(logits, label.long()))


@pytest.mark.parametrize("focal", [False, True])
def test_regions_agree_with_monai_sigmoid_dice_and_binary_terms(focal):
    logits, label = random_case(3, 4)
    masks = torch.cat([label > 0, label >= 2, label == 3], dim=1).float()
    binary = FocalLoss(gamma=2.0) if focal else torch.nn.BCEWithLogitsLoss()
    expected = DiceLoss(sigmoid=True, batch=True)(logits, masks) + binary(logits, masks)
    torch.testing.assert_close(SegmentationLoss(BRATS, focal=focal)(logits, label), expected)


@pytest.mark.parametrize(("num_heads", "expected"), [(1, [1.0]), (2, [2 / 3, 1 / 3]), (3, [4 / 7, 2 / 7, 1 / 7])])
def test_deep_supervision_weights_halve_and_sum_to_one(num_heads, expected):
    assert head_weights(num_heads) == pytest.approx(expected)


def test_heads_are_weighted_at_their_own_resolution():
    label = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    label[..., :2, :] = 1
    heads = [torch.randn(1, 3, size, size) for size in (4, 2)]
    loss = SegmentationLoss(TWO_CLASSES)
    small = torch.tensor([[1, 1], [0, 0]], dtype=torch.uint8)[None, None]
    expected = 2 / 3 * loss(heads[0], label) + 1 / 3 * loss(heads[1], small)
    torch.testing.assert_close(loss(tuple(heads), label), expected)


def test_shrinking_takes_the_nearest_voxel_per_axis():
    label = torch.arange(8, dtype=torch.uint8).reshape(1, 1, 2, 4)
    assert shrink_label(label, (2, 2)).tolist() == [[[[0, 2], [4, 6]]]]


@pytest.mark.parametrize("focal", [False, True])
@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("batch_dice", [False, True])
def test_ignored_voxels_change_nothing(focal, regions, batch_dice):
    labels = dataclasses.replace(BRATS if regions else TWO_CLASSES, ignore_value=9)
    ignore = labels.num_classes
    logits, label = random_case(3, ignore, (4, 6, 5))
    label[..., 3:] = ignore
    loss = SegmentationLoss(labels, focal=focal, batch_dice=batch_dice)
    elsewhere = logits.clone()
    elsewhere[..., 3:] = 50 * torch.randn(elsewhere[..., 3:].shape)
    torch.testing.assert_close(loss(elsewhere, label), loss(logits, label))
    # ... and the rest counts as if the ignored voxels were not there.
    torch.testing.assert_close(loss(logits, label), loss(logits[..., :3], label[..., :3]))


def test_everything_ignored_is_finite_and_has_a_gradient():
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    value = SegmentationLoss(WITH_IGNORE)(logits, torch.full((1, 1, 4, 4), 2, dtype=torch.uint8))
    value.backward()
    assert value.isfinite() and logits.grad.isfinite().all()


def test_class_that_is_nowhere_costs_no_dice():
    probabilities = torch.zeros(1, 1, 2, 2)
    assert soft_dice_loss(probabilities, torch.zeros(1, 1, 2, 2, dtype=torch.bool)).item() == 0


def test_perfect_prediction_has_no_loss():
    _, label = random_case(3, 3)
    logits = 100 * torch.nn.functional.one_hot(label[:, 0].long(), 3).movedim(-1, 1).float()
    assert SegmentationLoss(TWO_CLASSES)(logits, label).item() == pytest.approx(0, abs=1e-5)


def test_autocast_leaves_the_loss_in_float32():
    logits, label = random_case(3, 3)
    loss = SegmentationLoss(TWO_CLASSES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(logits, label)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(logits, label))

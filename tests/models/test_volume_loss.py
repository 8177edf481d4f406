"""The loss by planes is the loss of the whole volume, in memory that the volume's size does not decide."""

from __future__ import annotations

import pytest
import torch

from models import inferer, volume_loss
from models.loss import SegmentationLoss
from models.volume_loss import volume_loss as by_planes
from tests.models.builders import BRATS, TWO_CLASSES, WITH_IGNORE
from utils.schema import LabelScheme, Region

REGIONS_WITH_IGNORE = LabelScheme(
    names=("background", "a", "b"), values=(0, 1, 2), ignore_value=9,
    regions=(Region(name="ab", classes=(1, 2), write_class=1), Region(name="b", classes=(2,), write_class=2)),
)  # fmt: skip
SCHEMES = {"classes": TWO_CLASSES, "ignore": WITH_IGNORE, "regions": BRATS, "regions ignore": REGIONS_WITH_IGNORE}


def volume(labels: LabelScheme, batch: int = 1, depth: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = 4 * torch.randn(batch, labels.num_outputs, depth, 5, 6, generator=generator)
    most = labels.num_classes if labels.ignore_index is None else labels.ignore_index + 1
    return logits, torch.randint(0, most, (batch, 1, depth, 5, 6), generator=generator).to(torch.uint8)


@pytest.mark.parametrize("block_values", [1, 200, 2**22])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("focal", [False, True])
@pytest.mark.parametrize("labels", SCHEMES.values(), ids=SCHEMES)
def test_equal_to_the_loss_of_the_whole_volume(monkeypatch, labels, focal, batch_dice, batch, block_values):
    monkeypatch.setattr(inferer, "BLOCK_VALUES", block_values)
    loss = SegmentationLoss(labels, focal=focal, batch_dice=batch_dice)
    logits, label = volume(labels, batch)
    result = by_planes(loss, logits, label)
    assert result.dtype == torch.float32 and result.dim() == 0
    torch.testing.assert_close(result, loss(logits, label), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("labels", [WITH_IGNORE, REGIONS_WITH_IGNORE], ids=["classes", "regions"])
@pytest.mark.parametrize("focal", [False, True])
def test_nothing_that_counts(labels, focal):
    loss = SegmentationLoss(labels, focal=focal)
    logits, label = volume(labels)
    label[:] = labels.ignore_index
    torch.testing.assert_close(by_planes(loss, logits, label), loss(logits, label), rtol=1e-6, atol=1e-6)


def test_channels_last_and_half_precision_logits():
    loss = SegmentationLoss(TWO_CLASSES)
    logits, label = volume(TWO_CLASSES)
    for changed in (logits.contiguous(memory_format=torch.channels_last_3d), logits.bfloat16()):
        torch.testing.assert_close(by_planes(loss, changed, label), loss(changed, label), rtol=1e-6, atol=1e-6)


def test_no_part_is_larger_than_the_limit(monkeypatch):
    monkeypatch.setattr(inferer, "BLOCK_VALUES", 3 * 30)
    sizes, sums = [], volume_loss._sums
    monkeypatch.setattr(volume_loss, "_sums", lambda *args: sizes.append(args[1].numel()) or sums(*args))
    logits, label = volume(TWO_CLASSES, depth=40)
    by_planes(SegmentationLoss(TWO_CLASSES), logits, label)
    assert sizes == [90] * 40

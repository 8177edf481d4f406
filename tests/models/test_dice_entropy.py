"""The loss in one pass: values and gradients of the plain formulas, numerically checked, in either order of memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from models.dice_entropy import DiceEntropy, log_softmax
from models.loss import soft_dice_loss

SIZES = [(2, 3, 4), (4, 5)]


def random_case(size: tuple[int, ...], *, exclusive: bool, ignored: bool):
    generator = torch.Generator().manual_seed(4)
    logits = 3 * torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
    index = torch.randint(0, 3, (2, 1, *size), generator=generator)
    # Classes: one of the channels. Regions: nested, so that a voxel may be in several or in none.
    channels = torch.arange(3).view(1, 3, *[1] * len(size))
    target = index == channels if exclusive else index > channels
    valid = torch.rand(2, 1, *size, generator=generator) < 0.7 if ignored else None
    return logits.requires_grad_(), target if valid is None else target & valid, valid


def plain_loss(logits, target, valid, exclusive, over_batch):
    inside = torch.ones_like(logits[:, :1]) if valid is None else valid.to(logits.dtype)
    truth = target.to(logits.dtype)
    if exclusive:
        entropy = -(logits.log_softmax(1) * truth).sum() / inside.sum()
        probabilities, first = logits.softmax(1), 1
    else:
        each = F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * inside
        entropy, probabilities, first = each.sum() / (inside.sum() * logits.shape[1]), logits.sigmoid(), 0
    return entropy + soft_dice_loss(probabilities[:, first:], target[:, first:], valid, over_batch=over_batch)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES, ids=["3d", "2d"])
@pytest.mark.parametrize("exclusive", [True, False], ids=["classes", "regions"])
@pytest.mark.parametrize("over_batch", [True, False], ids=["batch", "patch"])
@pytest.mark.parametrize("ignored", [False, True], ids=["all", "ignored"])
def test_value_and_gradient_are_those_of_the_plain_formulas(size, exclusive, over_batch, ignored):
    logits, target, valid = random_case(size, exclusive=exclusive, ignored=ignored)
    fast = DiceEntropy.apply(logits, target, valid, exclusive, over_batch)
    plain = plain_loss(logits, target, valid, exclusive, over_batch)
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)
    gradients = [torch.autograd.grad(2 * value, logits)[0] for value in (fast, plain)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
    assert gradcheck(lambda z: DiceEntropy.apply(z, target, valid, exclusive, over_batch), logits)


@pytest.mark.parametrize("exclusive", [True, False], ids=["classes", "regions"])
def test_float32_agrees_with_float64(exclusive):
    logits, target, valid = random_case((8, 9, 7), exclusive=exclusive, ignored=True)
    results = []
    for values in (logits, logits.detach().float().requires_grad_()):
        loss = DiceEntropy.apply(values, target, valid, exclusive, True)
        loss.backward()
        results.append((loss.double(), values.grad.double()))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("exclusive", [True, False], ids=["classes", "regions"])
def test_half_precision_logits_give_a_float32_loss_and_a_half_precision_gradient(exclusive):
    logits, target, valid = random_case((4, 5), exclusive=exclusive, ignored=False)
    half = logits.detach().bfloat16().requires_grad_()
    loss = DiceEntropy.apply(half, target, valid, exclusive, True)
    loss.backward()
    assert loss.dtype == torch.float32 and half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss, DiceEntropy.apply(half.float(), target, valid, exclusive, True))


@pytest.mark.parametrize("exclusive", [True, False], ids=["classes", "regions"])
def test_confident_and_wrong_logits_stay_finite(exclusive):
    _, target, _ = random_case((4, 5), exclusive=exclusive, ignored=False)
    logits = torch.where(target, -1000.0, 1000.0).requires_grad_()
    loss = DiceEntropy.apply(logits, target, None, exclusive, True)
    loss.backward()
    assert loss.isfinite() and loss > 100 and logits.grad.isfinite().all()


@pytest.mark.parametrize("size", SIZES, ids=["3d", "2d"])
def test_channels_last_logits_keep_their_order_and_give_the_same(size):
    logits, target, _ = random_case(size, exclusive=True, ignored=False)
    layout = torch.channels_last_3d if len(size) == 3 else torch.channels_last
    last = logits.detach().to(memory_format=layout).requires_grad_()
    assert log_softmax(last).is_contiguous(memory_format=layout)
    torch.testing.assert_close(log_softmax(last), logits.log_softmax(1))
    values = [DiceEntropy.apply(each, target, None, True, True) for each in (logits, last)]
    sum(values).backward()
    torch.testing.assert_close(*values)
    torch.testing.assert_close(last.grad, logits.grad)
    assert last.grad.is_contiguous(memory_format=layout)

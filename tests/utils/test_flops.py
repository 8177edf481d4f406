"""Counted arithmetic, by hand for one convolution and one product, and the ceiling beside it."""

from __future__ import annotations

import pytest
import torch

from utils.flops import Ceiling, count_flops, flop_facts, measure_ceiling

# 4 x 4 x 4 output voxels of 3 channels, each a sum over 2 channels and 27 neighbours; a product and a sum each.
FORWARD = 2 * 4**3 * 3 * 2 * 27


def test_one_convolution_is_counted_as_by_hand():
    conv = torch.nn.Conv3d(2, 3, 3, padding=1)
    assert count_flops(lambda: conv(torch.ones(1, 2, 4, 4, 4))) == FORWARD
    assert count_flops(lambda: conv(torch.ones(5, 2, 4, 4, 4))) == 5 * FORWARD


@pytest.mark.parametrize(("input_gradient", "passes"), [(False, 2), (True, 3)])
def test_backward_costs_a_pass_for_the_weights_and_one_for_the_input(input_gradient, passes):
    conv = torch.nn.Conv3d(2, 3, 3, padding=1)
    image = torch.ones(1, 2, 4, 4, 4, requires_grad=input_gradient)
    assert count_flops(lambda: conv(image).sum().backward()) == passes * FORWARD


def test_the_ceilings_own_product_is_counted_as_it_is_timed():
    size = 8
    assert count_flops(lambda: torch.ones(size, size) @ torch.ones(size, size)) == 2 * size**3


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_ceiling_is_a_rate(precision):
    ceiling = measure_ceiling(torch.device("cpu"), precision, size=32, runs=2)
    assert ceiling.size == 32 and ceiling.flop_per_second > 0


def test_the_size_is_found_where_none_is_given(monkeypatch):
    """A machine that takes 1 ms at 512 and eight times as long at each doubling: 64 ms at 2048 are enough."""
    monkeypatch.setattr("utils.flops._product_s", lambda left, right: 0.001 * (len(left) / 512) ** 3)
    ceiling = measure_ceiling(torch.device("cpu"), "32-true")
    assert (ceiling.size, ceiling.flop_per_second) == (2048, pytest.approx(2 * 2048**3 / 0.064))


def test_share_is_achieved_over_ceiling_of_all_devices():
    facts = flop_facts(10, 3.0, Ceiling(flop_per_second=60.0, size=8), devices=2)
    assert (facts["flop_per_second"], facts["ceiling_flop_per_second"], facts["ceiling_share"]) == (30, 120, 0.25)

"""How far another runtime may be from torch."""

from __future__ import annotations

import pytest
import torch

from inference.engines.agreement import check_runtime, compare_logits
from tests.inference.engines.made_up import KINDS
from tests.models.builders import BRATS, TWO_CLASSES, make_network
from utils.errors import UserError

PLAN, MODEL = KINDS["3d"]


def logits(*values: tuple[float, ...]) -> torch.Tensor:
    """(1, K, 1, 1, voxels)"""
    return torch.tensor(values).T[None, :, None, None]


def test_classes_and_logits_are_compared():
    found = compare_logits(logits((1, 0, 0), (0, 2, 1)), logits((1, 0, 0), (0, 1, 2)), TWO_CLASSES)
    assert (found.voxels, found.differing, found.largest, found.scale) == (2, 1, 1.0, 2.0)
    assert not found.holds


def test_a_voxel_of_another_region_differs():
    found = compare_logits(logits((1, -1, -1), (1, 1, -1)), logits((1, -1, 1), (1, 1, -1)), BRATS)
    assert (found.voxels, found.differing) == (2, 1)


def test_rounding_is_tolerated_and_nan_is_not():
    expected = torch.randn(1, 3, 8, 8, 8)
    assert compare_logits(expected, expected + 1e-5, TWO_CLASSES).holds
    assert not compare_logits(expected, expected * torch.nan, TWO_CLASSES).holds


@pytest.mark.parametrize(
    "wrong", [lambda logits: logits + 0.1, lambda logits: logits.flip(1), lambda logits: logits[:1]]
)
def test_a_runtime_that_computes_something_else_is_refused_by_name(wrong):
    network = make_network(PLAN, MODEL).eval()
    assert check_runtime(network, network, PLAN, name="fold_0").differing == 0
    with pytest.raises(UserError, match=r"fold_0 .*nothing was kept"):
        check_runtime(network, lambda windows: wrong(network(windows)), PLAN, name="fold_0")

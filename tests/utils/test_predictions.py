"""One rule from probabilities to classes, whether they come as an array, class by class, or as logits on a device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.metrics import discretise
from tests.models.builders import BRATS, TWO_CLASSES
from utils.predictions import most_probable, working_view


def test_the_largest_wins_and_of_equals_the_lowest():
    shares = np.array([[0.2, 0.4, 0.3], [0.5, 0.4, 0.3], [0.3, 0.2, 0.4]], np.float32)
    assert most_probable(shares, TWO_CLASSES).tolist() == [1, 0, 2]


def test_later_regions_overwrite_earlier_ones_and_a_half_is_not_enough():
    whole, core, enhancing = (region.write_class for region in BRATS.regions)
    shares = np.array([[0.5, 0.9, 0.9, 0.1], [0.5, 0.4, 0.9, 0.1], [0.5, 0.1, 0.1, 0.6]], np.float32)
    assert most_probable(shares, BRATS).tolist() == [0, whole, core, enhancing]


@pytest.mark.parametrize("labels", [TWO_CLASSES, BRATS], ids=["classes", "regions"])
def test_it_does_not_matter_how_they_come(labels):
    shares = np.random.default_rng(0).random((labels.num_outputs, 4, 5, 3)).astype(np.float32)
    before = shares.copy()
    found = most_probable(shares, labels)
    np.testing.assert_array_equal(most_probable(iter(list(shares)), labels), found)
    np.testing.assert_array_equal(shares, before)
    logits = torch.logit(torch.from_numpy(shares)) if labels.regions else torch.log(torch.from_numpy(shares))
    on_device = discretise(logits[None], labels)[0].numpy()
    if labels.regions:
        np.testing.assert_array_equal(most_probable(on_device.astype(np.float32), labels), found)
    else:
        np.testing.assert_array_equal(on_device, found)


def test_stored_voxels_are_seen_as_they_are_worked_on():
    stored = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    # x runs from right to left in the file.
    view = working_view(stored, np.diag([-1.0, 1, 1, 1]))
    np.testing.assert_array_equal(view, stored[:, :, ::-1])
    assert np.shares_memory(view, stored)

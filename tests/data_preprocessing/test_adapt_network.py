from __future__ import annotations

import dataclasses

import pytest

from data_preprocessing.planning.adapt import adapt_plan
from data_preprocessing.planning.presets import MSD_TASKS
from tests.data_preprocessing.planning.builders import dataset, fingerprint, plan
from utils.config import ModelConfig
from utils.errors import UserError

# Exactly twice as coarse: the reference's rule halves such an axis at once, nnU-Net v2's does not.
TWICE = fingerprint((2.0, 1.0, 1.0), shapes=((32, 64, 64),))


def adapted(original, **model):
    return adapt_plan(original, ModelConfig(**model), batch_size=None, brats=False).stage


def test_without_flags_the_plan_stays_as_it_is():
    original = plan(numbers=TWICE)
    assert adapt_plan(original, ModelConfig(), batch_size=None, brats=False) == original


def test_filters_alone_leave_the_levels():
    original = plan(numbers=TWICE).stage
    assert adapted(plan(numbers=TWICE), filters=(4, 8, 8, 8, 8)) == dataclasses.replace(
        original, filters=(4, 8, 8, 8, 8)[: len(original.strides)]
    )


def test_too_few_filters_are_a_user_error():
    with pytest.raises(UserError, match=r"--filters has 1 numbers"):
        adapted(plan(), filters=(4,))


def test_depth_of_an_automatic_plan_follows_its_own_rule():
    assert adapted(plan(numbers=TWICE), depth=1).strides == ((1, 1, 1), (1, 2, 2))


def test_depth_of_a_preset_follows_the_reference():
    original = plan(dataset(task="05", name=MSD_TASKS["05"].folder))
    assert adapted(original, depth=2).strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2))
    assert adapted(original, min_fmap=4).strides == original.stage.strides

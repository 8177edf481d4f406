"""Plans whose rules average logits: masks and probabilities that come back from them."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_preprocessing.preprocessor import preprocess_case
from data_preprocessing.restoration import restore_mask, restore_probabilities
from tests.data_preprocessing.builders import make_case, make_plan, random_image
from utils.rules import Rules
from utils.schema import LabelScheme, Plan, Region

LOGITS = Rules(average="logits")
REGIONS = LabelScheme(
    names=("background", "a", "b"), values=(0, 1, 2),
    regions=(Region(name="whole", classes=(1, 2), write_class=1), Region(name="core", classes=(2,), write_class=2)),
)  # fmt: skip


def restored(plan: Plan, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    meta = preprocess_case(make_case(random_image((1, 4, 4, 4))), plan).meta
    return restore_mask(logits, meta, plan), restore_probabilities(logits, meta, plan)


def volume(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None, None, None] * np.ones((1, 4, 4, 4), np.float32)


def test_the_largest_logit_wins_and_probabilities_sum_to_one():
    mask, probabilities = restored(make_plan(rules=LOGITS), volume(-1, 2, 0))
    assert np.all(mask == 1)
    powers = np.exp([-1, 2, 0])
    np.testing.assert_allclose(probabilities[:, 0, 0, 0], powers / powers.sum(), rtol=1e-5)


def test_a_region_holds_where_its_logit_is_positive():
    plan = make_plan(rules=LOGITS, labels=REGIONS)
    mask, probabilities = restored(plan, volume(0.1, -0.1))
    assert np.all(mask == 1)
    np.testing.assert_allclose(probabilities[:, 0, 0, 0], 1 / (1 + np.exp([-0.1, 0.1])), rtol=1e-5)


def test_half_precision_makes_near_logits_equal():
    near = volume(4.0, 4.001, 0)
    assert np.all(restored(make_plan(rules=LOGITS), near)[0] == 1)
    half = dataclasses.replace(LOGITS, sums="float16")
    # 4.001 is 4 in half precision, and of equals the lowest class wins.
    assert np.all(restored(make_plan(rules=half), near)[0] == 0)


def test_the_plans_grid_is_asked_first_on_the_way_back():
    # The scan is coarse along D, the plan along W; values change along W only.
    image = random_image((1, 3, 8, 16))
    logits = np.zeros((3, 12, 8, 4), np.float32)
    logits[1] = np.arange(4) - 1.5
    masks = []
    for first in ("scan", "plan"):
        rules = dataclasses.replace(LOGITS, coarse_first=first)
        plan = make_plan(spacing=(1.0, 1.0, 4.0), rules=rules)
        meta = preprocess_case(make_case(image, spacing=(4.0, 1.0, 1.0)), plan).meta
        assert meta.resampled_shape == (12, 8, 4)
        masks.append(restore_probabilities(logits, meta, plan)[1, 0, 0])
    # Interpolated along W, or four equal voxels each.
    assert len(np.unique(masks[0])) > 4
    assert len(np.unique(masks[1])) == 4

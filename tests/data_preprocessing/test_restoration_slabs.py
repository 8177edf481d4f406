"""A case that is restored plane by plane is the case restored as a whole, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest

from data_preprocessing import resampling
from data_preprocessing.preprocessor import preprocess_case
from data_preprocessing.restoration import SlabRestorer, restore_mask, restore_probabilities
from tests.data_preprocessing.test_preprocessor import LABELS, make_case, make_plan
from utils.schema import LabelScheme, Region

REGIONS = LabelScheme(
    names=("background", "a", "b"), values=(0, 1, 4),
    regions=(Region(name="ab", classes=(1, 2), write_class=1), Region(name="b", classes=(2,), write_class=2)),
)  # fmt: skip
PLANS = {
    "isotropic": {"spacing": (1.3, 0.8, 1.1)},
    "same grid": {"spacing": (1.0, 1.0, 1.0)},
    "coarse planes": {"spacing": (5.0, 0.8, 1.0)},
    "permuted": {"spacing": (1.3, 0.8, 1.1), "axes": (2, 0, 1)},
    "2d": {"patch": (16, 16), "spacing": (0.8, 1.1)},
    "padded": {"patch": (32, 16, 16), "spacing": (1.0, 1.0, 1.0)},
    "regions": {"spacing": (1.3, 0.8, 1.1), "labels": REGIONS},
}


def case_of(plan, shape=(11, 9, 13)):
    rng = np.random.default_rng(0)
    image = rng.uniform(1, 9, (1, *shape)).astype(np.float32)
    image[:, :2], image[..., -1] = 0, 0
    meta = preprocess_case(make_case(image), plan).meta
    return meta, rng.random((plan.labels.num_outputs, *meta.padded_shape), dtype=np.float32)


@pytest.mark.parametrize("sizes", [(1,), (3, 1, 5), (100,)], ids=str)
@pytest.mark.parametrize("name", PLANS)
def test_planes_in_any_portions_give_the_same_mask(name, sizes, monkeypatch):
    # Small slabs, so that several of them are waiting.
    monkeypatch.setattr(resampling, "_SLAB_VOXELS", 400)
    plan = make_plan(**({"labels": LABELS} | PLANS[name]))
    meta, probabilities = case_of(plan)
    native = np.zeros((plan.labels.num_outputs, 11, 9, 13), dtype=np.float32)
    restorer = SlabRestorer(meta, plan, probabilities=native)
    start, portion = 0, 0
    while start < probabilities.shape[1]:
        stop = start + sizes[portion % len(sizes)]
        restorer.add(probabilities[:, start:stop])
        start, portion = stop, portion + 1
    np.testing.assert_array_equal(restorer.finish(), restore_mask(probabilities, meta, plan))
    np.testing.assert_array_equal(native, restore_probabilities(probabilities, meta, plan))


def test_only_planes_that_are_still_needed_are_kept():
    plan = make_plan(spacing=(1.0, 1.0, 1.0))
    meta, probabilities = case_of(plan)
    restorer = SlabRestorer(meta, plan)
    restorer.add(probabilities)
    assert restorer.num_held == 0


def test_missing_planes_are_our_own_mistake():
    plan = make_plan()
    meta, probabilities = case_of(plan)
    restorer = SlabRestorer(meta, plan)
    restorer.add(probabilities[:, :3])
    with pytest.raises(AssertionError, match="missing"):
        restorer.finish()

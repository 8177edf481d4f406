"""A case that is restored plane by plane is the case restored as a whole, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest

from data_preprocessing import resampling, restoration
from data_preprocessing.preprocessor import preprocess_case
from data_preprocessing.resampling import make_maps
from data_preprocessing.restoration import SlabRestorer, restore_mask, restore_probabilities
from tests.data_preprocessing.builders import LABELS, make_case, make_plan
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


@pytest.mark.parametrize(
    ("shape", "new_shape", "num_outputs", "step", "expected"),
    [
        # 4 slices take 8 planes of 10 x 12 and one at each end: 3 * (10 * 120 + 4 * 48) held, 6 copies of 10 * 120.
        ((20, 10, 12), (10, 8, 6), 3, 4, 4 * (4176 + 7200)),
        # 8 slices of 10 x 12 take 2 planes of 5 x 4 and one at each end: 2 * (4 * 20 + 8 * 120), 6 copies of 8 * 120.
        ((6, 5, 4), (24, 10, 12), 2, 8, 4 * (2080 + 5760)),
        # All 6 slices at once take no more than the 5 planes there are.
        ((5, 2, 2), (6, 2, 2), 1, 100, 4 * (5 * 4 + 6 * 4 + 6 * 6 * 4)),
    ],
)
def test_memory_is_that_of_the_planes_that_are_held(shape, new_shape, num_outputs, step, expected, monkeypatch):
    monkeypatch.setattr(restoration, "slab_step", lambda *_, **__: step)
    assert restoration.restoring_bytes(shape, new_shape, num_outputs=num_outputs) == expected


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


def test_probabilities_are_added_to_what_is_there():
    plan = make_plan(spacing=(1.3, 0.8, 1.1), labels=LABELS)
    meta, probabilities = case_of(plan)
    once = restore_probabilities(probabilities, meta, plan)
    twice = once.copy()
    restorer = SlabRestorer(meta, plan, twice)
    restorer.add(probabilities)
    np.testing.assert_array_equal(twice, once + once)


def test_outside_of_a_box_is_everything_else_once():
    volume = np.zeros((5, 6, 7), dtype=int)
    box = (slice(1, 3), slice(0, 4), slice(2, 7))
    for part in restoration._outside(volume, box):
        part += 1
    expected = np.ones((5, 6, 7), dtype=int)
    expected[box] = 0
    np.testing.assert_array_equal(volume, expected)


def test_ranges_are_short_where_many_classes_are_held_together(monkeypatch):
    monkeypatch.setattr(resampling, "HELD_VALUES", 4000)
    maps = make_maps((60, 10, 10), (20, 10, 10), cubic=False, coarse=None)
    # Three slices in for each one out, of 100 voxels.
    assert [len(range(*part.indices(20))) for part in resampling.slabs(maps, num_volumes=3)] == [4] * 5
    assert [part.start for part in resampling.slabs(maps, num_volumes=100)] == list(range(20))

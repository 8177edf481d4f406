"""Input check: every kind of strangeness is named, and a scan like those of training has no remark."""

from __future__ import annotations

import numpy as np
import pytest

from data_preprocessing.preprocessor import CaseInput, preprocess_case
from inference.input_check import check_scan, check_sides, is_left_handed, look_at, reference_of, side_values
from tests.models.builders import TWO_CLASSES, make_plan
from utils.nifti import Volume
from utils.schema import Geometry

PLAN = make_plan(num_channels=2)
ONE_CHANNEL = np.array([1.0, 0.0])[:, None, None, None]


def look(seed=0, *, change=lambda image: image, spacing=1.0, shape=(12, 12, 12), signs=(1, 1, 1)):
    """Of a smooth bright ball in noise; both channels are alike but for the noise."""
    rng, grid = np.random.default_rng(seed), np.indices(shape).astype(float)
    centre = np.array(shape)[:, None, None, None] / 2
    ball = 100 * np.exp(-((grid - centre) ** 2).sum(axis=0) / 12)
    image = np.stack([10 + ball + rng.uniform(0, 3, shape) for _ in range(2)])
    image = change(image).astype(np.float32)
    affine = np.diag([*(spacing * sign for sign in signs), 1.0])
    geometry = Geometry(
        shape_xyz=shape[::-1], affine=tuple(map(tuple, affine.tolist())), qform_code=1, sform_code=1, xyzt_units=2
    )
    volume = Volume(array=image, spacing_mm=(spacing,) * 3, geometry=geometry)
    case = CaseInput(
        case="a", image=volume, label=None, image_path="a", label_path=None, source_stamp="", plan_stamp=""
    )
    done = preprocess_case(case, PLAN)
    return look_at(done.image, done.meta, PLAN)


@pytest.fixture(scope="module")
def reference():
    return reference_of([look(seed) for seed in range(20)], [])


def test_a_scan_like_those_of_training_has_no_remark(reference):
    assert check_scan(look(99), PLAN, reference) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"change": lambda image: image.max() - image + 1}, "bright end"),
        ({"change": lambda image: image + np.random.default_rng(1).normal(0, 60, image.shape)}, "rougher"),
        ({"change": lambda image: image.mean(axis=3, keepdims=True) + 0 * image}, "smoother"),
        ({"change": lambda image: image * ONE_CHANNEL}, "channel MRI 1 is constant"),
        ({"change": lambda image: image * ONE_CHANNEL + 7 * (1 - ONE_CHANNEL)}, "channel MRI 1 is constant"),
        ({"spacing": 2.0}, "voxels of 2 mm along S; training had 1 mm"),
        ({"shape": (12, 12, 30)}, "a field of view of 30 mm along R; training had 12 mm"),
        ({"signs": (-1, 1, 1)}, "its axes are stored as LAS, training files had RAS; none had this handedness"),
        ({"signs": (-1, -1, 1)}, "its axes are stored as LPS, training files had RAS"),
    ],
    ids=["inverted", "noisy", "blurred", "missing", "constant", "spacing", "field of view", "handed", "turned"],
)  # fmt: skip
def test_what_training_never_saw_is_named(reference, options, said):
    remarks = check_scan(look(99, **options), PLAN, reference)
    assert any(said in remark for remark in remarks), remarks
    if options.get("signs") == (-1, -1, 1):
        assert not any("handedness" in remark for remark in remarks)


def test_without_a_reference_the_plan_says_what_it_can():
    assert check_scan(look(), PLAN, None) == []
    assert check_scan(look(spacing=2.5), PLAN, None)[0].startswith("voxels of 2.5 mm along S, the model works at 1 mm")
    missing = look(change=lambda image: image * (1 - ONE_CHANNEL))
    assert check_scan(missing, PLAN, None) == ["channel MRI 0 is constant: nothing is in it; is it missing?"]


def mask(first=(2, 5, 1), second=(2, 5, 8)):
    """Two voxels of two classes in (6, 10, 10)."""
    classes = np.zeros((6, 10, 10), np.uint8)
    classes[first], classes[second] = 1, 2
    return classes


def test_sides_are_measured_from_the_middle_and_from_class_to_class():
    values = side_values(mask(), (2.0, 1.0, 1.0), TWO_CLASSES)
    assert values["anterior from the middle"] == (-1.0, 0.5, -3.5)
    assert values["anterior from posterior"] == (0.0, 0.0, -7.0)
    assert side_values(np.zeros((3, 3, 3), np.uint8), (1, 1, 1), TWO_CLASSES) == {}


def test_mirrored_structures_are_named_where_training_had_them_on_one_side():
    known = [side_values(mask(second=(2, 5, 8 + shift)), (1, 1, 1), TWO_CLASSES) for shift in (0, 1)]
    reference = reference_of([look()], known)
    assert set(reference.sides["R"]) == {
        "anterior from the middle", "posterior from the middle", "anterior from posterior"
    }  # fmt: skip
    mirrored = side_values(mask()[:, :, ::-1], (1, 1, 1), TWO_CLASSES)
    [remark] = check_sides(mirrored, reference)
    assert remark.startswith("left and right look swapped: anterior from the middle")
    assert check_sides(known[0], reference) == [] == check_sides(mirrored, None)
    # Along an axis on which structures lie on both sides nothing can be told.
    both = reference_of([look()], [side_values(m, (1, 1, 1), TWO_CLASSES) for m in (mask(), mask()[:, :, ::-1])])
    assert check_sides(mirrored, both) == []


def test_handedness_of_axes():
    assert [is_left_handed(axes) for axes in ("RAS", "LPS", "LAS", "PSR", "ASR")] == [False, False, True, True, False]


def test_padding_is_no_part_of_the_look():
    small = look(shape=(5, 6, 7))
    assert small.extent_mm == (5.0, 6.0, 7.0) and all(channel["low"] != 0 for channel in small.channels)
    assert PLAN.stage.patch_size == (8, 8, 8)

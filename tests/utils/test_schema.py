from __future__ import annotations

import dataclasses

import pytest

from utils.errors import UserError
from utils.files import from_dict, to_dict
from utils.schema import (
    CaseMeta,
    ChannelPlan,
    ChannelStatistics,
    Fingerprint,
    Fold,
    Geometry,
    LabelScheme,
    Plan,
    Region,
    Splits,
    StagePlan,
)

LABELS = LabelScheme(names=("background", "edema", "core"), values=(0, 1, 2))
STAGE = StagePlan(
    name="3d",
    patch_size=(4, 8, 8),
    spacing_mm=(3.0, 1.0, 1.0),
    batch_size=2,
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    kernels=((3, 3, 3),) * 3,
    filters=(32, 64, 128),
)
PLAN = Plan(
    version=1,
    task="04",
    dataset="Task04_X",
    origin="auto",
    channels=(ChannelPlan(name="MRI", scheme="zscore"),),
    labels=LABELS,
    axes=(0, 1, 2),
    mask_channel=False,
    stage=STAGE,
    reasons={"patch_size": "because"},
)
META = CaseMeta(
    version=1,
    case="a",
    image="/a.nii.gz",
    label=None,
    geometry=Geometry(shape_xyz=(3, 2, 1), affine=((1.0,) * 4,) * 4, qform_code=1, sform_code=1, xyzt_units=2),
    axes=(0, 1, 2),
    spacing_mm=(1.0, 1.0, 1.0),
    original_shape=(1, 2, 3),
    crop_box=((0, 1), (0, 2), (0, 3)),
    resampled_shape=(1, 2, 3),
    pad_low=(0, 0, 0),
    padded_shape=(4, 8, 8),
    stage="3d",
    source_stamp="s",
    plan_stamp="p",
)
STATISTICS = ChannelStatistics(
    mean=1.0, std=2.0, percentile_00_5=0.0, median=1.0, percentile_99_5=5.0, minimum=-1.0, maximum=6.0
)
FINGERPRINT = Fingerprint(
    version=1, cases=("a",), spacings_mm=((1.0,) * 3,), shapes_after_crop=((4, 5, 6),), foreground=(STATISTICS,)
)
SPLITS = Splits(version=1, folds=(Fold(train=("a",), val=("b",)),))


@pytest.mark.parametrize("known", [PLAN, META, FINGERPRINT, SPLITS])
def test_knowledge_survives_json(known):
    assert from_dict(type(known), to_dict(known), source="here") == known


@pytest.mark.parametrize("known", [PLAN, META, FINGERPRINT, SPLITS])
def test_another_format_version_is_refused(known):
    with pytest.raises(UserError, match="format version 2"):
        from_dict(type(known), to_dict(known) | {"version": 2}, source="here")


def test_unknown_and_missing_keys_are_refused_at_any_depth():
    plan = to_dict(PLAN)
    plan["stage"]["colour"] = "red"
    del plan["labels"]["names"]
    with pytest.raises(UserError, match=r"names.*colour"):
        from_dict(Plan, plan, source="plan.json")


def test_classes_are_counted_without_the_ignored_value():
    scheme = dataclasses.replace(LABELS, ignore_value=255)
    assert (scheme.num_classes, scheme.num_outputs, scheme.ignore_index) == (3, 3, 3)
    assert scheme.target_names == ("edema", "core")
    assert LABELS.ignore_index is None


def test_regions_replace_classes_as_outputs_and_targets():
    regions = (Region(name="whole", classes=(1, 2), write_class=1),)
    scheme = dataclasses.replace(LABELS, regions=regions)
    assert (scheme.num_outputs, scheme.target_names, scheme.num_classes) == (1, ("whole",), 3)


@pytest.mark.parametrize(
    "change",
    [
        {"values": (0, 1)},
        {"names": ("background",), "values": (0,)},
        {"values": (0, 1, 1)},
        {"values": (0, 1, 256)},
        {"values": (0, 1, -1)},
        {"ignore_value": 2},
        {"ignore_value": 256},
        {"regions": (Region(name="r", classes=(), write_class=1),)},
        {"regions": (Region(name="r", classes=(3,), write_class=1),)},
        {"regions": (Region(name="r", classes=(0,), write_class=1),)},
        {"regions": (Region(name="r", classes=(1,), write_class=0),)},
        {"regions": (Region(name="r", classes=(1,), write_class=1),) * 2},
    ],
)
def test_an_impossible_label_scheme_is_refused(change):
    with pytest.raises(ValueError):
        dataclasses.replace(LABELS, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"scheme": "CT"},
        {"scheme": "noNorm"},
        {"scheme": ""},
        {"scheme": "ct"},
        {"scheme": "ct", "lower": 1.0, "upper": 1.0, "mean": 0.0, "std": 1.0},
        {"scheme": "ct", "lower": 0.0, "upper": 1.0, "mean": 0.0, "std": 0.0},
    ],
)
def test_an_impossible_channel_is_refused(change):
    with pytest.raises(ValueError, match="MRI"):
        ChannelPlan(name="MRI", **change)


@pytest.mark.parametrize("scheme", ["none", "zscore", "rescale_to_0_1", "rgb_to_0_1"])
def test_schemes_but_ct_need_no_statistics(scheme):
    assert ChannelPlan(name="m", scheme=scheme).scheme == scheme


def test_a_plan_without_an_order_has_the_old_one():
    content = to_dict(PLAN)
    del content["normalize_first"]
    assert not from_dict(Plan, content, source="test").normalize_first


def test_total_strides_are_the_product_of_the_levels():
    assert (STAGE.total_strides, STAGE.dim) == ((2, 4, 4), 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": (4, 8, 6)}, "not divisible"),
        ({"patch_size": (4, 8)}, "axes"),
        ({"patch_size": (4, 8, 0)}, "positive"),
        ({"spacing_mm": (1.0, 1.0, 0.0)}, "positive"),
        ({"spacing_mm": (1.0, 1.0, float("nan"))}, "positive"),
        ({"strides": ((2, 1, 1), (1, 2, 2), (2, 2, 2))}, "first level"),
        ({"strides": ((1, 1, 1), (0, 2, 2), (2, 2, 2))}, "positive"),
        ({"kernels": ((3, 3, 3), (0, 3, 3), (3, 3, 3))}, "odd"),
        ({"kernels": ((3, 3, 3), (2, 3, 3), (3, 3, 3))}, "odd"),
        ({"filters": (32, 64)}, "one entry per level"),
        ({"filters": (32, 64, 0)}, "positive"),
        ({"batch_size": 0}, "positive"),
    ],
)
def test_an_impossible_stage_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(STAGE, **change)


def test_the_mask_is_one_more_input_channel():
    assert PLAN.in_channels == 1
    assert dataclasses.replace(PLAN, mask_channel=True).in_channels == 2


def test_the_second_stage_of_a_cascade_sees_one_more_channel_per_foreground_class():
    second = dataclasses.replace(PLAN, previous_stage="3d_lowres")
    assert second.image_channels == PLAN.image_channels
    assert second.in_channels == PLAN.image_channels + PLAN.labels.num_classes - 1


@pytest.mark.parametrize("change", [{"axes": (0, 1, 1)}, {"origin": "guess"}, {"channels": ()}])
def test_an_impossible_plan_is_refused(change):
    with pytest.raises(ValueError):
        dataclasses.replace(PLAN, **change)


def test_a_fingerprint_describes_every_case():
    with pytest.raises(ValueError, match="per case"):
        dataclasses.replace(FINGERPRINT, cases=("a", "b"))


def test_numbers_that_came_later_are_left_out_of_a_plan_that_has_none_of_them():
    data = to_dict(PLAN)
    assert not {"planner", "mirror_axes"} & set(data)
    assert not {"decoder_kernels", "encoder_convs", "decoder_convs", "block"} & set(data["stage"])
    assert from_dict(Plan, data, source="plan.json") == PLAN


def test_numbers_that_came_later_are_kept():
    stage = dataclasses.replace(
        STAGE, decoder_kernels=((1, 3, 3), (3, 3, 3)), encoder_convs=(1, 3, 4), decoder_convs=(1, 1), block="residual"
    )
    plan = dataclasses.replace(PLAN, stage=stage, planner="resenc_m", mirror_axes=(1, 2))
    data = to_dict(plan)
    assert list(data["stage"]["encoder_convs"]) == [1, 3, 4] and list(data["mirror_axes"]) == [1, 2]
    assert from_dict(Plan, data, source="plan.json") == plan
    no_flips = dataclasses.replace(PLAN, mirror_axes=())
    assert from_dict(Plan, to_dict(no_flips), source="plan.json") == no_flips


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"decoder_kernels": ((1, 3, 3),)}, "decoder_kernels must have 2 entries"),
        ({"decoder_kernels": ((1, 2, 3), (3, 3, 3))}, "odd"),
        ({"decoder_kernels": ((3, 3), (3, 3))}, "2 or 3 axes"),
        ({"encoder_convs": (2, 2)}, "encoder_convs must have 3 entries"),
        ({"decoder_convs": (2, 2, 2)}, "decoder_convs must have 2 entries"),
        ({"decoder_convs": (0, 1)}, "positive"),
        ({"block": "dense"}, "plain, residual"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(changes, problem):
    with pytest.raises(ValueError, match=problem):
        dataclasses.replace(STAGE, **changes)


def test_a_decoder_step_convolves_with_the_kernel_of_the_level_below_unless_told():
    assert STAGE.step_kernels == ((3, 3, 3),) * 2
    kernels = ((1, 3, 3), (3, 3, 3), (3, 3, 3))
    assert dataclasses.replace(STAGE, kernels=kernels).step_kernels == kernels[1:]
    assert dataclasses.replace(STAGE, kernels=kernels, decoder_kernels=kernels[:-1]).step_kernels == kernels[:-1]
    assert (STAGE.level_convs, STAGE.step_convs) == ((2, 2, 2), (2, 2))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [({"planner": "big"}, "planner"), ({"mirror_axes": (3,)}, "0..2"), ({"mirror_axes": (1, 1)}, "0..2")],
)
def test_a_plan_names_planners_and_axes_that_there_are(changes, problem):
    with pytest.raises(ValueError, match=problem):
        dataclasses.replace(PLAN, **changes)

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from inference.nnunet_v2.plans import read_labels, read_plan, resolve
from tests.inference.nnunet_v2.made_up_models import MODELS, make_dataset, make_plans
from utils.errors import UserError
from utils.rules import NNUNET_V2
from utils.schema import Plan, Region

FLAT = MODELS["anisotropic"]


def plan_of(plans: dict[str, Any], name: str = "3d_fullres", model: str = "anisotropic") -> Plan:
    return read_plan(plans, make_dataset(MODELS[model]), name)


def changed(**settings: Any) -> dict[str, Any]:
    plans = make_plans(FLAT)
    plans["configurations"]["3d_fullres"] |= settings
    return plans


def refusal(plans: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        plan_of(plans)
    return str(error.value)


def test_a_decoder_step_convolves_with_the_kernel_of_its_own_level():
    stage = plan_of(make_plans(FLAT)).stage
    assert stage.kernels == ((1, 3, 3), (3, 3, 3), (3, 3, 3))
    assert stage.step_kernels == ((1, 3, 3), (3, 3, 3))
    assert stage.spacing_mm == (4.5, 1.0, 1.05) and stage.patch_size == (8, 20, 24)


def test_nnunets_numerical_rules_hold():
    plan = plan_of(make_plans(FLAT))
    assert plan.rules == NNUNET_V2 and plan.normalize_first and plan.orientation == "stored"


def test_ct_is_clipped_and_scaled_by_the_data_sets_numbers():
    [channel] = plan_of(make_plans(FLAT)).channels
    assert (channel.scheme, channel.lower, channel.upper, channel.mean, channel.std) == ("ct", 20, 430, 250, 120)


def test_residual_levels_and_one_convolution_per_decoder_step():
    stage = plan_of(make_plans(MODELS["residual"]), model="residual").stage
    assert (stage.block, stage.encoder_convs, stage.decoder_convs) == ("residual", (1, 3, 2), (1, 1))


def test_older_plans_say_the_same_as_newer_ones():
    model = MODELS["old"]
    old, new = make_plans(model), make_plans(dataclasses.replace(model, old_format=False))
    assert "UNet_class_name" in old["configurations"]["3d_fullres"]
    plans = [plan_of(each, model="old") for each in (old, new)]
    assert plans[0] == plans[1] and plans[0].stage.filters == (4, 8, 12)
    assert plans[0].axes == (2, 0, 1)


def test_a_chain_of_inheritance_is_followed():
    plans = make_plans(FLAT)
    plans["configurations"] |= {"b": {"inherits_from": "3d_fullres", "spacing": [9, 9, 9]}, "c": {"inherits_from": "b"}}
    assert plan_of(plans, "c").stage.spacing_mm == (9, 9, 9)
    assert plan_of(plans, "c").stage.filters == FLAT.filters


def test_inheritance_in_a_circle_is_refused():
    plans = {"configurations": {"a": {"inherits_from": "b"}, "b": {"inherits_from": "a"}}}
    with pytest.raises(UserError, match="inherits from itself"):
        resolve(plans, "a", "plans.json")


def test_regions_write_the_values_of_their_order():
    labels = read_labels(make_dataset(MODELS["regions"]), "x")
    assert labels.values == (0, 1, 3) and labels.ignore_value == 4
    assert labels.regions == (
        Region(name="whole", classes=(1, 2), write_class=1), Region(name="core", classes=(2,), write_class=2)
    )  # fmt: skip


def test_regions_without_an_order_are_refused():
    dataset = make_dataset(MODELS["regions"])
    del dataset["regions_class_order"]
    with pytest.raises(UserError, match="no regions_class_order"):
        read_labels(dataset, "x")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"preprocessor_name": "OwnPreprocessor"}, "preprocessor_name = OwnPreprocessor"),
        ({"resampling_fn_data": "resample_torch_fornnunet"}, "resampling_fn_data = resample_torch_fornnunet"),
        ({"normalization_schemes": ["OwnNormalization"]}, "OwnNormalization"),
        ({"patch_size": [8, 21, 24]}, "not divisible"),
        ({"patch_size": None}, "cannot be read"),
    ],
)
def test_what_has_no_equivalent_is_named(settings: dict[str, Any], named: str):
    assert named in refusal(changed(**settings))


def test_a_separate_axis_by_force_is_named():
    options = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": True}
    assert "force_separate_z = True" in refusal(changed(resampling_fn_data_kwargs=options))


@pytest.mark.parametrize("name", ["Primus", "MedNeXt"])
def test_another_network_is_named(name: str):
    plans = changed(architecture={"network_class_name": f"some.package.{name}", "arch_kwargs": {}})
    assert f"its network is some.package.{name}" in refusal(plans)


def test_a_setting_of_the_network_without_equivalent_is_named():
    plans = make_plans(FLAT)
    settings = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    settings |= {"norm_op": "torch.nn.GroupNorm", "nonlin_first": True, "squeeze_excitation": True}
    text = refusal(plans)
    assert all(each in text for each in ("GroupNorm", "nonlin_first = True", "squeeze_excitation = True"))


def test_a_reader_of_pages_is_named():
    assert "Tiff3DIO (a TIFF of several pages" in refusal(make_plans(FLAT) | {"image_reader_writer": "Tiff3DIO"})


@pytest.mark.parametrize("configurations", [None, [], {"3d_fullres": 1}])
def test_configurations_of_another_kind_are_refused(configurations: Any):
    assert "no configurations" in refusal(make_plans(FLAT) | {"configurations": configurations})


def test_numbers_are_not_believed_without_limit():
    plans = make_plans(FLAT)
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["n_conv_per_stage"] = [2, 10**9, 2]
    assert "more than any has" in refusal(plans)


def test_something_else_is_no_plan():
    assert "lacks 'transpose_forward'" in refusal(
        {key: value for key, value in make_plans(FLAT).items() if key != "transpose_forward"}
    )

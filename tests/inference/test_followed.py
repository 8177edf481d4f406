from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from data_preprocessing.dataset.description_file import Dataset
from data_preprocessing.planning.follow import follow_plan
from inference.followed import read_followed
from inference.nnunet_v2.folder import nnunet_model
from tests.inference.nnunet_v2.made_up_models import MODELS, make_plans, write_model
from utils.errors import UserError
from utils.files import write_json
from utils.rules import NNUNET_V2, Rules
from utils.schema import FORMAT_VERSION, ChannelPlan, ChannelStatistics, Fingerprint, LabelScheme

STATISTICS = ChannelStatistics(
    mean=40.0, std=30.0, percentile_00_5=-60.0, median=45.0, percentile_99_5=180.0, minimum=-100.0, maximum=300.0
)  # fmt: skip
FINGERPRINT = Fingerprint(
    version=FORMAT_VERSION, cases=("a",), spacings_mm=((2.0, 1.0, 1.0),), shapes_after_crop=((40, 60, 60),),
    foreground=(STATISTICS,),
)  # fmt: skip


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """One channel, labels of its own."""
    labels = LabelScheme(names=("background", "spleen", "cyst"), values=(0, 1, 2))
    return Dataset(
        task="77", name="Task77_Mine", folder=tmp_path / "Task77_Mine", channels=("CT",), labels=labels, training=(),
        test=(),
    )  # fmt: skip


def write_plans(path: Path, name: str, **changes) -> Path:
    plans = make_plans(MODELS[name]) | changes
    path.write_text(json.dumps(plans))
    return path


@pytest.mark.parametrize("name", ["isotropic", "anisotropic", "residual", "old", "2d"])
def test_grid_and_network_are_the_other_plans_and_names_and_labels_stay(tmp_path: Path, dataset, name):
    model = MODELS[name]
    path = write_plans(tmp_path / "nnUNetPlans.json", name)
    followed = read_followed(path, dataset.channels, dim=model.dim)
    plan = follow_plan(followed, dataset, FINGERPRINT, mask_channel=False)
    theirs = nnunet_model(write_model(tmp_path / "m", dataclasses.replace(model, folds=1))).plan
    assert plan.stage == dataclasses.replace(theirs.stage, name=f"{model.dim}d")
    assert plan.stage.patch_size == model.patch and plan.stage.spacing_mm == model.spacing_mm
    assert (plan.axes, plan.orientation, plan.normalize_first) == (theirs.axes, theirs.orientation, True)
    assert [c.scheme for c in plan.channels] == [c.scheme for c in theirs.channels]
    assert [c.name for c in plan.channels] == ["CT"] and plan.labels.names == ("background", "spleen", "cyst")
    assert (plan.task, plan.dataset, plan.rules, plan.mirror_axes) == ("77", "Task77_Mine", theirs.rules, None)
    assert theirs.rules == NNUNET_V2
    assert str(path) in plan.reasons["plan"] and plan.reasons["patch_size"].startswith("as in the plan")


def test_ct_statistics_are_the_other_plans_or_else_the_data_sets(tmp_path: Path, dataset):
    path = write_plans(tmp_path / "p.json", "anisotropic")
    plan = follow_plan(read_followed(path, ("CT",), dim=3), dataset, FINGERPRINT, mask_channel=False)
    assert plan.channels == (ChannelPlan(name="CT", scheme="ct", lower=20.0, upper=430.0, mean=250.0, std=120.0),)
    write_plans(path, "anisotropic", foreground_intensity_properties_per_channel={})
    plan = follow_plan(read_followed(path, ("CT",), dim=3), dataset, FINGERPRINT, mask_channel=False)
    assert plan.channels == (ChannelPlan(name="CT", scheme="ct", lower=-60.0, upper=180.0, mean=40.0, std=30.0),)
    assert "this data set's statistics" in plan.reasons["channel_0"]


def test_the_configuration_is_that_of_dim_and_lowres(tmp_path: Path):
    path = write_plans(tmp_path / "p.json", "cascade")
    full = read_followed(path, ("MRI",), dim=3).plan.stage
    low = read_followed(path, ("MRI",), dim=3, lowres=True).plan.stage
    assert (full.name, full.patch_size) == ("3d", (16, 16, 16))
    assert (low.name, low.patch_size) == ("3d_lowres", (12, 12, 12))
    with pytest.raises(UserError, match=r"has no configuration 2d; it has 3d_fullres, 3d_lowres"):
        read_followed(path, ("MRI",), dim=2)


def test_a_model_is_followed_too_and_our_plan(tmp_path: Path, dataset):
    folder = write_model(tmp_path / "m", dataclasses.replace(MODELS["residual"], folds=1))
    expected = read_followed(folder, ("CT",), dim=3).plan
    checkpoint = read_followed(folder / "fold_0" / "checkpoint_final.pth", ("CT",), dim=3)
    assert checkpoint.plan.stage == expected.stage
    ours = follow_plan(read_followed(folder, ("CT",), dim=3), dataset, FINGERPRINT, mask_channel=True)
    write_json(ours, tmp_path / "plan.json")
    assert read_followed(folder / "fold_0", ("CT",), dim=3).plan == expected
    for path in (tmp_path, tmp_path / "plan.json"):
        again = follow_plan(read_followed(path, ("CT",), dim=3), dataset, FINGERPRINT, mask_channel=False)
        assert dataclasses.replace(again, reasons=ours.reasons) == ours
    with pytest.raises(UserError, match=r"is of --dim 3, and this is --dim 2"):
        read_followed(tmp_path, ("CT",), dim=2)
    with pytest.raises(UserError, match=r"is of --dim 3, and this is --dim 3 --lowres"):
        read_followed(tmp_path, ("CT",), dim=3, lowres=True)
    with pytest.raises(UserError, match=r"is for 1 channels \(CT\), and this data set has 2: T1, T2"):
        read_followed(tmp_path, ("T1", "T2"), dim=3)


def test_a_plan_of_this_program_keeps_its_own_rules(tmp_path: Path, dataset):
    ours = follow_plan(
        read_followed(write_plans(tmp_path / "p.json", "residual"), ("CT",), dim=3), dataset, FINGERPRINT,
        mask_channel=False,
    )  # fmt: skip
    write_json(dataclasses.replace(ours, rules=Rules()), tmp_path / "plan.json")
    assert read_followed(tmp_path, ("CT",), dim=3).plan.rules == Rules()


def test_what_cannot_be_followed_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"--plan must be auto, preset, or an existing plan or model, got .*prset"):
        read_followed(tmp_path / "prset", ("CT",), dim=3)
    path = write_plans(tmp_path / "p.json", "regions")
    with pytest.raises(UserError, match=r"normalises 2 channels, and dataset\.json names 1: CT"):
        read_followed(path, ("CT",), dim=3)
    (tmp_path / "p.json").write_text("[1]")
    with pytest.raises(UserError, match=r"p\.json"):
        read_followed(path, ("CT",), dim=3)
    (tmp_path / "p.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match=r"p\.json is not a valid Plan"):
        read_followed(path, ("CT",), dim=3)

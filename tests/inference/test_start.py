from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from inference.archive import load_model, write_archive
from inference.nnunet_v2.folder import nnunet_model
from inference.start import read_start
from models.checkpoint import warm_start
from models.unet import build_network
from tests.inference.nnunet_v2.made_up_models import (
    MODELS,
    make_dataset,
    make_plans,
    make_weight,
    write_model,
)
from utils.config import ModelConfig
from utils.errors import UserError
from utils.schema import LabelScheme, Plan

SMALL = dataclasses.replace(MODELS["isotropic"], folds=2)
HEAD = "deep_supervision_heads.0.conv.conv.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "m", SMALL)


def plan_of(folder: Path) -> Plan:
    return nnunet_model(folder).plan


def network_of(plan: Plan, **model) -> torch.nn.Module:
    options = ModelConfig(**model)
    return build_network(
        plan.stage, in_channels=plan.in_channels, num_outputs=plan.labels.num_outputs, model=options
    )  # fmt: skip


@pytest.mark.parametrize("name", [name for name in MODELS if name != "cascade"])
def test_a_training_starts_from_all_weights_of_a_checkpoint_of_nnunet(tmp_path: Path, name):
    folder = write_model(tmp_path / "m", dataclasses.replace(MODELS[name], folds=1))
    start, warnings = read_start(folder / "fold_0" / "checkpoint_final.pth", plan_of(folder))
    network = network_of(plan_of(folder), deep_supervision=True, deep_supr_num=1)
    assert warm_start(network, start) == [] and warnings == []
    theirs = MODELS[name]
    middle, ones = theirs.filters[1], (1,) * theirs.dim
    expected = make_weight("decoder.seg_layers.0.weight", (theirs.num_outputs, middle, *ones), 0)
    assert torch.equal(network.state_dict()[HEAD], expected)


def test_of_a_model_the_first_fold_counts(folder: Path, tmp_path: Path):
    plan = plan_of(folder)
    write_archive(tmp_path / "ours.zip", load_model(folder))
    shutil.make_archive(str(tmp_path / "theirs"), "zip", tmp_path / "m")
    (folder / "fold_0").rename(folder / "fold_2")
    expected = {path: fold for path, fold in ((folder, 1), (tmp_path / "ours.zip", 0), (tmp_path / "theirs.zip", 0))}
    for path, fold in expected.items():
        start, _ = read_start(path, plan)
        weight = start.state_dict["downsamples.0.conv1.conv.weight"]
        assert torch.equal(weight, make_weight("encoder.stages.1.0.convs.0.conv.weight", (6, 4, 3, 3, 3), fold))
        assert start.path == path / f"fold_{fold}"


def test_heads_of_another_number_of_classes_are_new_and_named(folder: Path):
    plan = plan_of(folder)
    labels = LabelScheme(names=("background", "organ"), values=(0, 1))
    network = network_of(dataclasses.replace(plan, labels=labels), deep_supervision=True, deep_supr_num=1)
    start, _ = read_start(folder / "fold_0" / "checkpoint_final.pth", plan)
    messages = warm_start(network, start)
    assert [message.split()[0] for message in messages] == ["deep_supervision_heads.0", "output_block"]
    assert "checkpoint_final.pth" in messages[0]


def test_data_that_were_prepared_otherwise_are_named(folder: Path):
    plan = plan_of(folder)
    other = dataclasses.replace(
        plan, normalize_first=False, stage=dataclasses.replace(plan.stage, spacing_mm=(3.0, 1.0, 1.0))
    )  # fmt: skip
    [warning] = read_start(folder, other)[1]
    assert "spacing (mm) ((1.1, 1.0, 1.05), here (3.0, 1.0, 1.0)), normalised before resampling (True" in warning
    assert "patch" not in warning and "--plan" in warning


def test_a_checkpoint_by_itself_has_its_plans_inside(folder: Path, tmp_path: Path):
    plan, path = plan_of(folder), tmp_path / "alone" / "checkpoint_final.pth"
    content = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=False)
    path.parent.mkdir()
    torch.save(content, path)
    with pytest.raises(UserError, match=r"holds no plans; put it back into its model folder, beside plans\.json"):
        read_start(path, plan)
    content["init_args"] |= {"plans": make_plans(SMALL), "dataset_json": make_dataset(SMALL)}
    torch.save(content, path)
    assert read_start(path, plan)[0].plan == plan


def test_what_nothing_can_start_from_is_refused(folder: Path, tmp_path: Path):
    plan = plan_of(folder)
    with pytest.raises(UserError, match=r"--ckpt_path .*gone does not exist"):
        read_start(tmp_path / "gone", plan)
    path = folder / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    torch.save(content | {"trainer_name": "nnUNet_Primus_M_Trainer"}, path)
    with pytest.raises(UserError, match="trained a network of its own"):
        read_start(path, plan)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="truncated or damaged"):
        read_start(path, plan)
    with pytest.raises(UserError, match=r"other\.pth does not exist"):
        read_start(path.with_name("other.pth"), plan)

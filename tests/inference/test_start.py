from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from inference.archive import load_model, write_archive
from inference.nnunet_v2.folder import nnunet_model
from inference.start import features_of_start, read_start
from models.checkpoint import warm_start
from models.unet import build_network
from tests.inference.nnunet_v2.made_up_models import (
    MODELS,
    make_dataset,
    make_plans,
    make_weight,
    parameter_shapes,
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


@pytest.mark.slow
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


ENCODER = dataclasses.replace(MODELS["residual"], channels=("ZScoreNormalization",), folds=1)


def write_encoder(path: Path, **changes) -> Path:
    """As nnssl writes what it has trained: with a decoder of its own, and the stem under two names."""
    weights = {f"decoder.{i}.weight": torch.ones(2) for i in range(2)}
    for name, shape in parameter_shapes(ENCODER):
        if name.startswith("encoder."):
            weights[name.replace("encoder.", "online_encoder.")] = make_weight(name, shape, 0)
    weights["online_encoder.stem.convs.0.all_modules.0.weight"] = weights["online_encoder.stem.convs.0.conv.weight"]
    adaptation = {
        "architecture_plans": {"arch_class_name": "ResEncL", "arch_kwargs": None, "arch_kwargs_requiring_import": None},
        "pretrain_plan": {"configurations": {"onemmiso": {"patch_size": [16, 16, 16]}}},
        "pretrain_num_input_channels": 1, "recommended_downstream_patchsize": [16, 16, 16],
        "key_to_encoder": "online_encoder.stages", "key_to_stem": "online_encoder.stem", "key_to_lpe": None,
        "keys_to_in_proj": ["online_encoder.stem.convs.0.conv", "online_encoder.stem.convs.0.all_modules.0"],
    }  # fmt: skip
    torch.save({"network_weights": weights, "nnssl_adaptation_plan": adaptation | changes}, path)
    return path


def test_an_encoder_of_nnssl_is_taken_and_the_decoder_is_new(tmp_path: Path):
    plan = plan_of(write_model(tmp_path / "m", ENCODER))
    network = network_of(plan)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    start, _ = read_start(write_encoder(tmp_path / "checkpoint_final.pth"), plan)
    [message] = warm_start(network, start)
    assert "is an encoder; the decoder and its heads start from random weights" in message
    after = network.state_dict()
    taken = {name for name in after if not name.startswith(("upsamples.", "output_block."))}
    assert taken == start.state_dict.keys()
    assert all(torch.equal(after[name], before[name]) for name in after.keys() - taken)
    expected = make_weight("encoder.stages.1.blocks.0.conv1.conv.weight", (6, 4, 3, 3, 3), 0)
    assert any(torch.equal(value, expected) for value in start.state_dict.values() if value.shape == expected.shape)


def test_the_width_is_that_of_the_weights_and_an_encoder_has_none(tmp_path: Path):
    plan = plan_of(write_model(tmp_path / "m", ENCODER))
    assert features_of_start(write_encoder(tmp_path / "checkpoint_final.pth"), plan) is None
    assert features_of_start(tmp_path / "m", plan) == tuple(plan.stage.filters)


@pytest.mark.slow
def test_an_encoder_that_does_not_fit_is_refused(tmp_path: Path):
    plan, plain = plan_of(write_model(tmp_path / "m", ENCODER)), plan_of(write_model(tmp_path / "p", SMALL))
    path = write_encoder(tmp_path / "checkpoint_final.pth")
    with pytest.raises(UserError, match=r"planned for another network: preprocess\.py --planner resenc_l"):
        read_start(path, plain)
    with pytest.raises(UserError, match=r"it holds no plan to follow"):
        read_start(path)
    deeper = dataclasses.replace(plan, stage=dataclasses.replace(plan.stage, encoder_convs=(1, 3, 3)))
    with pytest.raises(UserError, match=r"stages\.2\.blocks\.2\.conv1\.conv\.weight is missing"):
        read_start(path, deeper)
    flatter = dataclasses.replace(plan, stage=dataclasses.replace(plan.stage, encoder_convs=(1, 2, 2)))
    with pytest.raises(UserError, match=r"stages\.1\.blocks\.2\.conv1\.conv\.weight has no place"):
        read_start(path, flatter)
    write_encoder(path, architecture_plans={"arch_class_name": "PrimusM"})
    with pytest.raises(UserError, match=r"is a network of PrimusM; of those that nnssl trained, ResEncL"):
        read_start(path, plan)

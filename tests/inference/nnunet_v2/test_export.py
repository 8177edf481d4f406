from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch

from inference.archive import load_model
from inference.configuration import ConfigurationModel, FoldWeights
from inference.decision import PostProcessing
from inference.model import Model, single_model
from inference.nnunet_v2.export import export_folder, export_weights, make_dataset
from inference.nnunet_v2.plans import read_labels
from tests.inference.nnunet_v2.made_up_models import MODELS, write_model
from tests.models.builders import BRATS, make_network, make_plan
from utils.config import ModelConfig
from utils.errors import UserError
from utils.schema import Plan

NAMES = json.loads(Path(__file__).with_name("nnunet_names.json").read_text())


def digest(names: list[str]) -> str:
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]


def trained(plan: Plan, model: ModelConfig | None = None) -> Model:
    model = model or ModelConfig()
    weights = FoldWeights(name="fold_0", fold=0, state_dict=make_network(plan, model).state_dict())
    return single_model(ConfigurationModel(source=Path("x"), plan=plan, model=model, folds=(weights,)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["isotropic", "anisotropic", "residual", "2d", "regions", "old", "cascade"])
def test_there_and_back_is_the_same_model(name: str, tmp_path: Path):
    first = load_model(write_model(tmp_path / "m", MODELS[name]))
    folder, notes = export_folder(tmp_path / "out", first)
    again = load_model(folder)
    assert again.plan == dataclasses.replace(first.plan, reasons=again.plan.reasons) and not notes
    for a, b in zip(first.configurations[0].folds, again.configurations[0].folds):
        assert a.fold == b.fold
        assert all(torch.equal(value, b.state_dict[name]) for name, value in a.state_dict.items())
    assert (again.configurations[0].previous is None) == (first.configurations[0].previous is None)


@pytest.mark.parametrize("name", ["isotropic", "residual"])
def test_weights_have_all_names_that_nnunet_asks_for(name: str, tmp_path: Path):
    model = load_model(write_model(tmp_path / "m", MODELS[name]))
    weights = export_weights(model.configurations[0].folds[0].state_dict, model.plan)
    assert digest([f"{key} {tuple(value.shape)}" for key, value in weights.items()]) == NAMES[name]


def test_regions_keep_their_order():
    plan = make_plan(labels=BRATS)
    dataset = make_dataset(plan)
    assert dataset["labels"] == {"background": 0, "WT": [1, 2, 3], "TC": [2, 3], "ET": [3]}
    assert dataset["regions_class_order"] == [1, 2, 3]
    assert read_labels(dataset, "x").regions == BRATS.regions


def test_differing_rules_and_z_scores_are_said(tmp_path: Path):
    plan = dataclasses.replace(make_plan(), normalize_first=True)
    _, notes = export_folder(tmp_path / "out", trained(plan))
    assert len(notes) == 2 and "non-zero voxels" in notes[0] and "average = logits" in notes[1]


@pytest.mark.parametrize(
    ("changes", "model", "named"),
    [
        ({"mask_channel": True}, ModelConfig(), "--ohe"),
        ({"normalize_first": False}, ModelConfig(), "resamples before it normalises"),
        ({}, ModelConfig(norm="batch"), "--norm batch"),
        ({}, ModelConfig(res_block=True), "--res_block"),
        ({"labels": dataclasses.replace(make_plan().labels, values=(0, 1, 5))}, ModelConfig(), "values 0, 1, 5"),
    ],
)
def test_what_has_no_equivalent_is_named(changes, model: ModelConfig, named: str, tmp_path: Path):
    plan = dataclasses.replace(make_plan(), **({"normalize_first": True} | changes))
    with pytest.raises(UserError, match=named):
        export_folder(tmp_path / "out", trained(plan, model))
    assert not (tmp_path / "out").exists()


def test_post_processing_is_named(tmp_path: Path):
    model = trained(dataclasses.replace(make_plan(), normalize_first=True))
    model = dataclasses.replace(model, post_processing=PostProcessing(foreground=True))
    with pytest.raises(UserError, match="post-processing"):
        export_folder(tmp_path / "out", model)


def test_a_decoder_of_the_presets_is_named(tmp_path: Path):
    plan = dataclasses.replace(make_plan(), normalize_first=True)
    stage = dataclasses.replace(plan.stage, kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)))
    with pytest.raises(UserError, match="kernel of the level below"):
        export_folder(tmp_path / "out", trained(dataclasses.replace(plan, stage=stage)))

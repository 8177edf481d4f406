"""main.py with plans of residual encoders, with all cases, flips along some axes, and from a model of nnU-Net v2."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from inference.archive import load_model
from inference.nnunet_v2.export import export_folder
from models.checkpoint import read_checkpoint
from tests.inference.nnunet_v2.made_up_models import MODELS, make_weight, write_model
from tests.main_runs import outcome, run
from tests.tiny_task import Task, make_task
from utils.rules import NNUNET_V2
from utils.training_state import read_training_state

SHORT = ("--max_epochs", "1", "--nfolds", "3")


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Task:
    made = make_task(tmp_path_factory.mktemp("task"), num_cases=6, shape=(14, 18, 16))
    assert made.run("--nfolds", "3", "--planner", "resenc_m", "--zscore", "nnunet") == 0
    return made


def last(results: Path) -> Path:
    return results / "checkpoints" / "last.ckpt"


@pytest.mark.slow
def test_a_residual_encoder_is_trained_resumed_and_evaluated(task, tmp_path):
    flags = ("--filters", "4", "8", "8", "8", "--deep_supervision", "--deep_supr_num", "1", "--nfolds", "3")
    assert run(task, tmp_path, "train", *flags, "--max_epochs", "1") == 0
    stored = read_checkpoint(last(tmp_path))
    assert stored.plan is not None and stored.plan.stage.block == "residual" and stored.plan.planner == "resenc_m"
    assert any(name.startswith("stem.") for name in stored.state_dict)
    assert run(task, tmp_path, "train", *flags, "--max_epochs", "2", "--resume_training") == 0
    assert torch.load(last(tmp_path), weights_only=True)["epoch"] == 1
    assert run(task, tmp_path / "e", "evaluate", "--nfolds", "3", "--ckpt_path", str(last(tmp_path))) == 0


@pytest.mark.slow
def test_all_cases_are_trained_on_and_the_score_is_said_to_be_flattered(task, tmp_path, capsys):
    network = ("--nfolds", "3", "--filters", "4", "8", "8", "8")
    assert run(task, tmp_path, "train", *network, "--max_epochs", "1", "--fold", "all") == 0
    assert "--fold all validates on cases that are trained on" in capsys.readouterr().err
    assert "dice" in str(outcome(tmp_path)).lower()
    stored = read_checkpoint(last(tmp_path)).training
    assert stored is not None and stored.fold == "all" and len(stored.cases.train) == 6
    state = read_training_state(tmp_path / "checkpoints")
    assert state is not None and state.fold == "all" and state.finished
    again = (*network, "--max_epochs", "2", "--resume_training")
    assert run(task, tmp_path, "train", *again, "--fold", "all") == 0
    assert run(task, tmp_path, "train", *again, "--fold", "0") == 2
    assert "--fold was all, now it is 0" in capsys.readouterr().err


@pytest.mark.slow
def test_flips_that_were_trained_with_are_kept_in_the_checkpoint(task, tmp_path):
    assert run(task, tmp_path, "train", *SHORT, "--filters", "4", "8", "8", "8", "--mirror_axes", "S", "A") == 0
    plan = read_checkpoint(last(tmp_path)).plan
    assert plan is not None and plan.mirror_axes == (0, 1)


@pytest.mark.slow
def test_a_model_of_nnunet_is_trained_on_with_data_that_follow_its_plan(tmp_path, capsys):
    model = write_model(tmp_path / "model", dataclasses.replace(MODELS["isotropic"], folds=1))
    task = make_task(tmp_path, num_cases=6, shape=(14, 18, 16))
    assert task.run("--nfolds", "3", "--plan", str(model), "--zscore", "nnunet") == 0
    printed = capsys.readouterr()
    assert "--zscore has no effect on a plan that follows another" in printed.err
    assert f"follows {model}, configuration 3d_fullres" in " ".join(printed.out.split())
    flags = (*SHORT, "--deep_supervision", "--deep_supr_num", "1", "--learning_rate", "1e-9")
    assert run(task, tmp_path / "r", "train", *flags, "--ckpt_path", str(model / "fold_0/checkpoint_final.pth")) == 0
    printed = capsys.readouterr()
    assert "output_block does not fit" in printed.out and "deep_supervision_heads.0 does not fit" in printed.out
    assert "prepared otherwise" not in printed.err
    stored = read_checkpoint(last(tmp_path / "r"))
    assert stored.plan is not None and stored.plan.orientation == "stored" and stored.plan.labels.num_classes == 2
    exported, notes = export_folder(tmp_path / "exported", load_model(last(tmp_path / "r")))
    again = load_model(exported).plan
    assert again.rules == stored.plan.rules == NNUNET_V2 and not notes
    theirs = make_weight("encoder.stages.1.0.convs.0.conv.weight", (6, 4, 3, 3, 3), 0)
    assert torch.allclose(stored.state_dict["downsamples.0.conv1.conv.weight"], theirs, atol=1e-5)
    scoring = ("--nfolds", "3", "--ckpt_path", str(last(tmp_path / "r")), "--invert_resampled_y")
    assert run(task, tmp_path / "e", "evaluate", *scoring) == 0

"""What --model may be: a checkpoint, a folder of them, a folder of folds; and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from inference.configuration import build_networks, flips_warning, read_configuration, weight_bytes
from models.acceleration import Acceleration
from tests.models.builders import BRATS, make_plan, make_stage
from tests.models.checkpoints import save_ours, save_reference
from utils.errors import UserError
from utils.training_state import TrainingState, write_training_state

CPU = torch.device("cpu")


@pytest.fixture
def folds(tmp_path):
    for fold in (0, 1, 2):
        folder = tmp_path / f"fold_{fold}" / "checkpoints"
        folder.mkdir(parents=True)
        save_ours(folder / "last.ckpt", make_plan(), seed=fold)
    return tmp_path


def test_networks_have_the_weights_of_the_checkpoint_and_no_training_heads(tmp_path):
    state = save_ours(tmp_path / "last.ckpt", make_plan())
    bundle = read_configuration(tmp_path / "last.ckpt")
    (network,) = build_networks(bundle, CPU)
    assert not network.training and bundle.folds[0].fold is None
    own = network.state_dict()
    assert own and all(torch.equal(value, state[name]) for name, value in own.items())
    assert not any("deep_supervision" in name for name in own)
    assert weight_bytes(bundle) == 4 * sum(p.numel() for p in network.parameters())


def test_accelerated_networks_have_the_same_names_and_lie_channels_last(tmp_path):
    state = save_ours(tmp_path / "last.ckpt", make_plan())
    bundle = read_configuration(tmp_path / "last.ckpt")
    (network,) = build_networks(bundle, CPU, Acceleration(channels_last=True, fused_norm=True))
    own = network.state_dict()
    assert own and all(torch.equal(value, state[name]) for name, value in own.items())
    kernels = [value for value in own.values() if value.dim() == 5]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last_3d) for kernel in kernels)


@pytest.mark.parametrize("inner", ["", "checkpoints"])
def test_folder_gives_its_best_checkpoint(tmp_path, inner):
    folder = tmp_path / inner
    folder.mkdir(exist_ok=True)
    save_ours(folder / "last.ckpt", make_plan())
    save_ours(folder / "epoch=2-dice=0.9000.ckpt", make_plan())
    assert read_configuration(tmp_path).folds[0].name == "epoch=2-dice=0.9000"


def test_folds_come_in_the_order_of_their_numbers(folds):
    assert [each.name for each in read_configuration(folds).folds] == ["fold_0", "fold_1", "fold_2"]
    (folds / "fold_1").rename(folds / "fold_10")
    assert [each.fold for each in read_configuration(folds, [10, 0]).folds] == [0, 10]
    (folds / "fold_10").rename(folds / "fold_1")
    assert [each.fold for each in read_configuration(folds).select([1]).folds] == [1]


def test_missing_folds_are_named(folds):
    for ask in (lambda: read_configuration(folds, [0, 3]), lambda: read_configuration(folds).select([0, 3])):
        with pytest.raises(UserError, match=r"(?s)fold_3.*It has fold_0, fold_1, fold_2"):
            ask()


def test_folds_of_a_single_network_are_refused(tmp_path):
    save_ours(tmp_path / "last.ckpt", make_plan())
    with pytest.raises(UserError, match="single network"):
        read_configuration(tmp_path, [0])
    with pytest.raises(UserError, match="single network"):
        read_configuration(tmp_path).select([0])


@pytest.mark.parametrize(
    ("plan", "reason"),
    [(make_plan(labels=BRATS), "label schemes"), (make_plan(make_stage((16, 8, 8))), "patch size")],
    ids=["labels", "patch"],
)
def test_folds_of_different_trainings_are_refused_with_both_names(folds, plan, reason):
    save_ours(folds / "fold_1/checkpoints/last.ckpt", plan)
    with pytest.raises(UserError, match=reason) as caught:
        read_configuration(folds)
    assert "fold_1" in str(caught.value)


@pytest.mark.slow
def test_reference_checkpoint_is_refused_with_the_way_out(tmp_path):
    save_reference(tmp_path / "last.ckpt", make_plan())
    with pytest.raises(UserError, match="--ckpt_path"):
        read_configuration(tmp_path / "last.ckpt")


def test_empty_folder_and_missing_path_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"--model .* holds no checkpoint"):
        read_configuration(tmp_path)
    with pytest.raises(UserError, match=r"--model .* does not exist"):
        read_configuration(tmp_path / "nothing")


def test_a_fold_that_is_missing_is_named_unless_folds_are_chosen(folds):
    (folds / "fold_1").rename(folds / "elsewhere")
    (folds / "fold_0/options.json").write_text('{"num_folds": 3}')
    with pytest.raises(UserError, match=r"(?s)lacks folds.*fold_1\n.*--folds 0 2"):
        read_configuration(folds)
    assert [each.fold for each in read_configuration(folds, [0, 2]).folds] == [0, 2]
    assert [each.fold for each in read_configuration(folds, allow_unfinished=True).folds] == [0, 2]


def test_a_gap_among_folds_of_which_nothing_is_recorded_is_named(folds, capsys):
    (folds / "fold_1").rename(folds / "elsewhere")
    assert [each.fold for each in read_configuration(folds).folds] == [0, 2]
    assert "has no fold_1; the others predict" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["options.json", "done.json"])
def test_how_many_folds_there_are_is_what_the_cross_validation_says(folds, name):
    (folds / "fold_1" / name).write_text('{"num_folds": 5}')
    with pytest.raises(UserError, match=r"(?s)fold_3\n.*fold_4\n"):
        read_configuration(folds)


def test_a_fold_without_a_checkpoint_is_missing(folds):
    (folds / "fold_2/checkpoints/last.ckpt").unlink()
    with pytest.raises(UserError, match=r"(?s)fold_2\n.*--folds 0 1"):
        read_configuration(folds)


def interrupt(folder, fold: int) -> None:
    write_training_state(folder, TrainingState(fold=fold, epochs=3, max_epochs=10, finished=False))


def test_an_interrupted_training_is_refused_with_fold_and_epoch(folds):
    interrupt(folds / "fold_1/checkpoints", 1)
    for path in (folds, folds / "fold_1", folds / "fold_1/checkpoints", folds / "fold_1/checkpoints/last.ckpt"):
        with pytest.raises(UserError, match=r"(?s)fold 1 was interrupted after epoch 3 of 10.*--allow_unfinished"):
            read_configuration(path)
        assert read_configuration(path, allow_unfinished=True).folds
    assert [each.fold for each in read_configuration(folds, [0, 2]).folds] == [0, 2]
    interrupt(folds / "fold_2/checkpoints", 2)
    with pytest.raises(UserError, match=r"(?s)fold 1 was interrupted.*fold 2 was interrupted"):
        read_configuration(folds)


def test_the_checkpoint_that_was_scored_is_the_one_that_predicts(folds):
    for fold in range(3):
        save_ours(folds / f"fold_{fold}/checkpoints/epoch=1-dice=0.9000.ckpt", make_plan(), seed=50 + fold)

    def taken(path, **kind) -> list[bool]:
        """Of each fold, whether it is the last checkpoint."""
        bundle = read_configuration(path, **kind)
        name = "output_block.conv.conv.weight"
        last = [torch.load(folds / f"fold_{fold}/checkpoints/last.ckpt", weights_only=True) for fold in range(3)]
        return [
            torch.equal(each.state_dict[name], state["state_dict"][f"network.{name}"])
            for each, state in zip(bundle.folds, last)
        ]

    assert taken(folds) == [False] * 3
    assert taken(folds, checkpoint="last") == [True] * 3
    (folds / "fold_0/done.json").write_text('{"checkpoint": "last"}')
    (folds / "fold_1/done.json").write_text('{"checkpoint": "best"}')
    assert taken(folds) == [True, False, False] and taken(folds / "fold_0") == [True]
    assert taken(folds, checkpoint="best") == [False] * 3
    (folds / "fold_0/checkpoints/last.ckpt").unlink()
    with pytest.raises(UserError, match=r"holds no last\.ckpt"):
        read_configuration(folds)


@pytest.mark.parametrize(("axes", "said"), [(None, None), ((0, 2), None), ((), "so --tta has no effect")])
def test_flips_along_no_axis_make_tta_pointless(tmp_path, axes, said):
    save_ours(tmp_path / "last.ckpt", dataclasses.replace(make_plan(), mirror_axes=axes))
    remark = flips_warning(read_configuration(tmp_path / "last.ckpt"))
    assert remark is None if said is None else said in remark


def test_folds_that_were_flipped_along_other_axes_make_no_ensemble(folds):
    save_ours(folds / "fold_1/checkpoints/last.ckpt", dataclasses.replace(make_plan(), mirror_axes=(0, 1)))
    with pytest.raises(UserError, match=r"fold_1.*fold_0.*other --mirror_axes"):
        read_configuration(folds)

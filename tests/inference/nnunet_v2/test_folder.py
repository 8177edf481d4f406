from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path

import pytest
import torch

from inference.archive import load_model, read_archive, write_archive
from inference.nnunet_v2 import sources
from inference.nnunet_v2.folder import is_nnunet_v2, nnunet_model
from inference.start import read_start
from tests.inference.nnunet_v2.made_up_models import MODELS, make_weight, model_folder, write_model
from utils.errors import UserError

SMALL = dataclasses.replace(MODELS["isotropic"], folds=2)


def change_checkpoint(folder: Path, fold: int = 0, **more) -> None:
    path = folder / f"fold_{fold}" / "checkpoint_final.pth"
    torch.save(torch.load(path, weights_only=False) | more, path)


def zipped(folder: Path, path: Path) -> Path:
    """As nnUNetv2_export_model_to_zip packs it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.parent.rglob("*")):
            if file.is_file():
                archive.write(file, Path("Dataset990_MadeUp") / file.relative_to(folder.parent))
    return path


def test_all_folds_are_taken_by_our_names(tmp_path: Path):
    models = nnunet_model(write_model(tmp_path / "m", SMALL))
    [bundle] = models.configurations
    assert [(fold.name, fold.fold) for fold in bundle.folds] == [("fold_0", 0), ("fold_1", 1)]
    expected = make_weight("encoder.stages.1.0.convs.0.conv.weight", (6, 4, 3, 3, 3), 1)
    assert torch.equal(bundle.folds[1].state_dict["downsamples.0.conv1.conv.weight"], expected)
    assert bundle.plan.mirror_axes == (0, 2)


def test_a_folder_above_and_a_zip_are_the_same_model(tmp_path: Path):
    folder = write_model(tmp_path / "m", SMALL)
    first = load_model(folder)
    for path in (tmp_path / "m", zipped(folder, tmp_path / "m.zip")):
        assert is_nnunet_v2(path)
        other = load_model(path)
        assert other.plan == first.plan
        for a, b in zip(first.configurations[0].folds, other.configurations[0].folds):
            assert all(torch.equal(value, b.state_dict[name]) for name, value in a.state_dict.items())


def test_a_checkpoint_in_a_zip_that_is_made_to_fill_memory_is_not_read(tmp_path: Path, monkeypatch):
    """Zeros shrink by a thousand, weights do not."""
    monkeypatch.setattr(sources, "MAX_TEXT_BYTES", 10_000)
    folder = write_model(tmp_path / "m", SMALL)
    (folder / "fold_0/checkpoint_final.pth").write_bytes(bytes(1 << 20))
    with pytest.raises(UserError, match=r"checkpoint_final\.pth claims 1048576 bytes.*nothing was read"):
        load_model(zipped(folder, tmp_path / "m.zip"))


def test_conversion_into_our_zip_keeps_plan_and_weights(tmp_path: Path):
    models = load_model(write_model(tmp_path / "m", SMALL))
    write_archive(tmp_path / "ours.zip", models)
    back = read_archive(tmp_path / "ours.zip")
    assert back.plan == models.plan and not is_nnunet_v2(tmp_path / "ours.zip")
    state = models.configurations[0].folds[1].state_dict
    assert all(torch.equal(state[name], value) for name, value in back.configurations[0].folds[1].state_dict.items())


def test_folds_that_are_asked_for(tmp_path: Path):
    folder = write_model(tmp_path / "m", SMALL)
    assert [fold.fold for fold in nnunet_model(folder, [1]).configurations[0].folds] == [1]
    with pytest.raises(UserError, match="has no fold_4; it has fold_0, fold_1"):
        nnunet_model(folder, [1, 4])


def test_fold_all_predicts_where_there_is_no_other(tmp_path: Path):
    folder = write_model(tmp_path / "m", dataclasses.replace(SMALL, folds=1))
    (folder / "fold_0").rename(folder / "fold_all")
    [fold] = nnunet_model(folder).configurations[0].folds
    assert (fold.name, fold.fold) == ("fold_all", None)


@pytest.mark.parametrize("name", ["fold_1", "fold_1/checkpoint_final.pth"])
def test_a_folder_of_a_fold_is_that_fold_alone(name: str, tmp_path: Path, capsys):
    path = write_model(tmp_path / "m", SMALL) / name
    [bundle] = load_model(path).configurations
    assert [fold.name for fold in bundle.folds] == ["fold_1"] and not capsys.readouterr().err
    expected = make_weight("encoder.stages.1.0.convs.0.conv.weight", (6, 4, 3, 3, 3), 1)
    start, _ = read_start(path)
    assert torch.equal(start.state_dict["downsamples.0.conv1.conv.weight"], expected)
    with pytest.raises(UserError, match="has no fold_0; it has fold_1"):
        load_model(path, (0,))


def test_the_fold_of_a_second_stage_finds_all_of_its_first(tmp_path: Path):
    first = dataclasses.replace(MODELS["cascade"].first_stage, folds=2)
    model = dataclasses.replace(MODELS["cascade"], first_stage=first)
    [bundle] = load_model(write_model(tmp_path / "m", model) / "fold_0").configurations
    assert bundle.previous is not None and len(bundle.previous.folds) == 2


def test_a_checkpoint_by_itself_is_no_model(tmp_path: Path):
    fold = write_model(tmp_path / "m", SMALL) / "fold_0"
    (fold / "checkpoint_final.pth").rename(fold / "checkpoint_best.pth")
    with pytest.raises(UserError, match=r"checkpoint_best\.pth is a checkpoint .* by itself.*give the fold, .*fold_0"):
        load_model(fold / "checkpoint_best.pth")
    (fold / "checkpoint_best.pth").rename(tmp_path / "checkpoint_final.pth")
    with pytest.raises(UserError, match=r"put it back into a fold of its model folder"):
        load_model(tmp_path / "checkpoint_final.pth")


def test_a_gap_among_folds_is_said(tmp_path: Path, capsys):
    folder = write_model(tmp_path / "m", SMALL)
    (folder / "fold_1").rename(folder / "fold_2")
    nnunet_model(folder)
    assert "has no fold_1; the others predict" in capsys.readouterr().err


def test_a_training_that_did_not_end_must_be_allowed(tmp_path: Path):
    folder = write_model(tmp_path / "m", SMALL)
    (folder / "fold_1" / "checkpoint_final.pth").rename(folder / "fold_1" / "checkpoint_best.pth")
    with pytest.raises(UserError, match=r"fold_1 holds checkpoint_best\.pth and no checkpoint_final\.pth"):
        nnunet_model(folder)
    assert len(nnunet_model(folder, allow_unfinished=True).configurations[0].folds) == 2


def test_a_cascade_takes_its_first_stage_from_beside(tmp_path: Path):
    folder = write_model(tmp_path / "m", MODELS["cascade"])
    [bundle] = nnunet_model(folder).configurations
    assert bundle.plan.previous_stage == "3d_lowres" and bundle.previous is not None
    assert bundle.plan.in_channels == 3 and bundle.previous.plan.stage.spacing_mm == (2.1, 2.0, 1.9)
    # The folder above holds both, and means the second stage.
    assert nnunet_model(tmp_path / "m").configurations[0].previous is not None


def test_a_cascade_without_its_first_stage_is_refused(tmp_path: Path):
    folder = write_model(tmp_path / "m", MODELS["cascade"])
    model_folder(tmp_path / "m", MODELS["cascade"], "3d_lowres").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="first stage, 3d_lowres"):
        nnunet_model(folder)


def test_several_models_are_named(tmp_path: Path):
    for name in ("isotropic", "2d"):
        write_model(tmp_path / "m", MODELS[name])
    with pytest.raises(UserError, match=r"several models: nnUNetTrainer__nnUNetPlans__2d, nnUNetTrainer__.*3d_fullres"):
        nnunet_model(tmp_path / "m")


def test_weights_of_another_network_are_named(tmp_path: Path):
    folder = write_model(tmp_path / "m", SMALL)
    plans = json.loads((folder / "plans.json").read_text())
    settings = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    settings["n_conv_per_stage"] = [3, 2, 2]
    (folder / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(UserError, match=r"do not fit its plans:\n.*encoder.stages.0.0.convs.2.conv.weight is missing"):
        nnunet_model(folder)


def test_weights_that_are_left_over_are_named(tmp_path: Path):
    folder = write_model(tmp_path / "m", SMALL)
    content = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=False)
    change_checkpoint(folder, network_weights=content["network_weights"] | {"attention.weight": torch.zeros(1)})
    with pytest.raises(UserError, match=r"attention\.weight has no place"):
        nnunet_model(folder)


def test_other_names_of_the_same_weights_are_left_out(tmp_path: Path):
    folder = write_model(tmp_path / "m", SMALL)
    weights = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=False)["network_weights"]
    more = {f"decoder.{name}": value for name, value in weights.items() if name.startswith("encoder.")}
    more["encoder.stages.0.0.convs.0.all_modules.0.weight"] = torch.zeros(1)
    # Copies: the tensors lie in the file that is replaced.
    before = {name: value.clone() for name, value in nnunet_model(folder).configurations[0].folds[0].state_dict.items()}
    change_checkpoint(folder, network_weights=weights | more)
    after = nnunet_model(folder).configurations[0].folds[0].state_dict
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_trainers_with_networks_of_their_own_are_named(tmp_path: Path):
    folder = write_model(tmp_path / "m", SMALL)
    change_checkpoint(folder, trainer_name="nnUNet_Primus_M_Trainer")
    with pytest.raises(UserError, match="nnUNet_Primus_M_Trainer trained a network of its own"):
        nnunet_model(folder)


def test_folds_that_were_trained_differently_make_no_ensemble(tmp_path: Path):
    folder = write_model(tmp_path / "m", SMALL)
    change_checkpoint(folder, fold=1, inference_allowed_mirroring_axes=None)
    with pytest.raises(UserError, match="fold_0 and fold_1 were trained differently"):
        nnunet_model(folder)


def test_batch_normalisation_takes_the_bias_off_the_mean(tmp_path: Path):
    folder = write_model(tmp_path / "m", dataclasses.replace(SMALL, folds=1))
    weights = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=False)["network_weights"]
    for name, value in list(weights.items()):
        if name.endswith("norm.weight"):
            block = name.removesuffix("weight")
            weights |= {
                f"{block}running_mean": torch.full_like(value, 3),
                f"{block}running_var": torch.ones_like(value),
            }
            weights[f"{block}num_batches_tracked"] = torch.tensor(1)
    change_checkpoint(folder, network_weights=weights, trainer_name="nnUNetTrainerBN")
    [bundle] = nnunet_model(folder).configurations
    assert bundle.model.norm == "batch"
    bias = weights["encoder.stages.0.0.convs.0.conv.bias"]
    assert torch.equal(bundle.folds[0].state_dict["input_block.norm1.running_mean"], 3 - bias)


def test_a_folder_of_ours_is_none_of_nnunets(tmp_path: Path):
    (tmp_path / "fold_0").mkdir()
    assert not is_nnunet_v2(tmp_path)

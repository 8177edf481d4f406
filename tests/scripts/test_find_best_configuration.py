"""Configurations whose best mixture one can see: rows of four voxels, one of them wrong here or there."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cross_validation.records import FoldRecord, RunRequest
from data_preprocessing.shards import shard_stamps
from inference.decision import Decision, DecisionMember
from inference.saved import mean_classes, mean_planes, read_probabilities
from scripts import find_best_configuration
from tests.tiny_task import make_task
from utils.errors import EXIT_OK, EXIT_USAGE, UserError, run_cli
from utils.files import read_json, write_json
from utils.schema import FORMAT_VERSION, Fold, LabelScheme, Plan, Splits
from utils.training_state import TrainingState, write_training_state

SHAPE_XYZ = (10, 14, 12)
ORGAN = np.zeros(SHAPE_XYZ, bool)
ORGAN[3:6, 3:7, 2:5] = True
FAR = np.zeros(SHAPE_XYZ, bool)
FAR[9, 13, 11] = True


@pytest.fixture
def root(tmp_path) -> Path:
    """Three preprocessed cases with one organ."""
    assert make_task(tmp_path).run() == 0
    return tmp_path


def predict(root: Path, configuration: str, organ: np.ndarray, *, sure: float = 0.9, cases: int = 3) -> Path:
    """Out-of-fold predictions of a configuration that sees the organ there, with that probability."""
    folder = root / f"models/77_{configuration}/out_of_fold"
    folder.mkdir(parents=True)
    (folder / "plan.json").write_bytes((root / "results/77_3d/plan.json").read_bytes())
    inside = np.where(organ, sure, 1 - sure).astype(np.float32)
    for index in range(cases):
        nib.save(nib.Nifti1Image(organ.astype(np.uint8), np.eye(4)), folder / f"scan{index}.nii.gz")
        np.save(folder / f"scan{index}.npy", np.stack([1 - inside, inside]).swapaxes(-1, -3))
    return folder


def run(root: Path, *flags: str) -> int:
    argv = ["--task", "77", "--data", str(root / "results"), "--results", str(root / "models"), "--n_jobs", "1", *flags]
    return run_cli(lambda: find_best_configuration.main(argv))


def decision(root: Path) -> Decision:
    return read_json(Decision, root / "models/77_best/decision.json")


def without_planes(*planes: int) -> np.ndarray:
    organ = ORGAN.copy()
    organ[list(planes)] = False
    return organ


def test_the_configuration_with_the_higher_dice_is_chosen(root, capsys):
    predict(root, "2d", without_planes(3), sure=0.6)
    predict(root, "3d_fullres", ORGAN)
    assert run(root) == EXIT_OK
    chosen = decision(root)
    assert chosen.members == (DecisionMember(configuration="3d_fullres", folder="../77_3d_fullres"),)
    # 24 of 36 voxels: 2 * 24 / (24 + 36). Of the mean, the surer one decides.
    assert chosen.scores == {"2d": 0.8, "3d_fullres": 1.0, "2d + 3d_fullres": 1.0}
    assert chosen.post_processing.does_nothing
    assert chosen.command in (printed := capsys.readouterr().out) and "* 3d_fullres" in printed
    assert "out-of-fold predictions of 3 cases" in printed and "by 2d, 3d_fullres and 1 ensemble of two" in printed


@pytest.mark.slow
def test_an_ensemble_is_chosen_where_each_lacks_another_part(root):
    both_unsure = np.where(without_planes(3), 0.9, 0.4)
    predict(root, "2d", without_planes(3))
    predict(root, "3d_fullres", without_planes(5))
    # Where one is sure and the other less so, the mean is above one half.
    for name, planes in (("2d", 3), ("3d_fullres", 5)):
        organ = np.where(without_planes(planes), 0.9, np.where(ORGAN, 0.4, 0.0)).astype(np.float32)
        for index in range(3):
            np.save(
                root / f"models/77_{name}/out_of_fold/scan{index}.npy", np.stack([1 - organ, organ]).swapaxes(-1, -3)
            )
    assert both_unsure.min() == 0.4
    assert run(root) == EXIT_OK
    assert [member.configuration for member in decision(root).members] == ["2d", "3d_fullres"]
    assert decision(root).scores["2d + 3d_fullres"] == 1.0
    assert run(root, "--no-ensembles") == EXIT_OK
    assert len(decision(root).members) == 1


def test_without_a_second_configuration_no_ensembles_warns(root, capsys):
    predict(root, "2d", ORGAN)
    assert run(root, "--no-ensembles") == EXIT_OK
    assert "--no-ensembles has no effect" in capsys.readouterr().err


def test_a_far_voxel_is_removed_and_the_scores_say_so(root):
    predict(root, "2d", ORGAN | FAR)
    assert run(root) == EXIT_OK
    assert decision(root).post_processing.foreground
    scores = json.loads((root / "models/77_best/scores.json").read_text())
    assert scores["dice"]["2d"]["mean"] == pytest.approx(72 / 73)
    assert scores["dice_after_post_processing"] == {"mean": 1.0, "organ": 1.0}
    record = json.loads((root / "models/77_best/run.json").read_text())
    assert record["outcome"] == {"best": "2d", "mean_dice": 1.0, "cases": 3} and record["environment"]["versions"]


def test_nothing_is_removed_where_it_would_hurt(root):
    # The middle plane is missed, so the organ lies in two pieces.
    predict(root, "2d", without_planes(4))
    assert run(root) == EXIT_OK
    assert decision(root).post_processing.does_nothing


def test_a_cascade_names_its_first_stage(root):
    predict(root, "3d_cascade_fullres", ORGAN)
    assert run(root) == EXIT_OK
    [member] = decision(root).members
    assert (member.folder, member.previous) == ("../77_3d_cascade_fullres", "../77_3d_lowres")


def test_missing_cases_of_all_configurations_are_listed(root, capsys):
    predict(root, "2d", ORGAN, cases=2)
    predict(root, "3d_fullres", ORGAN, cases=1)
    assert run(root) == EXIT_USAGE
    printed = capsys.readouterr().err
    assert "2d: 1 of 3 cases" in printed and "3d_fullres: 2 of 3 cases" in printed
    assert not (root / "models/77_best").exists()


def test_cases_that_no_fold_validates_on_are_not_asked_for(root):
    predict(root, "2d", ORGAN, cases=2)
    fold = Fold(train=("scan2",), val=("scan0", "scan1"))
    write_json(Splits(version=FORMAT_VERSION, folds=(fold,)), root / "results/77_3d/splits.json")
    assert run(root) == EXIT_OK
    assert json.loads((root / "models/77_best/scores.json").read_text())["cases"] == 2


def test_a_case_of_the_folds_without_a_shard_is_an_error(root, capsys):
    predict(root, "2d", ORGAN)
    (root / "results/77_3d/scan1.json").unlink()
    assert run(root) == EXIT_USAGE
    assert "scan1" in capsys.readouterr().err


def test_without_predictions_the_command_is_named(root, capsys):
    assert run(root) == EXIT_USAGE
    message = capsys.readouterr().err
    assert "cross_validate.py --task 77" in message
    # The user's own folders.
    assert f"--data {root / 'results'} --results {root / 'models'}" in message
    predict(root, "2d", ORGAN)
    assert run(root, "--configurations", "3d_fullres") == EXIT_USAGE
    assert "of 3d_fullres" in capsys.readouterr().err


def test_labels_may_have_moved(root, capsys):
    predict(root, "2d", ORGAN)
    (root / "data").rename(root / "elsewhere")
    assert run(root) == EXIT_USAGE
    assert "--labels" in capsys.readouterr().err
    assert run(root, "--labels", str(root / "elsewhere/Task77_Tiny/labelsTr")) == EXIT_OK


def test_different_label_schemes_are_refused(root, capsys):
    predict(root, "2d", ORGAN)
    folder = predict(root, "3d_fullres", ORGAN)
    plan = read_json(Plan, folder / "plan.json")
    write_json(
        dataclasses.replace(plan, labels=LabelScheme(names=("background", "b"), values=(0, 1))), folder / "plan.json"
    )
    assert run(root) == EXIT_USAGE
    assert "3d_fullres and 2d have different label schemes" in capsys.readouterr().err


def test_planes_of_saved_members_are_the_mean_and_other_grids_are_refused(root, monkeypatch):
    monkeypatch.setattr("inference.saved.SLAB_VALUES", 2 * 14 * 10 * 5)
    first = predict(root, "2d", ORGAN, sure=0.8)
    second = predict(root, "3d_fullres", without_planes(3), sure=0.9)
    members = [read_probabilities(folder, "scan0") for folder in (first, second)]
    slabs = list(mean_planes(members))
    assert [slab.shape[1] for slab in slabs] == [5, 5, 2]
    expected = (np.load(first / "scan0.npy") + np.load(second / "scan0.npy")) / 2
    assert np.allclose(np.concatenate(slabs, axis=1), expected)
    assert np.array_equal(mean_classes(members), expected.argmax(0))
    nib.save(nib.Nifti1Image(ORGAN.astype(np.uint8), np.diag([2.0, 1, 1, 1])), second / "scan0.nii.gz")
    with pytest.raises(UserError, match="affines differ"):
        list(mean_planes([members[0], read_probabilities(second, "scan0")]))


class TestFolds:
    """Whether a cross-validation is finished, and what its scores rest on."""

    @pytest.fixture
    def models(self, root) -> Path:
        """Two finished folds, beside predictions of all cases."""
        predict(root, "2d", ORGAN)
        for fold in (0, 1):
            write_fold(root / f"models/77_2d/fold_{fold}", fold)
        return root / "models/77_2d"

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["last", "best", None])
    def test_the_decision_records_the_checkpoint_that_was_scored(self, root, models, kind):
        for fold in (0, 1):
            write_fold(models / f"fold_{fold}", fold, checkpoint=kind)
        assert run(root) == EXIT_OK
        [member] = decision(root).members
        assert member.checkpoint == (kind or "best") and "--allow_unfinished" not in decision(root).command

    @pytest.mark.slow
    def test_the_decision_records_flips_and_overlap_that_were_scored(self, root, models):
        for fold in (0, 1):
            write_fold(models / f"fold_{fold}", fold, options={"tta": True, "overlap": 0.25})
        assert run(root) == EXIT_OK
        assert (decision(root).tta, decision(root).overlap) == (True, 0.25)
        write_fold(models / "fold_1", 1, options={"tta": False, "overlap": 0.25})
        assert run(root) == EXIT_OK
        assert (decision(root).tta, decision(root).overlap) == (None, 0.25)

    def test_an_interrupted_training_is_refused_with_fold_and_epoch(self, root, models, capsys):
        state = TrainingState(fold=1, epochs=3, max_epochs=10, finished=False)
        write_training_state(models / "fold_1/checkpoints", state)
        assert run(root) == EXIT_USAGE
        message = capsys.readouterr().err
        assert "fold 1 was interrupted after epoch 3 of 10" in message and not (root / "models/77_best").exists()
        assert run(root, "--allow_unfinished") == EXIT_OK
        assert decision(root).command.endswith("--allow_unfinished")

    def test_missing_and_unscored_folds_are_named(self, root, models, capsys):
        shutil.rmtree(models / "fold_0")
        (models / "fold_1/done.json").unlink()
        assert run(root) == EXIT_USAGE
        message = capsys.readouterr().err
        assert "2d: fold 0 is missing" in message and "2d: fold 1 is trained, but its cases are not" in message

    def test_folds_of_different_checkpoints_are_named(self, root, models, capsys):
        write_fold(models / "fold_1", 1, checkpoint="best")
        assert run(root) == EXIT_USAGE
        assert "different checkpoints (fold 0 last, fold 1 best)" in capsys.readouterr().err

    def test_preprocessed_data_that_changed_since_the_folds_were_trained_are_named(self, root, models, capsys):
        stamps = shard_stamps(root / "results/77_3d", ("scan0", "scan1", "scan2"))
        (root / "results/77_2d").symlink_to(root / "results/77_3d")
        write_fold(models / "fold_1", 1, data=stamps)
        assert run(root) == EXIT_OK
        write_fold(models / "fold_1", 1, data=stamps | {"scan1": "older"})
        assert run(root) == EXIT_USAGE
        assert "2d: the preprocessed data of 1 case (scan1) have changed since" in capsys.readouterr().err


def write_fold(
    folder: Path, fold: int, checkpoint: str | None = "last", data: dict | None = None, options: dict | None = None
) -> None:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "checkpoints/last.ckpt").write_text("weights")
    request = RunRequest(
        version=1,
        configuration="2d",
        fold=fold,
        num_folds=2,
        cases=Fold(train=(), val=()),
        plan="",
        options=options or {},
        data=data,
    )
    write_json(request, folder / "options.json")
    record = FoldRecord(
        version=1, request=request.digest, configuration="2d", fold=fold, num_folds=2, targets=("organ",), epochs=3,
        train_s=1.0, seconds=1.0, cases=(), checkpoint=checkpoint,
    )  # fmt: skip
    write_json(record, folder / "done.json")


@pytest.mark.slow
def test_labels_that_changed_since_the_shards_were_made_are_named(root, capsys):
    predict(root, "3d_fullres", ORGAN)
    path = root / "data/Task77_Tiny/labelsTr/scan1.nii.gz"
    path.touch()
    assert run(root) == EXIT_OK
    nib.save(nib.Nifti1Image(without_planes(3).astype(np.uint8), np.eye(4)), path)
    assert run(root) == EXIT_USAGE
    assert f"scan1: {path} has changed since" in capsys.readouterr().err
    assert run(root, "--labels", str(path.parent)) == EXIT_OK

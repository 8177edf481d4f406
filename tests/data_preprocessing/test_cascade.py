"""preprocess.py --cascade on a task of tiny scans."""

from __future__ import annotations

import dataclasses
import os

import nibabel as nib
import numpy as np
import pytest

import main
from data_preprocessing import cascade
from data_preprocessing.planning.plan_file import read_plan
from data_preprocessing.shards import read_meta
from tests.tiny_task import Task, files_of, make_task
from utils.errors import EXIT_USAGE, UserError
from utils.files import write_json
from utils.nifti import read_label
from utils.workers import Workers


@pytest.fixture
def task(tmp_path) -> Task:
    """Preprocessed, with masks of a first stage that are the labels, moved by one voxel along x."""
    task = make_task(tmp_path)
    assert task.run() == 0
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in sorted((task.folder / "labelsTr").iterdir()):
        image = nib.load(path)
        moved = np.roll(np.asarray(image.dataobj), 1, axis=0)
        nib.save(nib.Nifti1Image(moved, image.affine), masks / path.name)
    return task


def run(task: Task, *flags: str) -> int:
    return task.run("--cascade", str(task.data.parent / "masks"), *flags)


def folder(task: Task):
    return task.results / "77_3d_cascade_fullres"


def test_masks_come_onto_the_grid_of_the_shards(task):
    assert run(task) == 0
    label, previous = (np.load(folder(task) / f"scan0_{part}.npy") for part in ("y", "p"))
    assert previous.dtype == np.uint8 and previous.shape == label.shape
    # x is the last axis.
    assert np.array_equal(previous, np.roll(label, 1, axis=-1))


def test_the_plan_says_so_and_the_other_files_are_those_of_full_resolution(task):
    run(task)
    plan, fullres = read_plan(folder(task)), read_plan(task.results / "77_3d")
    assert plan.previous_stage == "3d_lowres" and plan.in_channels == fullres.in_channels + 1
    assert plan.stage == fullres.stage
    for name in ("scan1_x.npy", "scan1_y.npy", "scan1_fg.npy", "scan1.json", "splits.json"):
        assert (folder(task) / name).samefile(task.results / "77_3d" / name)


def test_copies_serve_where_files_cannot_be_linked(task, monkeypatch):
    def refuse(*_) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert run(task) == 0
    assert not (folder(task) / "scan1_x.npy").samefile(task.results / "77_3d/scan1_x.npy")
    assert (folder(task) / "scan1_x.npy").read_bytes() == (task.results / "77_3d/scan1_x.npy").read_bytes()


@pytest.mark.slow
def test_a_second_run_rewrites_only_what_has_changed(task, capsys):
    run(task)
    before = files_of(folder(task))
    assert run(task) == 0
    assert "0 written, 3 kept" in capsys.readouterr().out
    mask = task.data.parent / "masks/scan1.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((10, 14, 12), np.uint8), np.eye(4)), mask)
    assert run(task) == 0
    assert "1 written, 2 kept" in capsys.readouterr().out
    assert not np.load(folder(task) / "scan1_p.npy").any()
    assert {name for name, content in files_of(folder(task)).items() if content != before[name]} == {
        "scan1_p.npy", "scan1_p.stamp.json"
    }  # fmt: skip
    assert run(task, "--overwrite") == 0
    assert "3 written" in capsys.readouterr().out


def test_a_killed_run_has_no_plan_and_goes_on(task, monkeypatch):
    def fail(*_, **__) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(cascade, "previous_classes", fail)
        cascade.prepare_second_stage(*arguments(task))
    assert not (folder(task) / "plan.json").exists()
    assert run(task) == 0 and (folder(task) / "plan.json").exists()


def arguments(task: Task) -> tuple:
    folder(task).mkdir()
    return task.results / "77_3d", task.data.parent / "masks", folder(task), Workers(1)


def test_all_missing_and_misplaced_masks_are_named_and_nothing_is_written(task, capsys):
    masks = task.data.parent / "masks"
    (masks / "scan0.nii.gz").unlink()
    nib.save(nib.Nifti1Image(np.zeros((10, 14, 11), np.uint8), np.eye(4)), masks / "scan1.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((10, 14, 12), np.uint8), np.diag([2.0, 1, 1, 1])), masks / "scan2.nii.gz")
    assert run(task) == EXIT_USAGE
    printed = capsys.readouterr().err
    for words in ("scan0.nii.gz is missing", "scan1.nii.gz has shape (10, 14, 11)", "scan2.nii.gz lies 9 mm off"):
        assert words in printed
    assert not (folder(task) / "plan.json").exists()


def test_values_that_are_no_label_fail_their_case(task, capsys):
    nib.save(nib.Nifti1Image(np.full((10, 14, 12), 9, np.uint8), np.eye(4)), task.data.parent / "masks/scan1.nii.gz")
    assert run(task) == 1
    assert "[9]" in capsys.readouterr().err and not (folder(task) / "plan.json").exists()


def test_the_ignored_value_is_no_class_of_a_mask(task):
    plan, meta = read_plan(task.results / "77_3d"), read_meta(task.results / "77_3d", "scan0")
    ignoring = dataclasses.replace(plan, labels=dataclasses.replace(plan.labels, ignore_value=9))
    label = read_label(task.folder / "labelsTr/scan0.nii.gz")
    cascade.previous_classes(label, meta, ignoring)
    ignored = dataclasses.replace(label, array=np.where(label.array == 1, 9, label.array))
    with pytest.raises(UserError, match=r"\[9\]"):
        cascade.previous_classes(ignored, meta, ignoring)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--dim", "2"), ("--lowres",), ("--exec_mode", "test")])
def test_other_modes_are_refused(task, flags, capsys):
    assert run(task, *flags) == EXIT_USAGE
    assert "--cascade is for --dim 3" in capsys.readouterr().err


def test_without_full_resolution_shards_the_command_is_named(tmp_path, capsys):
    task = make_task(tmp_path)
    assert run(task) == EXIT_USAGE
    assert "python preprocess.py --task 77 --dim 3" in capsys.readouterr().err


def test_options_without_effect_are_named(task, capsys):
    assert run(task, "--nfolds", "3") == 0
    assert "--nfolds has no effect with --cascade" in capsys.readouterr().err


@pytest.mark.slow
def test_the_second_stage_is_trained_evaluated_and_predicted(task, tmp_path, capsys):
    run(task)
    write_json({"version": 1, "folds": [{"train": ["scan0", "scan1"], "val": ["scan2"]}]}, folder(task) / "splits.json")
    common = ["--data", str(folder(task)), "--results", str(tmp_path / "run"), "--gpus", "0", "--filters", "4", "4"]
    train = ["--max_epochs", "1", "--batch_size", "2", "--augment", "nnunet"]
    assert main.main(["--exec_mode", "train", *common, *train]) == 0
    checkpoint = ["--ckpt_path", str(tmp_path / "run/checkpoints")]
    assert main.main(["--exec_mode", "predict", "--save_preds", *common, *checkpoint]) == 0
    [mask] = (tmp_path / "run").glob("preds*/scan2.nii.gz")
    assert nib.load(mask).shape == (10, 14, 12)
    # A network of the first stage does not fit the second.
    plain = [*common[2:], "--data", str(task.results / "77_3d"), *checkpoint]
    with pytest.raises(Exception, match="previous stage"):
        main.main(["--exec_mode", "evaluate", *plain])

"""preprocess.py from the command line to the files, on a task of tiny scans."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import main
from data_preprocessing.readiness import preprocess_command
from tests.tiny_task import SHAPE_XYZ, Task, files_of, make_task, write_scan
from utils.config import RunConfig
from utils.errors import EXIT_INTERRUPTED, EXIT_USAGE, run_cli
from utils.files import read_json, write_json
from utils.runs import find_shards
from utils.schema import CaseMeta, Fold, Plan, Splits

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture
def task(tmp_path) -> Task:
    return make_task(tmp_path)


def times_of(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("scan*")}


@pytest.mark.parametrize("dim", [2, 3])
def test_training_writes_shards_plan_folds_and_record(task, dim):
    assert task.run("--dim", str(dim), "--nfolds", "3") == 0
    folder = task.results / f"77_{dim}d"
    shards = {f"scan{i}{end}" for i in range(3) for end in ("_x.npy", "_y.npy", "_fg.npy", ".json")}
    records = {"plan.json", "plan.auto.json", "fingerprint.json", "inspection.json", "splits.json", "run.json"}
    assert {path.name for path in folder.iterdir()} == shards | records
    plan = read_json(Plan, folder / "plan.json")
    assert plan.stage.patch_size == ((12, 14, 10) if dim == 3 else (14, 10))
    image, label = np.load(folder / "scan0_x.npy"), np.load(folder / "scan0_y.npy")
    assert (image.shape, image.dtype) == ((1, 12, 14, 10), np.float32)
    assert (label.shape, label.dtype, int(label.sum())) == ((1, 12, 14, 10), np.uint8, 3 * 4 * 3)
    assert len(read_json(Splits, folder / "splits.json").folds) == 3
    outcome = json.loads((folder / "run.json").read_text())["outcome"]
    assert {case["status"] for case in outcome["cases"].values()} == {"written"}


def test_input_folder_is_not_touched(task):
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(task.data.rglob("*"))}
    for mode in ("training", "val", "test"):
        assert task.run("--exec_mode", mode) == 0
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(task.data.rglob("*"))} == before


def test_second_run_rewrites_nothing(task, capsys):
    task.run()
    before = times_of(task.results / "77_3d")
    capsys.readouterr()
    assert task.run() == 0
    assert times_of(task.results / "77_3d") == before
    assert "0 written, 3 kept" in (printed := capsys.readouterr().out)
    assert "inspect" not in printed


def test_overwrite_makes_everything_anew(task, capsys):
    task.run()
    assert task.run("--overwrite") == 0
    assert "3 written, 0 kept" in capsys.readouterr().out


def test_changed_source_is_made_anew_and_the_others_are_kept(task):
    task.run()
    folder = task.results / "77_3d"
    before = times_of(folder)
    write_scan(task.folder / "imagesTr/scan1.nii.gz", np.full(SHAPE_XYZ, 3, np.float32) + np.eye(10, 14)[..., None])
    assert task.run() == 0
    changed = {name for name, time_ns in times_of(folder).items() if before[name] != time_ns}
    assert changed == {"scan1_x.npy", "scan1_y.npy", "scan1_fg.npy", "scan1.json"}


def test_changed_plan_makes_all_shards_anew(task, capsys):
    task.run()
    capsys.readouterr()
    assert task.run("--ohe") == 0
    assert "3 written, 0 kept" in capsys.readouterr().out
    assert np.load(task.results / "77_3d" / "scan0_x.npy").shape[0] == 2


def test_added_case_is_planned_and_split_with_the_others(task):
    task.run()
    write_scan(task.folder / "imagesTr/new.nii.gz", np.ones(SHAPE_XYZ, np.float32))
    write_scan(task.folder / "labelsTr/new.nii.gz", np.ones(SHAPE_XYZ, np.uint8))
    added = {"image": "imagesTr/new.nii.gz", "label": "labelsTr/new.nii.gz"}
    task.describe(training=[*task.description()["training"], added])
    assert task.run() == 0
    folder = task.results / "77_3d"
    assert "new" in json.loads((folder / "fingerprint.json").read_text())["cases"]
    assert any("new" in fold.val for fold in read_json(Splits, folder / "splits.json").folds)
    assert (folder / "splits.old.json").is_file()


def test_folds_edited_by_hand_stay(task):
    task.run()
    path = task.results / "77_3d" / "splits.json"
    splits = read_json(Splits, path)
    edited = dataclasses.replace(splits, folds=(Fold(train=("scan0",), val=("scan1",)), *splits.folds[1:]))
    write_json(edited, path)
    assert task.run() == 0
    assert read_json(Splits, path) == edited


def edit_plan(folder: Path, **stage) -> None:
    content = json.loads((folder / "plan.json").read_text())
    content["stage"] |= stage
    (folder / "plan.json").write_text(json.dumps(content))


def test_plan_edited_by_hand_is_kept_and_its_shards_are_made(task, capsys):
    task.run()
    folder = task.results / "77_3d"
    edit_plan(folder, patch_size=[16, 16, 16])
    capsys.readouterr()
    assert task.run() == 0
    printed = capsys.readouterr().out
    assert "plan.json was edited by hand (patch_size) and is kept" in printed and "3 written, 0 kept" in printed
    assert np.load(folder / "scan0_x.npy").shape == (1, 16, 16, 16)
    assert task.run("--exec_mode", "test") == 0
    assert np.load(folder / "test" / "unseen_x.npy").shape == (1, 16, 16, 16)


def test_killed_run_by_an_edited_plan_keeps_the_edit_and_leaves_no_usable_mixture(task, monkeypatch):
    from data_preprocessing import runner

    task.run()
    folder = task.results / "77_3d"
    edit_plan(folder, patch_size=[16, 16, 16])
    monkeypatch.setattr(runner, "write_cases", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert task.run() == EXIT_INTERRUPTED
    assert not (folder / "plan.json").exists()
    monkeypatch.undo()
    assert task.run() == 0
    assert read_json(Plan, folder / "plan.json").stage.patch_size == (16, 16, 16)


def test_malformed_plan_is_refused(task, capsys):
    task.run()
    edit_plan(task.results / "77_3d", patch_size=[13, 14, 10])
    assert task.run() == EXIT_USAGE
    assert "not divisible" in capsys.readouterr().err


@pytest.mark.slow
def test_plan_that_was_edited_after_its_shards_is_refused_by_main(task, capsys):
    task.run()
    edit_plan(task.results / "77_3d", spacing_mm=[2.0, 2.0, 2.0])
    argv = ["--task", "77", "--data", str(task.results), "--results", str(task.results / "x"), "--gpus", "0"]
    assert run_cli(lambda: main.main(argv)) == EXIT_USAGE
    printed = capsys.readouterr().err
    assert "asks for other shards than those beside it" in printed and "an earlier version" in printed


@pytest.mark.slow
def test_less_memory_makes_a_smaller_patch(tmp_path):
    task = make_task(tmp_path, shape=(64, 64, 64))
    assert task.run("--gpu_memory_gb", "0.2") == 0
    assert read_json(Plan, task.results / "77_3d" / "plan.json").stage.patch_size < (64, 64, 64)


@pytest.mark.slow
def test_low_resolution_stage_has_its_own_folder_that_main_finds(tmp_path):
    task = make_task(tmp_path, shape=(64, 64, 64))
    flags = ("--lowres", "--gpu_memory_gb", "0.05")
    assert task.run(*flags) == 0
    folder = task.results / "77_3d_lowres"
    plan = read_json(Plan, folder / "plan.json")
    assert plan.stage.name == "3d_lowres" and min(plan.stage.spacing_mm) > 1
    assert max(np.load(folder / "scan0_x.npy").shape) < 64
    assert task.run("--lowres", "--exec_mode", "test") == 0
    assert find_shards(RunConfig(data=folder)).root == folder
    assert find_shards(RunConfig(data=folder / "test")).is_test


def test_planner_of_residual_encoders_makes_a_plan_that_main_can_train(tmp_path):
    task = make_task(tmp_path, shape=(32, 32, 32))
    assert task.run("--planner", "resenc_m", "--zscore", "nnunet") == 0
    plan = read_json(Plan, task.results / "77_3d" / "plan.json")
    assert (plan.planner, plan.stage.encoder_convs, plan.stage.block) == ("resenc_m", (1, 3, 4, 6), "residual")
    assert plan.channels[0].scheme in ("zscore_crop", "zscore_mask")
    command = preprocess_command(task.results / "77_3d", plan)
    assert command.endswith(f"--planner resenc_m --results {task.results} --data {task.folder}")


@pytest.mark.slow
def test_a_fingerprint_of_an_earlier_version_is_made_anew_where_zscores_need_it(task):
    assert task.run() == 0
    path = task.results / "77_3d" / "fingerprint.json"
    old = json.loads(path.read_text())
    del old["median_relative_size"]
    path.write_text(json.dumps(old))
    assert task.run() == 0 and "median_relative_size" not in json.loads(path.read_text())
    assert task.run("--zscore", "nnunet") == 0 and "median_relative_size" in json.loads(path.read_text())


def test_low_resolution_stage_that_is_not_needed_is_refused(task, capsys):
    assert task.run("--lowres") == EXIT_USAGE
    assert "needs no low-resolution stage" in capsys.readouterr().err
    assert not task.results.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--gpu_memory_gb", "0"), "--gpu_memory_gb must be positive"),
        (("--lowres", "--dim", "2"), "--lowres is for --dim 3"),
        (("--plan", "preset"), "--plan preset: "),
    ],
)
def test_flags_that_make_no_sense_are_refused(task, capsys, flags, message):
    assert task.run(*flags) == EXIT_USAGE
    assert message in capsys.readouterr().err


def test_planning_flags_warn_where_they_do_nothing(task, capsys):
    task.run()
    capsys.readouterr()
    flags = ("--gpu_memory_gb", "4", "--plan", "auto", "--planner", "resenc_l", "--zscore", "nnunet")
    assert task.run("--exec_mode", "test", *flags) == 0
    printed = capsys.readouterr().err
    assert "--gpu_memory_gb has no effect with --exec_mode test" in printed and "--plan has no effect" in printed
    assert "--planner has no effect" in printed and "--zscore has no effect" in printed


def test_fewer_cases_than_folds_make_as_many_folds_with_a_warning(task, capsys):
    assert task.run() == 0
    assert "--nfolds 3" in capsys.readouterr().err
    assert len(read_json(Splits, task.results / "77_3d" / "splits.json").folds) == 3


def folds_of(task: Task) -> list[tuple[str, ...]]:
    return [fold.val for fold in read_json(Splits, task.results / "77_3d" / "splits.json").folds]


@pytest.mark.slow
def test_folds_of_a_file_are_used_and_stay(task, capsys):
    path = task.results.parent / "folds.json"
    path.write_text(json.dumps([{"train": ["scan0"], "val": ["scan2", "scan1"]}]))
    assert task.run("--splits", str(path)) == 0
    assert folds_of(task) == [("scan2", "scan1")]
    before = times_of(task.results / "77_3d")
    assert task.run("--splits", str(path)) == 0
    assert not (task.results / "77_3d" / "splits.old.json").exists()
    assert times_of(task.results / "77_3d") == before


def test_folds_asked_for_replace_stored_ones_which_are_kept(task):
    assert task.run("--nfolds", "3") == 0
    plain = folds_of(task)
    path = task.results.parent / "folds.json"
    turned = [{"train": [*({"scan0", "scan1", "scan2"} - {*val})], "val": [*val]} for val in plain[::-1]]
    path.write_text(json.dumps(turned))
    assert task.run("--splits", str(path)) == 0
    assert folds_of(task) == plain[::-1]
    old = read_json(Splits, task.results / "77_3d" / "splits.old.json")
    assert [fold.val for fold in old.folds] == plain
    # Not asked for again, they stay.
    assert task.run("--nfolds", "3") == 0
    assert folds_of(task) == plain[::-1]


def test_scans_of_one_patient_are_in_one_fold(tmp_path):
    task = make_task(tmp_path, num_cases=12)
    # scan1, scan10 and scan11 share their first digit.
    assert task.run("--nfolds", "4", "--group_by", "scan(.)") == 0
    assert {"scan1", "scan10", "scan11"} in [{*val} for val in folds_of(task)]
    assert sorted(map(len, folds_of(task))) == [3, 3, 3, 3]


def test_more_folds_than_patients_make_as_many_with_a_warning(task, capsys):
    assert task.run("--group_by", "(.)$") == 0
    assert "3 patients make 3 folds at most" in capsys.readouterr().err


def test_wrong_folds_stop_the_run_before_anything_is_written(task, capsys):
    path = task.results.parent / "folds.json"
    path.write_text(json.dumps([{"train": ["scan0"], "val": ["scan7"]}]))
    assert task.run("--splits", str(path)) == EXIT_USAGE
    assert task.run("--group_by", "patient(.)") == EXIT_USAGE
    assert task.run("--group_by", "(.)", "--splits", str(path)) == EXIT_USAGE
    message = capsys.readouterr().err
    assert all(words in message for words in ("scan7 in val is no training case", "finds no patient", "give one"))
    assert not task.results.exists()


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "cases"), [("val", {"scan0", "scan1", "scan2"}), ("test", {"unseen"})])
def test_inference_modes_write_into_their_folder_and_leave_the_training_shards(task, mode, cases):
    task.run()
    before = files_of(task.results / "77_3d")
    assert task.run("--exec_mode", mode) == 0
    assert files_of(task.results / "77_3d") == before
    folder = task.results / "77_3d" / mode
    assert {path.name.removesuffix("_x.npy") for path in folder.glob("*_x.npy")} == cases
    assert len(list(folder.glob("*_y.npy"))) == (3 if mode == "val" else 0)
    assert (folder / "run.json").is_file()


def test_test_mode_before_training_mode_names_the_command(task, capsys):
    assert task.run("--exec_mode", "test") == EXIT_USAGE
    assert "python preprocess.py --task 77 --dim 3" in capsys.readouterr().err
    assert not task.results.exists()


def test_test_mode_with_a_plan_of_other_channels_is_refused(task, capsys):
    task.run()
    task.describe(modality={"0": "CT"})
    assert task.run("--exec_mode", "test") == EXIT_USAGE
    assert "channels ('CT',)" in capsys.readouterr().err


def test_small_volume_is_padded_to_the_patch(task):
    write_scan(task.folder / "imagesTr/scan1.nii.gz", np.ones((4, 5, 3), np.float32))
    write_scan(task.folder / "labelsTr/scan1.nii.gz", np.ones((4, 5, 3), np.uint8))
    assert task.run() == 0
    assert read_json(CaseMeta, task.results / "77_3d" / "scan1.json").padded_shape == (12, 14, 10)


def spawn(task: Task, results: Path, n_jobs: int) -> subprocess.Popen:
    command = [sys.executable, "preprocess.py", "--task", "77", "--n_jobs", str(n_jobs)]
    return subprocess.Popen(
        [*command, "--data", str(task.data), "--results", str(results)],
        cwd=PROJECT, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_killed_and_resumed_run_equals_an_uninterrupted_one(tmp_path):
    task = make_task(tmp_path, num_cases=32, shape=(32, 32, 32))
    folder = task.results / "77_3d"
    process = spawn(task, task.results, n_jobs=2)
    while process.poll() is None and not list(folder.glob("scan*.json")):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert len(list(folder.glob("scan*.json"))) < 32
    assert not (folder / "plan.json").exists()
    assert spawn(task, task.results, n_jobs=1).wait() == 0
    assert spawn(task, tmp_path / "whole", n_jobs=1).wait() == 0
    assert files_of(folder) == files_of(tmp_path / "whole" / "77_3d")


@pytest.mark.slow
def test_help_comes_within_a_second_and_neither_torch_nor_monai_is_imported():
    code = (
        "import sys, preprocess, data_preprocessing.runner\n"
        "import data_preprocessing.planning.resume, data_preprocessing.planning.planner\n"
        "print(sorted({'torch', 'monai', 'nvidia', 'pytorch_lightning'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True).stdout == "[]\n"
    best_s = min(_seconds_of_help() for _ in range(3))
    assert best_s < 1


def _seconds_of_help() -> float:
    """Of the CPU: how long it takes depends on what else runs."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "preprocess.py", "--help"], cwd=PROJECT, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

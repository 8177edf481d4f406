"""scripts/cross_validate.py: order, resuming, refusals, what is gathered; main.py is replaced by fake_main.py."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest

from cross_validation import fold_run, report, run
from inference.saved import read_probabilities
from tests.models.builders import make_plan
from tests.models.checkpoints import save_ours

CASES = {"scan0", "scan1", "scan2", "scan3"}
FILES = {f"{case}{suffix}" for case in CASES for suffix in (".nii.gz", ".npy")} | {"plan.json"}


@pytest.mark.slow
def test_every_case_is_predicted_by_the_fold_that_has_not_seen_it(study, capsys):
    assert study.run("--configurations", "2d", "3d_fullres", "--", "--epochs", "7") == 0
    assert study.whats() == [
        f"{mode} {shards} {fold}" for shards in ("77_2d", "77_3d") for fold in (0, 1) for mode in ("train", "predict")
    ]
    assert all(call["flags"]["epochs"] == "7" and call["flags"]["gpus"] == "0" for call in study.calls())
    assert study.out_of_fold("2d") == study.out_of_fold("3d_fullres") == FILES
    folder = study.results / "77_3d_fullres/out_of_fold"
    validated = json.loads((study.data / "77_3d/splits.json").read_text())["folds"]
    for fold in (0, 1):
        for case in validated[fold]["val"]:
            # The fake's fold 0 predicts the labels, its fold 1 nothing at all.
            assert bool(read_probabilities(folder, case).values[1].any()) == (fold == 0)
    record = study.summary()["3d_fullres"]
    assert (record["cases"], record["mean_dice"], record["dice"]) == (4, 0.5, {"organ": 0.5})
    assert [(fold["fold"], fold["mean_dice"], fold["epochs"]) for fold in record["folds"]] == [(0, 1, 3), (1, 0, 3)]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert len(lines) == 4 and lines[0].startswith("[1/4] 2d fold 0: finished, Dice 1.0000, 3 epochs")
    assert (study.results / "77_2d/fold_0/output.log").read_text().count("$ ") == 2


@pytest.mark.slow
def test_gathered_files_are_links_that_cost_nothing(study):
    assert study.run("--folds", "1") == 0
    folder = study.results / "77_3d_fullres"
    made = folder / "fold_1/prediction/preds_task_77_dim_3_fold_1"
    assert len(list(made.glob("*.npy"))) == 2
    assert all(os.path.samefile(path, folder / "out_of_fold" / path.name) for path in made.iterdir())
    assert study.summary()["3d_fullres"]["missing_folds"] == [0]


@pytest.mark.slow
def test_finished_folds_are_skipped_and_missing_files_made_again(study, capsys):
    assert study.run() == 0
    number = len(study.calls())
    page = study.results / "77_report.html"
    page.write_text("of these folds")
    assert study.run("--no_report") == 0
    assert len(study.calls()) == number
    assert capsys.readouterr().out.count("already finished") == 2 and page.is_file()
    folder = study.results / "77_3d_fullres"
    (folder / "out_of_fold/scan0.npy").unlink()
    (folder / "fold_1/done.json").write_text('{"version": 1')
    assert study.run("--no_report") == 0
    # Its page is outdated where a fold was not finished.
    assert not page.is_file()
    # Nothing had to be trained or predicted anew.
    assert len(study.calls()) == number and study.out_of_fold("3d_fullres") == FILES
    for path in folder.glob("*/prediction/preds*/scan0.npy"):
        path.unlink()
    (folder / "out_of_fold/scan0.npy").unlink()
    assert study.run() == 0
    assert len(study.calls()) == number + 1 and study.whats()[-1].startswith("predict")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "again"),
    [
        ("train 77_3d 0 begin", "train 77_3d 0"),
        ("train 77_3d 0 checkpoint", "train 77_3d 0 resumed"),
        ("train 77_3d 0 end", None),
        ("predict 77_3d 0 half", "predict 77_3d 0"),
        ("predict 77_3d 0 end", None),
    ],
)
def test_killed_anywhere_the_same_command_continues(study, moment, again):
    killed = study.start("--configurations", "3d_fullres", FAKE_KILL=moment)
    assert killed.returncode == -9
    before = study.whats()
    assert study.run() == 0
    left = ["train 77_3d 0", "predict 77_3d 0", "train 77_3d 1", "predict 77_3d 1"][len(before) :]
    assert study.whats() == [*before, *([again] if again else []), *left]
    assert study.out_of_fold("3d_fullres") == FILES and study.summary()["3d_fullres"]["mean_dice"] == 0.5


@pytest.mark.slow
def test_an_orphan_of_a_killed_command_is_waited_for(study, capsys, monkeypatch):
    pipe = study.root / "pipe"
    os.mkfifo(pipe)
    killed = study.start(FAKE_KILL="train 77_3d 0 checkpoint", FAKE_FIFO=str(pipe))
    assert killed.returncode == -9
    folder = study.results / "77_3d_fullres"
    with (folder / ".fold_0.lock").open("a") as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        real, released = report.describe, []

        def describe(outcome):
            # Fold 1 has been run in the meantime.
            if not released:
                released.append(outcome.job.name)
                pipe.write_text("go on")
            return real(outcome)

        monkeypatch.setattr(report, "describe", describe)
        assert study.run() == 0
    assert released == ["3d_fullres fold 1"]
    assert capsys.readouterr().out.count("3d_fullres fold 0: another process works on it") == 1
    assert study.whats().count("train 77_3d 0") == 1 and study.out_of_fold("3d_fullres") == FILES


@pytest.mark.slow
def test_sigterm_ends_the_commands_also_where_ctrl_c_is_ignored(study):
    pipe = study.root / "pipe"
    os.mkfifo(pipe)
    ended = study.start(FAKE_KILL="train 77_3d 0 begin", FAKE_SIGNAL="15", FAKE_FIFO=str(pipe))
    assert ended.returncode == 143 and "the same command continues" in ended.stderr
    assert study.whats() == ["train 77_3d 0"]
    assert study.run() == 0


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["train 77_3d 0 begin", "predict 77_3d 0 half"])
def test_killed_while_it_overwrites_nothing_of_the_old_networks_is_left_to_pass_for_new_ones(study, moment):
    assert study.run() == 0
    folder = study.results / "77_3d_fullres"
    (folder / "fold_1/checkpoints/last.ckpt").write_text("old")
    assert study.start("--overwrite", FAKE_KILL=moment).returncode == -9
    # Fold 1 had not begun.
    assert not (folder / "fold_1").exists() and not list(folder.glob(".fold*removed*"))
    assert {path.name for path in (folder / "out_of_fold").iterdir()} == {"plan.json"}
    number = len(study.calls())
    assert study.run() == 0
    again = ["train 77_3d 0"] if moment.startswith("train") else []
    assert study.whats()[number:] == [*again, "predict 77_3d 0", "train 77_3d 1", "predict 77_3d 1"]


@pytest.mark.slow
def test_removal_that_is_killed_half_way_is_finished_by_the_next_command(study, monkeypatch):
    assert study.run() == 0
    folder = study.results / "77_3d_fullres"

    def die(*_, **__) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(fold_run.shutil, "rmtree", die)
        assert study.run("--overwrite") == 130
    assert not (folder / "fold_0").exists() and list(folder.glob(".fold_0.removed*"))
    assert study.run() == 0
    assert study.whats()[4:] == study.whats()[:4] and not list(folder.glob(".fold_0.removed*"))


class TestChangedCommands:
    def refused(self, study, capsys, *words: str, says: tuple[str, ...]) -> None:
        number = len(study.calls()) if study.calls_file.exists() else 0
        capsys.readouterr()
        assert study.run(*words) == 2
        message = capsys.readouterr().err
        assert all(word in message for word in says), message
        assert number == (len(study.calls()) if study.calls_file.exists() else 0)

    @pytest.mark.slow
    def test_other_options_are_refused_also_beside_finished_folds(self, study, capsys):
        assert study.run("--folds", "0", "--", "--epochs", "7") == 0
        says = ("3d_fullres fold 0: --max_epochs was 7, now it is 8", "--overwrite", "another --results")
        self.refused(study, capsys, "--", "--epochs", "8", says=says)
        self.refused(study, capsys, "--folds", "1", "--", "--epochs", "8", says=says)

    @pytest.mark.slow
    def test_flags_that_change_no_weights_may_change(self, study):
        assert study.run("--folds", "0") == 0
        assert study.run("--folds", "0", "--", "--num_workers", "3") == 0
        assert len(study.calls()) == 2

    @pytest.mark.slow
    def test_overwrite_trains_anew_with_other_options(self, study):
        assert study.run("--", "--epochs", "7") == 0
        assert study.run("--overwrite", "--", "--epochs", "8") == 0
        assert study.whats()[4:] == study.whats()[:4]
        assert study.calls()[-1]["flags"]["epochs"] == "8" and study.out_of_fold("3d_fullres") == FILES

    @pytest.mark.slow
    def test_another_number_of_folds(self, study, capsys):
        assert study.run() == 0
        self.refused(study, capsys, "--nfolds", "4", says=("there were 2 folds, now there are 4",))

    @pytest.mark.slow
    def test_an_edited_plan(self, study, capsys):
        assert study.run("--folds", "0") == 0
        path = study.data / "77_3d/plan.json"
        plan = json.loads(path.read_text())
        plan["stage"]["batch_size"] += 1
        path.write_text(json.dumps(plan))
        self.refused(study, capsys, says=("the plan of the preprocessed data was another one",))

    def test_a_folder_with_something_else(self, study, capsys):
        folder = study.results / "77_3d_fullres/fold_0"
        folder.mkdir(parents=True)
        (folder / "precious.txt").write_text("mine")
        self.refused(study, capsys, "--overwrite", says=("holds something else",))
        assert (folder / "precious.txt").is_file()

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (("--folds", "1", "2"), "--folds must lie in 0..1 for 3d_fullres, got 2"),
            (("--", "--fold", "1"), "--fold cannot stand after --"),
            (("--", "--gpus=2", "--no-save-ckpt"), "--gpus, --no_save_ckpt cannot stand after --"),
            (("--", "--learning_rate", "-1"), "--learning_rate must be positive"),
            (("--slurm", "jobs", "--overwrite"), "contradict each other"),
            (("--prepare",), "--prepare needs --configurations 3d_cascade_fullres"),
            (("--nfolds", "1"), "--nfolds must be at least 2"),
            (("--task", "tumour"), "--task must be a number"),
        ],
    )
    @pytest.mark.slow
    def test_wrong_flags(self, study, capsys, words, says):
        self.refused(study, capsys, *words, says=(says,))
        assert not study.results.exists()

    def test_missing_shards_name_every_command(self, study, capsys):
        for name in ("77_2d", "77_3d_lowres"):
            shutil.rmtree(study.data / name)
        # A plan that has a coarser stage beside it.
        path = study.data / "77_3d/plan.json"
        plan = json.loads(path.read_text())
        path.write_text(json.dumps(plan | {"stage": plan["stage"] | {"batch_dice": True}}))
        says = ("2d:", "preprocess.py --task 77 --dim 2", "preprocess.py --task 77 --dim 3 --lowres --results")
        self.refused(study, capsys, "--configurations", "2d", "3d_cascade_fullres", says=says)


@pytest.mark.slow
def test_a_failed_run_does_not_stop_the_others(study, monkeypatch, capsys):
    monkeypatch.setenv("FAKE_FAIL", "train 77_3d 0")
    assert study.run() == 1
    message = capsys.readouterr()
    failed = next(line for line in message.out.splitlines() if "fold 0: failed" in line)
    assert "training: exit status 2 (out of luck); see" in failed
    assert "1 of 2 runs failed; the same command continues them" in message.err
    monkeypatch.delenv("FAKE_FAIL")
    assert study.run() == 0
    assert study.summary()["3d_fullres"]["missing_folds"] == []


@pytest.mark.slow
def test_runs_on_two_gpus_see_one_each(study, monkeypatch):
    monkeypatch.setattr(run, "find_gpus", lambda wanted: ("GPU-a", "GPU-b"))
    assert study.run("--gpus", "2") == 0
    calls = study.calls()
    assert {call["gpu"] for call in calls} == {"GPU-a", "GPU-b"}
    # A fold stays where it was begun.
    assert len({(call["flags"]["fold"], call["gpu"]) for call in calls}) == 2
    assert all(call["flags"]["gpus"] == "1" and call["flags"]["affinity"] == "disabled" for call in calls)


@pytest.mark.slow
def test_cases_without_a_label_are_named_and_not_scored(study, capsys):
    for meta in (study.data / f"77_3d/{case}.json" for case in CASES):
        content = json.loads(meta.read_text())
        copy = study.root / f"{meta.stem}_label.nii.gz"
        shutil.copy(content["label"], copy)
        meta.write_text(json.dumps(content | {"label": str(copy)}))
    assert study.run() == 0
    (study.root / "scan1_label.nii.gz").unlink()
    for done in (study.results / "77_3d_fullres").glob("fold_*/done.json"):
        done.unlink()
    assert study.run() == 0
    assert "3d_fullres: cases without a label file: scan1" in capsys.readouterr().out
    assert study.summary()["3d_fullres"]["cases"] == 4


@pytest.mark.slow
def test_probabilities_are_read_as_an_ensemble_does(study):
    assert study.run() == 0
    member = read_probabilities(study.results / "77_3d_fullres/out_of_fold", "scan2")
    np.testing.assert_array_equal(member.values.sum(axis=0), 1)
    assert member.labels.names == ("background", "organ")


class TestCheckpoints:
    """Which weights predict the cases that a training has not seen."""

    def taken(self, study) -> list[str]:
        """Name of the checkpoint of each prediction so far."""
        return [Path(call["flags"]["ckpt_path"]).name for call in study.calls() if call["what"].startswith("predict")]

    @pytest.mark.slow
    def test_the_last_one_predicts_and_the_best_where_that_is_asked_for(self, study):
        assert study.run() == 0
        assert self.taken(study) == ["last.ckpt"] * 2
        done = study.results / "77_3d_fullres/fold_0/done.json"
        assert json.loads(done.read_text())["checkpoint"] == "last"
        assert study.run("--checkpoint", "best") == 0
        # Nothing is trained again.
        assert self.taken(study)[2:] == ["epoch=0-dice=0.5000.ckpt"] * 2 and len(study.calls()) == 6
        assert json.loads(done.read_text())["checkpoint"] == "best"
        assert {fold["checkpoint"] for fold in study.summary()["3d_fullres"]["folds"]} == {"best"}
        assert study.run("--checkpoint", "best") == 0 and len(study.calls()) == 6

    @pytest.mark.slow
    def test_predictions_of_an_earlier_version_came_from_the_best(self, study):
        assert study.run("--checkpoint", "best") == 0
        for done in (study.results / "77_3d_fullres").glob("fold_*/done.json"):
            done.write_text(json.dumps({k: v for k, v in json.loads(done.read_text()).items() if k != "checkpoint"}))
        assert study.run("--checkpoint", "best") == 0 and len(study.calls()) == 4
        assert study.run() == 0
        assert (
            study.whats()[4:] == ["predict 77_3d 0", "predict 77_3d 1"] and self.taken(study)[2:] == ["last.ckpt"] * 2
        )

    @pytest.mark.slow
    @pytest.mark.parametrize("moment", ["begin", "half", "end"])
    def test_killed_while_another_checkpoint_predicts_nothing_is_mixed(self, study, moment):
        assert study.run("--folds", "0") == 0
        killed = study.start("--folds", "0", "--checkpoint", "best", FAKE_KILL=f"predict 77_3d 0 {moment}")
        assert killed.returncode == -9
        assert not (study.results / "77_3d_fullres/fold_0/done.json").exists()
        assert study.run("--folds", "0") == 0
        assert self.taken(study)[-1] == "last.ckpt" and self.taken(study)[0] == "last.ckpt"


class TestChangedData:
    def change(self, study, case: str, key: str) -> None:
        path = study.data / f"77_3d/{case}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: "0123456789abcdef"}))

    @pytest.mark.slow
    def test_a_shard_of_another_plan_is_refused(self, study, capsys):
        assert study.run() == 0
        self.change(study, "scan2", "plan_stamp")
        assert study.run() == 2
        message = capsys.readouterr().err
        assert "asks for other shards" in message and "scan2" in message and len(study.calls()) == 4

    @pytest.mark.slow
    def test_a_shard_that_was_made_anew_is_noticed_in_all_folds(self, study, capsys):
        assert study.run() == 0
        self.change(study, "scan2", "source_stamp")
        assert study.run() == 2
        message = capsys.readouterr().err
        assert "3d_fullres fold 0: the preprocessed data of 1 cases have changed since: scan2" in message
        assert "3d_fullres fold 1: the preprocessed data of 1 cases" in message and "--overwrite" in message
        assert len(study.calls()) == 4
        assert study.run("--overwrite") == 0 and len(study.calls()) == 8

    @pytest.mark.slow
    def test_a_run_of_an_earlier_version_does_not_say_and_goes_on(self, study):
        assert study.run("--folds", "0") == 0
        options = study.results / "77_3d_fullres/fold_0/options.json"
        stored = json.loads(options.read_text())
        options.write_text(json.dumps({key: value for key, value in stored.items() if key != "data"}))
        assert study.run() == 0
        # The record fits the request that lies beside it.
        assert study.summary()["3d_fullres"]["missing_folds"] == []

    def test_a_shard_that_is_missing_is_named_before_anything_starts(self, study, capsys):
        (study.data / "77_3d/scan1.json").unlink()
        assert study.run() == 2
        assert "scan1.json" in capsys.readouterr().err and not study.calls_file.exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--configurations", "2d", "--", "--batch_size", "5"), "--batch_size 5 cannot be shared out over --nvol 2"),
        (("--configurations", "2d", "--", "--data2d_dim", "2"), "holds several slices, but --data2d_dim 2 says one"),
        (("--", "--ckpt_path", "nowhere.ckpt"), "nowhere.ckpt does not exist"),
        (("--", "--ckpt_path", "TEXT"), "cannot be read"),
        (("--", "--ckpt_path", "OTHER"), "do not fit the network"),
        (("--", "--precision", "fp16"), "--precision fp16 needs a GPU"),
        (("--", "--processes", "2", "--norm", "batch", "--sync_batchnorm"), "--sync_batchnorm works on GPUs only"),
        (("--", "--norm", "group", "--filters", "5", "7", "9"), "multiples of"),
        (("--", "--deep_supervision", "--deep_supr_num", "9"), "--deep_supr_num 9 is too many"),
        (("--", "--filters", "4"), "--filters"),
        (("--configurations", "2d", "3d_fullres", "--", "--filters", "4"), "3d_fullres has"),
        (("--", "--scheduler", "multistep"), "--scheduler multistep needs --steps"),
        (("--", "--splits", "nowhere.json"), "nowhere.json"),
        (("--", "--config", "nowhere.json"), "nowhere.json"),
        (("--", "--brats"), "--brats"),
    ],
)
@pytest.mark.slow
def test_flags_that_only_a_training_would_refuse_are_refused_before_anything_starts(study, capsys, words, says):
    (study.root / "text.ckpt").write_text("no checkpoint")
    save_ours(study.root / "other.ckpt", make_plan(num_channels=3))
    places = {"TEXT": str(study.root / "text.ckpt"), "OTHER": str(study.root / "other.ckpt")}
    assert study.run(*(places.get(word, word) for word in words)) == 2
    assert says in capsys.readouterr().err
    assert not study.calls_file.exists() and not study.results.exists()


@pytest.mark.slow
def test_without_locks_of_the_file_system_a_file_is_the_lock(study, monkeypatch):
    def refuse(*_) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    lock = study.results / "77_3d_fullres/.fold_0.lock"
    lock.parent.mkdir(parents=True)
    # Of a process that is over: no number is that large.
    lock.write_text(json.dumps({"pid": 2**22 + 1, "host": socket.gethostname()}))
    assert study.run() == 0
    assert not list(lock.parent.glob(".fold_*.lock")) and len(study.calls()) == 4


@pytest.mark.slow
def test_label_that_changed_after_preprocessing_is_not_scored_against(study, capsys):
    meta = json.loads((study.data / "77_3d/scan0.json").read_text())
    label = study.root / "scan0.nii.gz"
    # One of its own, as the shards of all tests are those of the same files.
    shutil.copy(meta["label"], label)
    (study.data / "77_3d/scan0.json").write_text(json.dumps(meta | {"label": str(label)}))
    label.touch()
    assert study.run() == 0
    shutil.rmtree(study.results)
    shutil.copy(study.data / "predictions/empty.nii.gz", label)
    assert study.run() == 1
    assert "predictions cannot be scored against other labels" in capsys.readouterr().err

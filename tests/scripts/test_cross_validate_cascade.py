"""The cascade in scripts/cross_validate.py, and its Slurm jobs: what comes before what; main.py is fake_main.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from cross_validation import run

LOWRES = ["train 77_3d_lowres 0", "predict 77_3d_lowres 0", "train 77_3d_lowres 1", "predict 77_3d_lowres 1"]
SECOND = [what.replace("lowres", "cascade_fullres") for what in LOWRES]
CASCADE = ("--configurations", "3d_cascade_fullres")


@pytest.mark.slow
def test_first_stage_then_data_then_second_stage(study, capsys):
    assert study.run(*CASCADE, "3d_lowres") == 0
    assert study.whats() == [*LOWRES, "cascade", *SECOND]
    flags = study.calls()[4]["flags"]
    assert flags["task"] == "77" and flags["dim"] == "3" and flags["results"] == str(study.data)
    assert flags["cascade"] == str(study.results / "77_3d_lowres/out_of_fold")
    assert set(study.summary()) == {"3d_lowres", "3d_cascade_fullres"}
    lines = [line.split(",")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert lines[2] == "[3/5] 3d_cascade_fullres data: finished"


@pytest.mark.slow
def test_first_stage_is_added_with_all_folds(study, capsys):
    assert study.run(*CASCADE, "--folds", "1") == 0
    assert study.whats() == [*LOWRES, "cascade", *SECOND[2:]]
    assert "needs the out-of-fold masks of all folds of 3d_lowres" in capsys.readouterr().out


@pytest.mark.slow
def test_finished_first_stage_is_used_as_it_is(study):
    assert study.run("--configurations", "3d_lowres", "--", "--epochs", "5") == 0
    assert study.run(*CASCADE, "--", "--epochs", "9") == 0
    assert study.whats() == [*LOWRES, "cascade", *SECOND]
    assert study.run(*CASCADE, "--", "--epochs", "9") == 0
    assert len(study.calls()) == 9


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["predict 77_3d_lowres 1 end", "cascade end"])
def test_killed_between_the_stages_the_same_command_continues(study, moment):
    assert study.start(*CASCADE, FAKE_KILL=moment).returncode == -9
    assert study.run(*CASCADE) == 0
    again = ["cascade"] if moment.startswith("cascade") else []
    assert study.whats() == [*LOWRES, *again, "cascade", *SECOND]


@pytest.mark.slow
def test_new_masks_of_the_first_stage_make_new_data_and_refuse_the_old_second_stage(study, capsys):
    assert study.run(*CASCADE) == 0
    path = next((study.results / "77_3d_lowres").glob("fold_1/prediction/preds*/scan*.nii.gz"))
    done = study.results / "77_3d_lowres/fold_1/done.json"
    before = json.loads(done.read_text())
    label = json.loads((study.data / f"77_3d/{path.name.removesuffix('.nii.gz')}.json").read_text())["label"]
    shutil.copy(label, path)
    done.unlink()
    assert study.run("--configurations", "3d_lowres") == 0
    after = json.loads(done.read_text())
    assert sum(a["mask"] != b["mask"] for a, b in zip(before["cases"], after["cases"])) == 1
    capsys.readouterr()
    assert study.run(*CASCADE) == 1
    assert "the first stage of the cascade predicted other masks" in capsys.readouterr().err
    assert study.run(*CASCADE, "--overwrite") == 0
    assert study.whats() == [*LOWRES, "cascade", *SECOND, "cascade", *SECOND]


@pytest.mark.slow
def test_second_stage_waits_for_the_first_also_on_two_gpus(study, monkeypatch):
    monkeypatch.setattr(run, "find_gpus", lambda wanted: ("0", "1"))
    assert study.run(*CASCADE, "--gpus", "2") == 0
    whats = study.whats()
    assert sorted(whats[:4]) == sorted(LOWRES) and whats[4] == "cascade" and sorted(whats[5:]) == sorted(SECOND)


@pytest.mark.slow
def test_failed_first_stage_ends_the_second_with_the_reason(study, monkeypatch, capsys):
    monkeypatch.setenv("FAKE_FAIL", "predict 77_3d_lowres 0")
    assert study.run(*CASCADE, "2d") == 1
    out = capsys.readouterr().out
    assert "3d_cascade_fullres data: not begun, 0 s, it needs 3d_lowres fold 0, which failed" in out
    assert "3d_cascade_fullres fold 1: not begun, 0 s, it needs 3d_cascade_fullres data, which failed" in out
    assert "train 77_2d 1" in study.whats() and "cascade" not in study.whats()


@pytest.mark.slow
def test_stages_with_different_folds_are_refused(study, capsys):
    path = study.data / "77_3d_lowres/splits.json"
    splits = json.loads(path.read_text())
    path.write_text(json.dumps(splits | {"folds": splits["folds"][::-1]}))
    assert study.run(*CASCADE) == 2
    assert "3d_lowres and 3d_fullres have different folds" in capsys.readouterr().err


def test_where_a_patch_shows_most_of_a_scan_no_cascade_is_needed(study, capsys):
    shutil.rmtree(study.data / "77_3d_lowres")
    assert study.run(*CASCADE) == 2
    assert "this data set needs no cascade" in capsys.readouterr().err and not study.results.exists()
    # A plan that has a coarser stage beside it asks for that.
    path = study.data / "77_3d/plan.json"
    plan = json.loads(path.read_text())
    path.write_text(json.dumps(plan | {"stage": plan["stage"] | {"batch_dice": True}}))
    assert study.run(*CASCADE) == 2
    assert "--dim 3 --lowres" in capsys.readouterr().err


def test_cases_that_no_fold_validates_on_are_named(study, capsys):
    for name in ("77_3d", "77_3d_lowres"):
        path = study.data / name / "splits.json"
        splits = json.loads(path.read_text())
        path.write_text(json.dumps(splits | {"folds": splits["folds"][:1]}))
    left = json.loads(path.read_text())["folds"][0]["train"]
    assert study.run(*CASCADE) == 2
    message = capsys.readouterr().err
    assert "no out-of-fold mask" in message and all(case in message for case in left)


def test_prepare_alone_names_what_is_missing(study, capsys):
    assert study.run(*CASCADE, "--prepare") == 1
    message = capsys.readouterr().err
    assert "out_of_fold/scan0.nii.gz" in message and "Finish all folds of 3d_lowres" in message
    assert not study.calls_file.exists()


class TestSlurm:
    def write(self, study, *words: str) -> list[tuple[str, list[str]]]:
        """(job name, arguments of sbatch) in the order in which submit.sh submits, by a stand-in for sbatch.

        Jobs are counted from 1; those that are only tried out are not.
        """
        assert study.run(*words) == 0
        (study.root / "bin").mkdir(exist_ok=True)
        sbatch = study.root / "bin/sbatch"
        sbatch.write_text(
            f'#!/bin/bash\n[ "$1" = --test-only ] && exit\n'
            f'echo "$@" >> {study.root}/submitted\nwc -l < {study.root}/submitted\n'
        )
        sbatch.chmod(0o755)
        variables = os.environ | {"PATH": f"{sbatch.parent}:{os.environ['PATH']}"}
        subprocess.run([study.root / "jobs/submit.sh", "--partition=gpu"], check=True, env=variables)
        submitted = [line.split() for line in (study.root / "submitted").read_text().splitlines()]
        return [(words[-1].split("/")[-1], words[:-1]) for words in submitted]

    @pytest.mark.slow
    def test_cascade_jobs_wait_for_all_of_the_first_stage(self, study):
        slurm = ("--slurm", str(study.root / "jobs"), "--gpus", "1", "--nfolds", "2")
        jobs = self.write(study, *CASCADE, "2d", *slurm, "--", "--group_by", "(.+)")
        first = ["--parsable", "--partition=gpu"]
        after = [f"--dependency=afterok:{ids}" for ids in ("1:2", "5")]
        waiting = [[*first, each, "--kill-on-invalid-dep=yes"] for each in after]
        assert jobs == [
            ("77_3d_lowres_fold_0.sh", first),
            ("77_3d_lowres_fold_1.sh", first),
            ("77_2d_fold_0.sh", first),
            ("77_2d_fold_1.sh", first),
            ("77_3d_cascade_fullres_data.sh", waiting[0]),
            ("77_3d_cascade_fullres_fold_0.sh", waiting[1]),
            ("77_3d_cascade_fullres_fold_1.sh", waiting[1]),
        ]
        assert not study.results.exists() and not study.calls_file.exists()
        text = (study.root / "jobs/77_3d_cascade_fullres_fold_1.sh").read_text()
        assert "#SBATCH --gres=gpu:1" in text and "#SBATCH --requeue" in text
        assert "--configurations 3d_cascade_fullres --folds 1 --gpus 1 -- --group_by '(.+)' &\n" in text
        assert "--gres" not in (study.root / "jobs/77_3d_cascade_fullres_data.sh").read_text()

    @pytest.mark.slow
    def test_written_jobs_do_the_whole_work_one_after_the_other(self, study):
        assert study.run(*CASCADE, "--slurm", str(study.root / "jobs")) == 0
        for line in (study.root / "jobs/submit.sh").read_text().splitlines():
            if line.startswith("job_"):
                script = Path(line.split()[-1].rstrip(")")).read_text()
                (line,) = (line for line in script.splitlines() if line.endswith(" &"))
                command = line.removesuffix(" &").split()
                # The program that the job names, with the fake in it.
                assert study.run(*command[command.index("--configurations") :]) == 0
        assert study.whats() == [*LOWRES, "cascade", *SECOND]

    @pytest.mark.slow
    def test_finished_runs_have_no_job(self, study):
        assert study.run("--configurations", "3d_lowres") == 0
        jobs = self.write(study, *CASCADE, "3d_lowres", "--slurm", str(study.root / "jobs"))
        assert [name for name, _ in jobs] == [f"77_3d_cascade_fullres_{end}.sh" for end in ("data", "fold_0", "fold_1")]
        assert "--dependency" not in " ".join(jobs[0][1])


@pytest.mark.slow
def test_second_stage_masks_are_gathered_apart(study):
    assert study.run(*CASCADE) == 0
    assert study.out_of_fold("3d_cascade_fullres") == study.out_of_fold("3d_lowres")
    folder = study.results / "77_3d_cascade_fullres/out_of_fold"
    assert json.loads((folder / "plan.json").read_text())["previous_stage"] == "3d_lowres"
    assert np.load(folder / "scan0.npy").dtype == np.float32


@pytest.mark.slow
def test_masks_of_different_checkpoints_make_no_cascade(study, capsys):
    assert study.run("--configurations", "3d_lowres") == 0
    assert study.run("--configurations", "3d_lowres", "--checkpoint", "best", "--folds", "0") == 0
    capsys.readouterr()
    assert study.run(*CASCADE, "--prepare") == 1
    log = capsys.readouterr().err
    assert "were predicted by different checkpoints" in log
    assert "cascade" not in study.whats()
    assert study.run("--configurations", "3d_lowres", "--checkpoint", "best") == 0
    assert study.run(*CASCADE, "--prepare") == 0


@pytest.mark.slow
def test_data_of_a_cascade_made_from_masks_of_different_checkpoints_are_not_current(study, capsys):
    assert study.run(*CASCADE) == 0
    assert study.run("--configurations", "3d_lowres", "--checkpoint", "best", "--folds", "0") == 0
    assert study.run(*CASCADE, "--folds", "0", "--prepare") == 1

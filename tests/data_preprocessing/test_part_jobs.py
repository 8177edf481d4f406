"""Preprocessing in parts: byte for byte what one run makes, in any order, killed, and with a part missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_preprocessing import folders, runner
from tests.tiny_task import Task, files_of, make_task
from utils.parts import Part
from utils.preprocess_options import Options

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def task(tmp_path) -> Task:
    return make_task(tmp_path, num_cases=5)


def beside(task: Task, name: str) -> Task:
    """The same data, prepared into another folder."""
    return Task(task.data, task.results.with_name(name))


@pytest.mark.slow
def test_parts_make_what_one_run_makes(task, capsys):
    parts = beside(task, "parts")
    assert task.run() == 0
    folder = parts.results / "77_3d"
    assert [parts.run("--part", f"{index}/3") for index in (3, 1)] == [0, 0]
    # Not ready, and the message says who is missing.
    assert not (folder / "plan.json").exists() and not (folder / "run.json").exists()
    assert "cases of 1 parts are missing: 2/3" in capsys.readouterr().out
    assert parts.run("--part", "2/3") == 0
    assert files_of(folder) == files_of(task.results / "77_3d")
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == []
    record = json.loads((folder / "run.json").read_text())
    assert {case["status"] for case in record["outcome"]["cases"].values()} == {"written"}
    # One run over everything has nothing to add.
    assert parts.run() == 0 and "5 kept" in capsys.readouterr().out


@pytest.mark.slow
def test_test_scans_are_prepared_in_parts_too(task):
    parts = beside(task, "parts")
    for each in (task, parts):
        assert each.run() == 0
    assert task.run("--exec_mode", "val") == 0
    assert [parts.run("--exec_mode", "val", "--part", f"{index}/2") for index in (2, 1)] == [0, 0]
    assert files_of(parts.results / "77_3d/val") == files_of(task.results / "77_3d/val")


@pytest.mark.slow
def test_cases_are_inspected_once_for_all_parts(task, monkeypatch):
    inspected, inspect = [], runner.inspect_case

    def noted(case, *rest, **named):
        inspected.append(case)
        return inspect(case, *rest, **named)

    monkeypatch.setattr(runner, "inspect_case", noted)
    assert task.run("--inspect") == 0 and len(inspected) == 5
    assert not list((task.results / "77_3d").glob("*_x.npy")) and not (task.results / "77_3d/plan.json").exists()
    assert [task.run("--part", f"{index}/2") for index in (1, 2)] == [0, 0]
    assert len(inspected) == 5


@pytest.mark.slow
def test_parts_side_by_side_and_one_that_was_killed(task, monkeypatch, capsys):
    single, folder = beside(task, "single"), task.results / "77_3d"
    assert single.run() == 0
    write, calls = folders.runner.write_shard, []

    def die(*rest):
        calls.append(rest)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(*rest)

    with monkeypatch.context() as patched:
        patched.setattr(folders.runner, "write_shard", die)
        assert task.run("--part", "1/2") == 130
    words = ["--task", "77", "--data", str(task.data), "--results", str(task.results), "--n_jobs", "1", "--part"]
    parts = [subprocess.Popen([sys.executable, PROJECT / "preprocess.py", *words, f"{index}/2"]) for index in (1, 2)]
    assert [part.wait(200) for part in parts] == [0, 0]
    assert files_of(folder) == files_of(single.results / "77_3d")
    assert not list(folder.rglob(".*")) and (folder / "run.json").is_file()


@pytest.mark.slow
def test_a_part_that_fails_leaves_the_folder_unready(task, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.setattr(runner, "write_shard", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert task.run("--part", "1/2") == 1
    assert task.run("--part", "2/2") == 0
    assert not (task.results / "77_3d/plan.json").exists()
    assert task.run("--part", "1/2") == 0 and (task.results / "77_3d/plan.json").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--part", "1/2", "--overwrite"), "leave out --overwrite"),
        (("--inspect", "--part", "1/2"), "done once for all parts"),
        (("--inspect", "--exec_mode", "test"), "about the training cases"),
        (("--parts", "3"), "belong together"),
        (("--part", "5/3"), "--part takes I/N"),
    ],
)
def test_flags_that_do_not_fit_are_refused(tmp_path, capsys, flags, message):
    assert Task(tmp_path, tmp_path).run(*flags) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_job_scripts_name_what_is_left_to_do(task, tmp_path, capsys):
    jobs = tmp_path / "jobs"
    words = ("--slurm", str(jobs), "--parts", "4", "--cpus", "1")
    assert task.run(*words) == 0
    assert "--array=1-4" in (jobs / "preprocess.sh").read_text() and "--inspect" in (jobs / "inspect.sh").read_text()
    assert "afterok:$job_0" in (jobs / "submit.sh").read_text()
    assert [task.run("--part", f"{index}/4") for index in (1, 3)] == [0, 0]
    assert task.run(*words) == 0
    script = (jobs / "preprocess.sh").read_text()
    assert "--array=2,4" in script and '--part "$SLURM_ARRAY_TASK_ID"/4' in script and "--parts" not in script
    assert "inspect.sh" not in (jobs / "submit.sh").read_text()
    assert [task.run("--part", f"{index}/4") for index in (2, 4)] == [0, 0]
    capsys.readouterr()
    assert task.run(*words) == 0 and "nothing to submit" in capsys.readouterr().out


def test_the_part_of_the_options_is_that_of_the_flag():
    assert Options(task="77").jobs.own_part is None
    assert Part.parse("2/3") == Part(index=2, count=3) and Path(Options(task="77").mark).name == "plan.json"

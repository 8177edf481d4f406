from __future__ import annotations

import os
from pathlib import Path

import pytest

from data_preprocessing.case_files import CaseFiles
from data_preprocessing.runner import THREAD_VARIABLES, Workers, progress, source_files
from utils.errors import UserError

CASES = tuple(CaseFiles(case=f"case{i}", images=(Path(f"{i}.nii"),), label=None) for i in range(11))


def name_of(files: CaseFiles) -> str:
    return files.case


def threads_of(files: CaseFiles) -> tuple[str | None, ...]:
    return tuple(os.environ.get(name) for name in THREAD_VARIABLES)


def die(files: CaseFiles) -> str:
    os._exit(9)


def pid(files: CaseFiles) -> int:
    return os.getpid()


@pytest.mark.slow
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_results_come_in_the_order_of_the_cases(n_jobs):
    with Workers(n_jobs) as workers:
        assert workers.map(name_of, CASES, title="test") == [case.case for case in CASES]


def test_one_job_stays_in_this_process():
    with Workers(1) as workers:
        assert set(workers.map(pid, CASES, title="test")) == {os.getpid()}


@pytest.mark.slow
def test_workers_compute_with_one_thread_and_leave_the_environment_as_it_was():
    before = dict(os.environ)
    with Workers(2) as workers:
        assert set(workers.map(threads_of, CASES, title="test")) == {("1", "1", "1")}
    assert dict(os.environ) == before


@pytest.mark.slow
def test_killed_worker_is_a_user_error():
    with Workers(2) as workers, pytest.raises(UserError, match="fewer --n_jobs"):
        workers.map(die, CASES, title="test")


def test_no_cases_give_no_results():
    with Workers(1) as workers:
        assert workers.map(name_of, (), title="test") == []


def test_progress_prints_a_line_for_each_tenth(capsys):
    with progress("inspect", 200) as advance:
        for _ in range(200):
            advance(1)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"inspect: {n} of 200" for n in range(20, 201, 20)]


def test_sources_are_all_images_and_the_label():
    files = CaseFiles(case="a", images=(Path("a_0.nii"), Path("a_1.nii")), label=Path("l.nii"))
    assert source_files(files) == (Path("a_0.nii"), Path("a_1.nii"), Path("l.nii"))

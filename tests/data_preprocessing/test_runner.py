from __future__ import annotations

from pathlib import Path

from data_preprocessing import runner
from data_preprocessing.dataset.case_files import CaseFiles
from data_preprocessing.runner import source_files
from data_preprocessing.shards import stamp_sources
from tests.tiny_task import make_task


def test_sources_are_all_images_and_the_label():
    files = CaseFiles(case="a", images=(Path("a_0.nii"), Path("a_1.nii")), label=Path("l.nii"))
    assert source_files(files) == (Path("a_0.nii"), Path("a_1.nii"), Path("l.nii"))


def test_a_run_looks_at_the_files_of_a_case_once_before_it_reads_or_keeps_them(tmp_path, monkeypatch):
    task, looked_at = make_task(tmp_path), []
    monkeypatch.setattr(runner, "stamp_sources", lambda paths: looked_at.append(paths[0].name) or stamp_sources(paths))
    for _ in ("written", "kept"):
        assert task.run("--nfolds", "2", "--n_jobs", "1") == 0
        assert looked_at and len(looked_at) == len(set(looked_at))
        looked_at.clear()

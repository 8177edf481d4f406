"""Forecasts of a case's memory from the headers of its files: numbers that can be checked by hand."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from data_preprocessing.case_memory import inspection_bytes, mask_bytes, preprocessing_bytes
from data_preprocessing.dataset.case_files import CaseFiles
from tests.models.builders import make_plan, make_stage, with_spacing
from tests.tiny_task import make_task
from utils import memory_limits

VOXELS = 10 * 12 * 14


@pytest.fixture
def files(tmp_path):
    image, label = tmp_path / "a.nii.gz", tmp_path / "l.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((10, 12, 14, 2), np.int16), np.diag([1, 2, 3, 1.0])), image)
    nib.save(nib.Nifti1Image(np.ones((10, 12, 14), np.uint8), np.diag([1, 2, 3, 1.0])), label)
    return CaseFiles(case="a", images=(image,), label=label)


def test_inspecting_holds_the_scan_the_label_and_positions(files):
    # Reading: twelve bytes for each of two channels; then eight, four of the label and nine of the foreground.
    assert inspection_bytes(files) == max(24, 8 + 4 + 9) * VOXELS


def test_preprocessing_holds_the_scan_and_its_copy_on_the_plans_grid(files):
    plan = with_spacing(make_plan(make_stage((8, 8, 8)), num_channels=2), (1.5, 1, 0.5))
    finer = 28 * 24 * 20
    # Scan and one channel more; two channels and the label of the shard; the label as read and as classes.
    assert preprocessing_bytes(files, plan) == (12 + 4 + 1) * VOXELS + (8 + 1) * finer


def test_one_file_for_each_channel(files):
    several = CaseFiles(case="a", images=(files.label,) * 3, label=None)
    assert inspection_bytes(several) == 36 * VOXELS and mask_bytes(several) == 12 * VOXELS


def test_files_that_cannot_be_read_take_nothing(tmp_path):
    (tmp_path / "x.nii").write_bytes(b"no scan")
    for name in ("x.nii", "missing.nii"):
        files = CaseFiles(case="a", images=(tmp_path / name,), label=None)
        assert inspection_bytes(files) == preprocessing_bytes(files, make_plan()) == mask_bytes(files) == 0


def test_both_passes_of_preprocessing_ask_what_their_cases_take(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory_limits, "free_memory_bytes", lambda: 1)
    assert make_task(tmp_path).run("--nfolds", "2", "--n_jobs", "1") == 0
    said = capsys.readouterr().err
    assert "warning: inspect: " in said and "warning: preprocess: " in said and "0.2 GB, 0.0 GB are free" in said
    assert "scan0, scan1, scan2 may not fit" in said

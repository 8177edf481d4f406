from __future__ import annotations

from pathlib import Path

from data_preprocessing.dataset.case_files import CaseFiles
from data_preprocessing.runner import source_files


def test_sources_are_all_images_and_the_label():
    files = CaseFiles(case="a", images=(Path("a_0.nii"), Path("a_1.nii")), label=Path("l.nii"))
    assert source_files(files) == (Path("a_0.nii"), Path("a_1.nii"), Path("l.nii"))

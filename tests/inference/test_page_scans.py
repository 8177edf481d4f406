"""What reads scans for a page: it names none that are anonymous, and finds series and archives again."""

from __future__ import annotations

import json
import zipfile

import nibabel as nib
import numpy as np
import pytest

from inference.page_scans import scan_readers, scans_again
from inference.scans import Scan
from utils.errors import UserError


def write(path, shape=(4, 5, 6)):
    nib.save(nib.Nifti1Image(np.ones(shape, np.float32), np.eye(4)), path)
    return path


def record(folder, name: str, **more):
    folder.mkdir(exist_ok=True)
    content = {"options": {"input": name, **more}, "working_folder": str(folder.parent)}
    (folder / "run.json").write_text(json.dumps(content))
    return folder


def test_a_scan_that_is_gone_is_not_named_where_nobody_may_know(tmp_path):
    scan = Scan(case="scan_0001", images=(tmp_path / "Doe_Jane.nii.gz",), shown="scan_0001")
    for anonymous, named in ((True, False), (False, True)):
        with pytest.raises(UserError) as error:
            scan_readers([scan], anonymous=anonymous)["scan_0001"]()
        assert ("Doe_Jane" in str(error.value)) is named
    write(scan.images[0])
    assert scan_readers([scan], anonymous=True)["scan_0001"]().array.shape == (1, 6, 5, 4)


def test_plain_files_are_left_to_the_page_and_archives_are_unpacked_for_it(tmp_path):
    write(tmp_path / "a.nii.gz")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.write(tmp_path / "a.nii.gz", "a.nii.gz")
    with scans_again(record(tmp_path / "masks", "in.zip")) as readers:
        assert readers["a"]().array.shape == (1, 6, 5, 4)
    with pytest.raises(UserError):
        readers["a"]()
    with scans_again(record(tmp_path / "masks", "a.nii.gz")) as readers:
        assert not readers


def test_what_is_unpacked_lies_where_nobody_else_looks_and_goes_at_the_end(tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    write(tmp_path / "a.nii.gz")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.write(tmp_path / "a.nii.gz", "a.nii.gz")
    with scans_again(record(tmp_path / "masks", "in.zip")):
        (private,) = scratch.iterdir()
        assert private.stat().st_mode & 0o777 == 0o700 and private.name.startswith("nnunet-page-")
        assert [path.name for path in private.rglob("*.nii.gz")] == ["a.nii.gz"]
    assert not list(private.iterdir())


@pytest.mark.parametrize("name", ["gone.zip", "(hidden by --anonymous)", "broken.zip", "gone"])
def test_a_page_is_written_whatever_became_of_the_scans(tmp_path, name):
    (tmp_path / "broken.zip").write_bytes(b"x")
    with scans_again(record(tmp_path / "masks", name)) as readers:
        assert not readers
    with scans_again(tmp_path / "nothing") as readers:
        assert not readers

"""Averaging: the mean, and a refusal with both names where probabilities do not fit together."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from inference import saved
from inference.saved import SavedProbabilities, mean_planes, read_probabilities
from models.averaging import mean_of
from tests.models.builders import BRATS, TWO_CLASSES, make_plan
from utils.errors import UserError
from utils.files import write_json

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def saved_as(name, value=0.0, labels=TWO_CLASSES, shape=(3, 4, 3, 2), affine=AFFINE):
    return SavedProbabilities(name=name, labels=labels, values=np.full(shape, value, np.float32), affine=affine)


def test_mean_of_three():
    result = mean_of(np.full((3, 2), value, np.float32) for value in (0.0, 0.3, 0.6))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, 0.3, rtol=1e-6)


def test_a_single_one_is_untouched_and_the_first_of_two_is_not_written_to():
    first, second = np.full(3, 0.25), np.full(3, 0.75)
    assert mean_of([first]) is first
    assert mean_of([first, second]).tolist() == [0.5] * 3
    assert first.max() == 0.25


def test_the_mean_of_tensors_is_a_tensor():
    torch.testing.assert_close(mean_of(torch.full((3, 2), v) for v in (0.0, 1.0)), torch.full((3, 2), 0.5))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"shape": (3, 4, 3, 5)}, r"shapes are \(3, 4, 3, 2\) and \(3, 4, 3, 5\)"),
        ({"affine": AFFINE + np.eye(4, k=3)}, "1 mm apart"),
        ({"labels": BRATS}, "label schemes differ"),
    ],
    ids=["shape", "affine", "labels"],
)
def test_probabilities_that_differ_are_refused_with_both_names(changes, reason):
    with pytest.raises(UserError, match=reason) as caught:
        next(mean_planes([saved_as("first"), saved_as("second", **changes)]))
    assert "first and second" in str(caught.value)


def write_saved(folder, shape=(2, 3, 4)):
    folder.mkdir()
    nib.save(nib.Nifti1Image(np.zeros(shape[::-1], np.uint8), AFFINE), folder / "a.nii.gz")
    np.save(folder / "a.npy", np.full((3, *shape), 0.5, np.float32))
    write_json(make_plan(labels=TWO_CLASSES), folder / "plan.json")


def test_saved_probabilities_of_two_folders_are_averaged(tmp_path):
    for name in "xy":
        write_saved(tmp_path / name)
    both = [read_probabilities(tmp_path / name, "a") for name in "xy"]
    np.testing.assert_array_equal(np.concatenate(list(mean_planes(both)), axis=1), np.full((3, 2, 3, 4), 0.5))
    elsewhere = dataclasses.replace(both[1], affine=AFFINE + np.eye(4, k=3))
    with pytest.raises(UserError, match=r"x/a\.npy and .*y/a\.npy"):
        next(mean_planes([both[0], elsewhere]))


def test_saved_probabilities_of_another_shape_than_their_mask_are_refused(tmp_path):
    write_saved(tmp_path / "x")
    np.save(tmp_path / "x/a.npy", np.zeros((3, 2, 3, 5), np.float32))
    with pytest.raises(UserError, match="predict it again"):
        read_probabilities(tmp_path / "x", "a")


def test_damaged_probabilities_are_refused(tmp_path):
    write_saved(tmp_path / "x")
    (tmp_path / "x/a.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match=r"a\.npy cannot be read"):
        read_probabilities(tmp_path / "x", "a")


def resident_bytes(path) -> int:
    """Of a file's pages that this process has mapped, those that count as its memory."""
    found, total = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            found = line.endswith(str(path))
        elif found and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="Linux says how much of a mapped file is in memory")
def test_files_that_have_been_read_take_no_memory(tmp_path, monkeypatch):
    shape = (3, 64, 128, 128)
    for name in ("one", "two"):
        write_saved(tmp_path / name, shape[1:])
        np.save(tmp_path / name / "a.npy", np.full(shape, 0.5, np.float32))
    monkeypatch.setattr(saved, "SLAB_VALUES", 3 * 128 * 128)
    both = [read_probabilities(tmp_path / name, "a") for name in ("one", "two")]
    files = [tmp_path / name / "a.npy" for name in ("one", "two")]
    held = [max(map(resident_bytes, files)) for _ in mean_planes(both)]
    # 12.6 MB each; of one plane the system may map a few megabytes around what is read.
    assert len(held) == 64 and max(held) < files[0].stat().st_size / 2

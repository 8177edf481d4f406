"""Single slices, whichever axis has one voxel: planned in 2D, trained on, and predicted on the grid of the scan."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

import main
from scripts import inference
from tests.tiny_task import Task, make_task, write_scan
from utils.errors import run_cli
from utils.files import read_json
from utils.schema import Plan

FAST = "--dim 2 --depth 2 --filters 4 8 16 --max_epochs 1 --num_workers 1 --gpus 0 --fold 0"


def make_slices(root, shape: tuple[int, int, int]) -> Task:
    """Six cases of one slice each; the stated distance between slices differs, and is thinner than a voxel."""
    task = make_task(root, num_cases=6)
    axis = shape.index(1)
    rng = np.random.default_rng(0)
    for index in range(6):
        image = rng.uniform(1, 9, shape).astype(np.float32)
        spacing = rng.uniform(0.9, 1.1, 3)
        spacing[axis] = (0.1, 5.0, 0.5)[index % 3]
        for kind, array in (("images", image), ("labels", (image > 5).astype(np.uint8))):
            write_scan(task.folder / f"{kind}Tr/scan{index}.nii.gz", array, np.diag([*spacing, 1]))
    write_scan(task.folder / "imagesTs/unseen.nii.gz", image, np.diag([*spacing, 1]))
    return task


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(40, 44, 1), (1, 40, 44), (40, 1, 44)], ids=str)
def test_from_slices_to_masks(tmp_path, shape, capsys):
    task = make_slices(tmp_path, shape)
    assert task.run("--dim", "3") == 2
    assert "use --dim 2" in capsys.readouterr().err
    assert task.run("--dim", "2") == 0
    stage = read_json(Plan, task.results / "77_2d/plan.json").stage
    assert min(stage.patch_size) >= 32 and max(stage.spacing_mm) < 1.2
    for path in (task.results / "77_2d").glob("*_x.npy"):
        assert np.load(path).shape[1] == 1
    words = ["--task", "77", "--data", str(task.results), "--results", str(tmp_path / "run"), *FAST.split()]
    assert run_cli(lambda: main.main(words)) == 0
    words = [
        "--input",
        task.folder / "imagesTs",
        "--output",
        tmp_path / "masks",
        "--model",
        tmp_path / "run/checkpoints",
    ]
    assert run_cli(lambda: inference.main([*map(str, words), "--gpus", "0"])) == 0
    scan, mask = nib.load(task.folder / "imagesTs/unseen.nii.gz"), nib.load(tmp_path / "masks/unseen.nii.gz")
    assert mask.shape == scan.shape == shape
    np.testing.assert_array_equal(mask.affine, scan.affine)


@pytest.mark.slow
def test_a_slice_across_those_of_the_plan_is_refused_by_name(tmp_path, capsys):
    task = make_slices(tmp_path, (40, 44, 1))
    image = np.random.default_rng(1).uniform(1, 9, (1, 40, 44)).astype(np.float32)
    assert task.run("--dim", "2") == 0
    write_scan(task.folder / "imagesTs/unseen.nii.gz", image)
    assert task.run("--dim", "2", "--exec_mode", "test") != 0
    refused = "is a single slice, one voxel along R, and the slices of this plan lie across S"
    assert refused in "".join(capsys.readouterr())
    write_scan(task.folder / "imagesTr/scan5.nii.gz", image)
    write_scan(task.folder / "labelsTr/scan5.nii.gz", (image > 5).astype(np.uint8))
    assert task.run("--dim", "2") != 0
    assert refused in "".join(capsys.readouterr())
    assert not (task.results / "77_2d/plan.json").exists()

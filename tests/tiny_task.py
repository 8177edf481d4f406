"""A task of tiny scans, and preprocess.py run on it; for the tests of preprocess.py."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import nibabel as nib
import numpy as np

import preprocess
from utils.errors import run_cli

SHAPE_XYZ = (10, 14, 12)


@dataclasses.dataclass(frozen=True)
class Task:
    """A task folder below `data`, and where its results go."""

    data: Path
    results: Path

    @property
    def folder(self) -> Path:
        return self.data / "Task77_Tiny"

    def run(self, *flags: str) -> int:
        argv = ["--task", "77", "--data", str(self.data), "--results", str(self.results), "--n_jobs", "1", *flags]
        return run_cli(lambda: preprocess.main(argv))

    def description(self) -> dict:
        return json.loads((self.folder / "dataset.json").read_text())

    def describe(self, **changes) -> None:
        (self.folder / "dataset.json").write_text(json.dumps(self.description() | changes))


def write_scan(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)


def make_task(root: Path, num_cases: int = 3, shape: tuple[int, int, int] = SHAPE_XYZ) -> Task:
    task = Task(root / "data", root / "results")
    rng = np.random.default_rng(0)
    listed = []
    for index in range(num_cases):
        image = rng.uniform(1, 100, shape).astype(np.float32)
        label = np.zeros(shape, np.uint8)
        label[3:6, 3:7, 2:5] = 1
        write_scan(task.folder / f"imagesTr/scan{index}.nii.gz", image)
        write_scan(task.folder / f"labelsTr/scan{index}.nii.gz", label)
        listed.append({"image": f"./imagesTr/scan{index}.nii.gz", "label": f"./labelsTr/scan{index}.nii.gz"})
    write_scan(task.folder / "imagesTs/unseen.nii.gz", image)
    content = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "organ"},
        "training": listed,
        "test": ["./imagesTs/unseen.nii.gz"],
    }
    (task.folder / "dataset.json").write_text(json.dumps(content))
    return task


def make_folds(root: Path) -> Task:
    """A task of six scans, preprocessed for three folds; what trainings are tried on."""
    task = make_task(root, num_cases=6, shape=(14, 18, 16))
    assert task.run("--nfolds", "3") == 0
    return task


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "run.json"}

"""Scans for the peers and for this program: links to a task's files, or made-up ones, in the layout that each wants."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from pathlib import Path

import numpy as np

from benchmarks.peers.nnunet_files import DATASET, dataset_json
from data_preprocessing.dataset.case_files import CaseFiles
from data_preprocessing.dataset.description_file import Dataset, load_dataset, make_splits
from data_preprocessing.dataset.phantom import write_phantom
from data_preprocessing.dataset.synthetic import benchmark_plan
from utils.errors import UserError
from utils.files import to_dict, write_json
from utils.schema import ChannelPlan, Plan

CT_SPACING_MM, CT_TARGET_MM = (3.0, 0.7, 0.7), (2.5, 0.8, 0.8)


def find_task(data: str, folder: Path, *, scans: int) -> Dataset:
    """The task of `data`, or a phantom task in `folder` where it is empty, of one channel."""
    task = Path(data) if data else write_phantom(folder, num_train=max(scans, 5), num_test=0)
    number = re.match(r"(?:Task|Dataset)(\d+)_", task.name)
    if number is None:
        raise UserError(f"--data {task} must be a task folder such as Task04_Hippocampus")
    return load_dataset(task, number[1])


def plan_of(dataset: Dataset) -> Plan:
    """The planned hippocampus network for that data: 1 mm, 40 x 56 x 40 voxels, three poolings."""
    plan = benchmark_plan("04", 3)
    channels = tuple(ChannelPlan(name=name, scheme="zscore") for name in dataset.channels)
    return dataclasses.replace(plan, channels=channels, labels=dataset.labels)


def first_fold(dataset: Dataset) -> tuple[CaseFiles, ...]:
    """The validation cases of fold 0."""
    names = make_splits([case.case for case in dataset.training], 5).folds[0].val
    return tuple(case for case in dataset.training if case.case in names)


def link_task(dataset: Dataset, cases: tuple[CaseFiles, ...], folder: Path) -> None:
    """Those cases as a task of this program in `folder`/data."""
    target = folder / "data" / dataset.folder.name
    content = json.loads((dataset.folder / "dataset.json").read_text(encoding="utf-8"))
    listed = [{"image": f"./imagesTr/{c.case}.nii.gz", "label": f"./labelsTr/{c.case}.nii.gz"} for c in cases]
    for case in cases:
        _link(case.images[0], target / "imagesTr" / f"{case.case}.nii.gz")
        _link(case.label, target / "labelsTr" / f"{case.case}.nii.gz")
    (target / "dataset.json").write_text(json.dumps(content | {"training": listed, "test": []}), encoding="utf-8")


def link_nnunet(plan: Plan, cases: tuple[CaseFiles, ...], folder: Path) -> None:
    """Those cases as a data set of nnU-Net v2 in `folder`/nnUNet_raw."""
    target = folder / "nnUNet_raw" / DATASET
    for case in cases:
        _link(case.images[0], target / "imagesTr" / f"{case.case}_0000.nii.gz")
        _link(case.label, target / "labelsTr" / f"{case.case}.nii.gz")
    write_json(dataset_json(to_dict(plan), len(cases)), target / "dataset.json")


def link_scans(cases: tuple[CaseFiles, ...], folder: Path) -> None:
    """Images in `folder`/scans by nnU-Net's names, labels in `folder`/labels."""
    for case in cases:
        _link(case.images[0], folder / "scans" / f"{case.case}_0000.nii.gz")
        _link(case.label, folder / "labels" / f"{case.case}.nii.gz")


def write_ct(folder: Path, shape: tuple[int, int, int]) -> None:
    """A made-up CT of coarse slices, image.nii.gz and label.nii.gz: a body with two organs, and air around it."""
    import nibabel as nib

    rng = np.random.default_rng(0)
    places = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)

    def ball(centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
        distances = (((x - c) / r) ** 2 for x, c, r in zip(places, centre, radii))
        return functools.reduce(np.add, distances) < 1

    image = np.full(shape, -1000, np.int16)
    label = np.zeros(shape, np.uint8)
    image[ball((0, 0, 0), (1.2, 0.7, 0.9))] = 40
    for k, (centre, radii) in enumerate([((0.1, 0.1, -0.3), (0.6, 0.3, 0.35)), ((-0.2, -0.2, 0.4), (0.4, 0.2, 0.2))]):
        inside = ball(centre, radii)
        image[inside], label[inside] = 90 + 30 * k, k + 1
    image += rng.integers(-30, 31, shape, np.int16)
    affine = np.diag([*CT_SPACING_MM[::-1], 1.0])
    for name, array in (("image", image), ("label", label)):
        nib.save(nib.Nifti1Image(array.T, affine), folder / f"{name}.nii.gz")


def ct_plan() -> Plan:
    """A grid for that CT, and how its intensities are clipped and scaled."""
    plan = benchmark_plan("04", 3)
    stage = dataclasses.replace(plan.stage, spacing_mm=CT_TARGET_MM, patch_size=(64, 128, 128))
    channel = ChannelPlan(name="CT", scheme="ct", lower=-160.0, upper=240.0, mean=60.0, std=50.0)
    return dataclasses.replace(plan, channels=(channel,), stage=stage)


def _link(source: Path | None, target: Path) -> None:
    assert source is not None
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source.absolute())

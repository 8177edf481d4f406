"""A repaired copy of a case: what can be put right without guessing, and is told; the source is only read.

What a person decided about a label is carried out first (`decisions.py`).
What is put right: NaN and infinite values become 0, nearly whole label values are rounded, a label on the voxels of its
image but elsewhere in space gets the image's geometry. A case with any other problem is left out.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data_preprocessing.dataset.case_files import CaseFiles
from data_preprocessing.dataset.checks import check_case, is_reoriented
from data_preprocessing.dataset.decisions import Decision, carry_out, describe
from data_preprocessing.dataset.description_file import DESCRIPTION, Dataset, Description
from data_preprocessing.dataset.findings import problems_of
from data_preprocessing.dataset.verification import CaseSurvey, find_duplicates
from data_preprocessing.dataset.writing import list_cases, name_labels
from data_preprocessing.runner import source_files
from utils.errors import UserError, describe_error
from utils.files import new_folder, write_json
from utils.nifti import (
    GRID_TOLERANCE_MM,
    Volume,
    from_working,
    grid_difference_mm,
    is_same_grid,
    read_image,
    read_label,
    to_working,
    write_volume,
)
from utils.scan_formats import ONE_FILE, copy_scan
from utils.scan_names import scan_ending
from utils.schema import LabelScheme
from utils.workers import Workers

WHOLE_TOLERANCE = 1e-3
"""Label values this close to a whole number are that number, spoiled by a conversion."""
STEP_TOLERANCE = 0.25
"""Where each class has one value of its own, as after a conversion to scaled integers, it may lie this far beside its
number; interpolation leaves several values around each."""
LARGEST_LABEL = 255


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaseRepair:
    """What became of one case."""

    files: CaseFiles
    """In the source."""
    changes: tuple[str, ...] = ()
    """Empty for a plain copy."""
    left_out: str = ""
    """Why the case is not in the copy; empty if it is."""
    label_values: tuple[int, ...] = ()
    """Values of the repaired label that dataset.json does not name yet."""


def write_repaired_copy(
    description: Description,
    surveys: Sequence[CaseSurvey],
    target: Path,
    workers: Workers,
    *,
    tolerance_mm: float = GRID_TOLERANCE_MM,
    decided: Mapping[str, tuple[Decision, ...]] | None = None,
) -> list[CaseRepair]:
    """Write the data set with its faulty cases repaired or left out, and a dataset.json of what is there.

    Of cases with the same name or the same voxels the first is kept.

    Args:
        description: of the source.
        surveys: of all its cases, training before test, as `survey_cases` gives them.
        target: the new data set's folder; it appears when all is written.
        workers: the processes that repair.
        tolerance_mm: as the surveys were made with.
        decided: what shall become of the labels of training cases, by name.

    Raises:
        UserError: no case can be used, or the disk is full.
    """
    dataset = description.dataset
    cases, split = (*dataset.training, *dataset.test), len(dataset.training)
    decided = decided or {}
    repairs, faulty = _sort_out(dataset, surveys, decided)
    with new_folder(target) as folder:
        repair = functools.partial(
            repair_case, dataset=dataclasses.replace(dataset, training=(), test=()), output=folder,
            tolerance_mm=tolerance_mm,
        )  # fmt: skip
        orders = [(cases[index], decided.get(cases[index].case, ()) if index < split else ()) for index in faulty]
        repairs |= dict(zip(faulty, workers.map(repair, orders, title="repair")))
        for index, files in enumerate(cases):
            if index not in repairs:
                repairs[index] = copy_case(files, dataset.folder, folder)
        ordered = [repairs[index] for index in range(len(cases))]
        if all(case.left_out for case in ordered):
            raise UserError(f"none of the {len(cases)} cases of {dataset.folder} can be repaired; nothing was written")
        training, test = ([r.files for r in part if not r.left_out] for part in (ordered[:split], ordered[split:]))
        content = name_labels(description.content, sorted({value for case in ordered for value in case.label_values}))
        write_json(list_cases(content, dataset.folder, training=training, test=test), folder / DESCRIPTION)
    return ordered


def _sort_out(
    dataset: Dataset, surveys: Sequence[CaseSurvey], decided: Mapping[str, tuple[Decision, ...]]
) -> tuple[dict[int, CaseRepair], list[int]]:
    """Cases that are left out, and those of the others that are faulty or whose label shall be changed.

    Left out is what a person removes, and what has the name or the voxels of an earlier case. Cases are counted through
    training and test.
    """
    sections = ("training",) * len(dataset.training) + ("test",) * len(dataset.test)
    repairs: dict[int, CaseRepair] = {}
    named: dict[tuple[str, str], int] = {}
    cases = (*dataset.training, *dataset.test)
    for index, (section, files) in enumerate(zip(sections, cases)):
        if named.setdefault((section, files.case), index) != index:
            repairs[index] = CaseRepair(files=files, left_out="an earlier case has the same name")
    orders = {index: decided.get(case, ()) for (section, case), index in named.items() if section == "training"}
    removed = {index for index, decisions in orders.items() if any(each.word == "remove" for each in decisions)}
    repairs |= {index: CaseRepair(files=cases[index], left_out="removed (decided)") for index in removed}
    faulty = {index for index in named.values() if problems_of(surveys[index].findings) or orders.get(index)}
    kept = sorted(set(named.values()) - removed, key=lambda index: (index in faulty, index))
    for twin in find_duplicates([surveys[index] for index in kept]):
        index = named[twin.section, twin.case]
        repairs[index] = CaseRepair(files=cases[index], left_out=twin.message)
    return repairs, sorted(faulty - set(repairs))


def repair_case(
    order: tuple[CaseFiles, tuple[Decision, ...]], *, dataset: Dataset, output: Path, tolerance_mm: float
) -> CaseRepair:
    """Repair one case and write its files below `output`, at the places that they have in the data set's folder.

    Args:
        order: the case, and what was decided about its label.
        dataset: that it is one of.
        output: folder of the copy.
        tolerance_mm: how far apart label and image may lie.
    """
    files, decisions = order
    changes: list[str] = []
    try:
        image = _repair_image(read_image(files.images, tolerance_mm=tolerance_mm), changes)
        image_changes = len(changes)
        label = None if files.label is None else _decided_label(files.label, image, changes, tolerance_mm, decisions)
        label_changes = len(changes) - image_changes
        unknown = () if label is None else _unnamed(label.array, dataset.labels)
        named = dataclasses.replace(dataset, labels=_with_values(dataset.labels, unknown))
        faults = check_case(files, image, label, named, tolerance_mm=tolerance_mm)
    except Exception as error:  # A file that cannot be read leaves its case out, and the others go on.
        return CaseRepair(files=files, left_out=describe_error(error))
    if faults:
        return CaseRepair(files=files, left_out="; ".join(fault.message for fault in faults))
    for path in files.images if not image_changes else ():
        copy_file(path, dataset.folder, output)
    for index, path in enumerate(files.images if image_changes else ()):
        array = image.array[index] if len(files.images) > 1 or len(image.array) == 1 else image.array
        write_volume(_place(path, dataset.folder, output), array, image.geometry)
    if label is not None and files.label is not None:
        if label_changes:
            write_volume(_place(files.label, dataset.folder, output), label.array.astype(np.uint8), label.geometry)
        else:
            copy_file(files.label, dataset.folder, output)
    if unknown:
        changes.append(f"label: values {_listed(unknown)} named in {DESCRIPTION}")
    return CaseRepair(files=files, changes=tuple(changes), label_values=unknown)


def copy_case(files: CaseFiles, folder: Path, output: Path) -> CaseRepair:
    """Copy the files of a sound case."""
    for path in source_files(files):
        copy_file(path, folder, output)
    return CaseRepair(files=files)


def copy_file(path: Path, folder: Path, output: Path) -> None:
    """Copy a file of `folder` to the same place below `output`."""
    place = _place(path, folder, output)
    if scan_ending(path).lower() in ONE_FILE:
        copy_scan(path, place)
    else:
        shutil.copyfile(path, place)


def _repair_image(image: Volume, changes: list[str]) -> Volume:
    odd = ~np.isfinite(image.array)
    if not odd.any():
        return image
    changes.append(f"image: {int(odd.sum())} NaN or infinite intensities set to 0")
    return dataclasses.replace(image, array=np.where(odd, np.float32(0), image.array))


def _decided_label(
    path: Path, image: Volume, changes: list[str], tolerance_mm: float, decisions: Sequence[Decision]
) -> Volume:
    """The repaired label, or the file that takes its place, after what was decided."""
    others = [decision.file for decision in decisions if decision.file is not None]
    label = _repair_label(others[-1] if others else path, image, changes, tolerance_mm)
    if not decisions:
        return label
    changes.append(describe(decisions))
    stored = carry_out(decisions, from_working(label.array, label.geometry))
    return dataclasses.replace(label, array=to_working(stored, label.geometry.affine))


def _repair_label(path: Path, image: Volume, changes: list[str], tolerance_mm: float) -> Volume:
    try:
        label = read_label(path, image.geometry, tolerance_mm=tolerance_mm)
    except UserError as fault:
        label = _rounded(path, fault, changes)
    if is_same_grid(label.geometry, image.geometry, tolerance_mm):
        return _turned_as(image, label)
    # First of all: the same positions in another storage order. Copying the header alone would mirror the label.
    if is_reoriented(label, image, tolerance_mm):
        changes.append("label: stored in the orientation of its image")
        return dataclasses.replace(label, geometry=image.geometry)
    if label.geometry.shape_xyz != image.geometry.shape_xyz:
        return label
    distance_mm = grid_difference_mm(label.geometry.affine, image.geometry.affine, image.geometry.shape_xyz)
    changes.append(f"label: geometry copied from the image ({distance_mm:.3g} mm away before); look at the result")
    return _turned_as(image, label)


def _turned_as(image: Volume, label: Volume) -> Volume:
    """The label with its voxels where the file has them, turned by the image's header instead of its own."""
    stored = from_working(label.array, label.geometry)
    return dataclasses.replace(label, array=to_working(stored, image.geometry.affine), geometry=image.geometry)


def _rounded(path: Path, fault: UserError, changes: list[str]) -> Volume:
    """A label whose values are whole but for rounding. Raises the reader's own `fault` if they are not."""
    volume = read_image([path])
    if len(volume.array) != 1:
        raise fault
    values = volume.array[0]
    odd = ~np.isfinite(values)
    values = np.where(odd, 0, values)
    whole = np.rint(values)
    distance = np.abs(values - whole).max()
    if distance > STEP_TOLERANCE or np.abs(whole).max() > LARGEST_LABEL:
        raise fault
    if distance > WHOLE_TOLERANCE and len(np.unique(values)) > len(np.unique(whole)):
        raise fault
    if odd.any():
        changes.append(f"label: {int(odd.sum())} NaN or infinite values set to 0")
    spoiled = int(np.count_nonzero(values != whole))
    if spoiled:
        changes.append(f"label: {spoiled} values rounded to whole numbers")
    return dataclasses.replace(volume, array=whole.astype(np.int16))


def _unnamed(label: np.ndarray, labels: LabelScheme) -> tuple[int, ...]:
    """Values that a name can be given to; others stay a problem."""
    values = set(np.unique(label).tolist()) - {*labels.values, labels.ignore_value}
    return tuple(sorted(value for value in values if 0 <= value <= LARGEST_LABEL))


def _with_values(labels: LabelScheme, values: tuple[int, ...]) -> LabelScheme:
    names = tuple(f"label_{value}" for value in values)
    return dataclasses.replace(labels, names=labels.names + names, values=labels.values + values)


def _place(path: Path, folder: Path, output: Path) -> Path:
    place = output / path.relative_to(folder)
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def _listed(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values))

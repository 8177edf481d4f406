"""A task folder with its dataset.json from scans that lie around: what names and voxels tell is not asked for."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_preprocessing.dataset.case_files import CaseFiles, name_fault
from data_preprocessing.dataset.description_file import DESCRIPTION, Dataset, task_number
from data_preprocessing.dataset.findings import Finding
from data_preprocessing.dataset.pairing import pair, plain_name, unlabelled_cases
from data_preprocessing.dataset.scan_search import Scan, find_files, group_channels
from data_preprocessing.dataset.verification import CaseSurvey, find_duplicates, survey_cases
from data_preprocessing.dataset.writing import list_cases
from data_preprocessing.normalization import scheme_of
from utils.errors import UserError, list_problems
from utils.files import new_folder, real_path, write_json
from utils.scan_formats import ONE_FILE, copy_scan, require_package
from utils.scan_names import scan_ending
from utils.schema import LabelScheme
from utils.workers import Workers

CT_MINIMUM_HU = -200
"""Whole numbers below this are Hounsfield units: air has -1000, and no other modality goes there."""
LARGEST_LABEL = 255
FIRST_FREE_TASK, LAST_TASK = 11, 999
"""Numbers that new tasks get; 01 to 10 belong to the Medical Segmentation Decathlon."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sources:
    """Where the scans are: each a folder, files, or patterns with * and {case} (several: one for each channel)."""

    images: tuple[str, ...]
    labels: tuple[str, ...]
    test_images: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collection:
    """The cases that were found, and the names of their channels where file names or the user told them."""

    training: tuple[CaseFiles, ...]
    test: tuple[CaseFiles, ...]
    channels: tuple[str, ...]


def collect(sources: Sources, channels: Sequence[str]) -> Collection:
    """Find the files and pair images with labels by their names.

    Raises:
        UserError: files that have no partner, cannot be paired without doubt, or would get the same name.
    """
    problems: list[str] = []
    labels = [Scan(key=file.key, paths=(file.path,)) for file in find_files(sources.labels, problems, flag="--labels")]
    taken = {os.path.realpath(path) for scan in labels for path in scan.paths}
    files = find_files(sources.images, problems, flag="--images")
    files = [file for file in files if os.path.realpath(file.path) not in taken]
    images, words = group_channels(files, channels, len(labels))
    training, rule = pair(images, labels, problems)
    test_files = find_files(sources.test_images, problems, flag="--test_images") if sources.test_images else []
    test, _ = group_channels(test_files, words or channels)
    unlabelled = unlabelled_cases(test, rule)
    for section, cases in (("training", training), ("test", unlabelled)):
        counts = Counter(files.case for files in cases)
        problems += [f"{section}: {n} cases would be called {name!r}" for name, n in counts.items() if n > 1]
        problems += [f"{section}: {fault}" for name in counts if (fault := name_fault(name))]
    require_package(path for case in (*training, *unlabelled) for path in (*case.images, case.label) if path)
    if not (training or problems):
        problems.append("--images and --labels find no scans")
    if problems:
        raise list_problems(
            "images and labels do not fit together; nothing was written:", problems,
            advice="Rename or move the files, or give patterns with {case}.", shown=50,
        )  # fmt: skip
    return Collection(training=tuple(training), test=tuple(unlabelled), channels=tuple(channels or words))


def survey(collection: Collection, workers: Workers) -> list[CaseSurvey]:
    """Read and check all scans. Every label value that can be stored counts as named."""
    values = tuple(range(LARGEST_LABEL + 1))
    dataset = Dataset(
        task="00", name="", folder=Path(), channels=("",), training=collection.training, test=collection.test,
        labels=LabelScheme(names=tuple(map(str, values)), values=values),
    )  # fmt: skip
    return survey_cases(dataset, workers, title="read")


def faults_of(surveys: Sequence[CaseSurvey]) -> list[Finding]:
    """What makes scans unfit for the new data set."""
    counts = Counter(len(survey.scan.minima) for survey in surveys if survey.scan is not None)
    usual = counts.most_common(1)[0][0] if counts else 0
    findings = []
    for survey in surveys:
        for finding in survey.findings:
            if finding.is_remark or finding.kind == "channels":
                continue
            if finding.kind == "labels":
                odd = [v for v in survey.label_counts or () if not 0 <= v <= LARGEST_LABEL]
                message = f"its label has values outside 0..{LARGEST_LABEL}: {', '.join(map(str, odd[:10]))}"
                finding = dataclasses.replace(finding, message=message)
            findings.append(finding)
        if survey.scan is not None and len(survey.scan.minima) != usual:
            message = f"its image has {len(survey.scan.minima)} channels, most have {usual}"
            findings.append(Finding(kind="channels", message=message, case=survey.case, section=survey.section))
    return findings + find_duplicates(surveys)


def name_channels(
    surveys: Sequence[CaseSurvey], given: Sequence[str], problems: list[Finding]
) -> tuple[tuple[str, ...], list[str]]:
    """A name for each channel, and remarks on those that decide how it is normalised: CT or not."""
    scans = [survey.scan for survey in surveys if survey.scan is not None]
    num_channels = Counter(len(scan.minima) for scan in scans).most_common(1)[0][0]
    scans = [scan for scan in scans if len(scan.minima) == num_channels]
    if given and len(given) != num_channels:
        message = f"{len(given)} names of channels ({', '.join(given)}), and the images have {num_channels}"
        problems.append(Finding(kind="channels", message=message))
        return tuple(given), []
    names, remarks = [], []
    for channel in range(num_channels):
        similar = [scan for scan in scans if scan.is_whole[channel] and scan.minima[channel] < CT_MINIMUM_HU]
        is_ct = 2 * len(similar) >= len(scans)
        reason = f"{len(similar)} of {len(scans)} images hold whole numbers that go below {CT_MINIMUM_HU}"
        if not given:
            names.append("CT" if is_ct else f"channel_{channel}")
            kind = "is CT" if is_ct else "is no CT, and normalised scan by scan (--channels names it)"
            remarks.append(f"channel {channel} {kind}: {reason}")
            continue
        names.append(given[channel])
        # A name that chooses another normalisation was given on purpose.
        scheme = scheme_of(given[channel])
        if scheme == (None if is_ct else "ct"):
            kind = "looks like CT, which only the name CT declares" if is_ct else "does not look like CT"
            remarks.append(f"channel {channel} ({given[channel]}) {kind}: {reason}")
    return tuple(names), remarks


def name_values(surveys: Sequence[CaseSurvey], given: Sequence[str], problems: list[Finding]) -> dict[int, str]:
    """Label value -> name, background first: the given names (that of the background may be left out), or `label_1`
    and so on."""
    values = sorted({0, *(value for survey in surveys for value in survey.label_counts or ())})
    values = [value for value in values if 0 <= value <= LARGEST_LABEL]
    names = list(given) or ["background", *(f"label_{value}" for value in values[1:])]
    if len(names) == len(values) - 1 and names[0].lower() != "background":
        names = ["background", *names]
    message = ""
    if len(values) == 1:
        message = "no label has a voxel that is not 0; check that --labels means the right files"
    elif len(names) != len(values) or names[0].lower() != "background" or len(set(names)) < len(names):
        shown = ", ".join(map(str, values))
        message = (
            f"--label_names must be {len(values)} different names for the values {shown}, background first; "
            f"got {', '.join(names)}"
        )
    problems += [Finding(kind="labels", message=message)] if message else []
    return dict(zip(values, names))


def choose_folder(output: Path, sources: Sources) -> Path:
    """The new data set's folder: `output` if it is called TaskNN_Name, else beside it under the next free number.

    Raises:
        UserError: it exists and is not empty, or lies inside the folders of the scans.
    """
    output = Path(os.path.abspath(output))
    number = task_number(output.name)
    if number is None:
        there = output.parent.iterdir() if output.parent.is_dir() else ()
        taken = {task_number(folder.name) for folder in there}
        number = next(n for n in range(FIRST_FREE_TASK, LAST_TASK + 2) if n not in taken)
        output = output.with_name(f"Task{number}_{plain_name(output.name)}")
    if number > LAST_TASK:
        raise UserError(f"--output {output.name}: task numbers have at most three digits")
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"--output {output} exists and is not an empty folder; choose another one")
    for place in (*sources.images, *sources.labels, *sources.test_images):
        if Path(place).is_dir() and real_path(output).is_relative_to(real_path(Path(place))):
            raise UserError(f"--output {output} lies inside {place}, which is only read; choose another folder")
    return output


def write_dataset(
    target: Path, collection: Collection, channels: Sequence[str], labels: dict[int, str], *, link: bool
) -> None:
    """Copy (or link to) the scans, and write dataset.json; the folder appears when all of it is there."""
    with new_folder(target) as folder:
        training = [_place(files, folder, ("imagesTr", "labelsTr"), link=link) for files in collection.training]
        test = [_place(files, folder, ("imagesTs", "labelsTs"), link=link) for files in collection.test]
        content: dict[str, Any] = {
            "name": target.name.partition("_")[2] or target.name,
            "tensorImageSize": "3D" if len(channels) == 1 else "4D",
            "modality": {str(index): name for index, name in enumerate(channels)},
            "labels": {str(value): name for value, name in labels.items()},
        }
        write_json(list_cases(content, folder, training=training, test=test), folder / DESCRIPTION)


def _place(files: CaseFiles, folder: Path, names: tuple[str, str], *, link: bool) -> CaseFiles:
    """Put the files of a case where the layout of the Decathlon has them."""
    images = []
    for index, path in enumerate(files.images):
        channel = f"_{index:04d}" if len(files.images) > 1 else ""
        images.append(_put(path, folder / names[0] / f"{files.case}{channel}", link=link))
    label = None if files.label is None else _put(files.label, folder / names[1] / files.case, link=link)
    return CaseFiles(case=files.case, images=tuple(images), label=label)


def _put(source: Path, stem: Path, *, link: bool) -> Path:
    ending = scan_ending(source).lower()
    target = stem.with_name(stem.name + ONE_FILE.get(ending, ending))
    target.parent.mkdir(exist_ok=True)
    if ending in ONE_FILE:
        # Its voxels lie in a file of their own, which a copy or a link under another name would not find.
        copy_scan(source, target)
    elif link:
        target.symlink_to(real_path(source))
    else:
        shutil.copyfile(source, target)
    return target

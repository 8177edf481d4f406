"""All that can be said of a data set's scans before anything is made from them: each alone, and side by side.

A problem makes a case unfit for use; a remark is worth a look and no more (orientations that differ from scan to scan,
for one: scans are brought to RAS+ anyway).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from data_preprocessing.case_memory import inspection_bytes
from data_preprocessing.dataset.case_files import CaseFiles
from data_preprocessing.dataset.checks import check_case, orientation, read_case
from data_preprocessing.dataset.description_file import DESCRIPTION, Dataset, Description
from data_preprocessing.dataset.findings import Finding
from data_preprocessing.runner import source_files
from utils.axes import triple
from utils.files import real_path
from utils.nifti import GRID_TOLERANCE_MM, Volume, allowed_mm, forms_difference_mm
from utils.scan_names import scan_tree
from utils.workers import Workers

OUTLIER_RATIO = 4.0
"""A voxel size this many times the median of the data set, or this small a part of it, is remarked on."""


NO_FOREGROUND = "no training case has a single labelled voxel, so there is nothing to learn"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanFacts:
    """What was read from one image; `shape` and `spacing_mm` are in S, A, R order."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    orientation: str
    minima: tuple[float, ...]
    """Smallest finite intensity of each channel."""
    is_whole: tuple[bool, ...]
    """Whether a channel holds whole numbers only."""
    digest: str | None
    """Of the voxels in S, A, R order, whatever the file's orientation, type and compression; None for an empty scan."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaseSurvey:
    """One case as it was found; `scan` or `label_counts` is None where the file could not be read."""

    case: str
    section: str
    findings: tuple[Finding, ...]
    scan: ScanFacts | None
    label_counts: dict[int, int] | None
    """Label value -> voxels."""
    label_digest: str | None


def survey_cases(
    dataset: Dataset, workers: Workers, *, tolerance_mm: float = GRID_TOLERANCE_MM, title: str = "verify"
) -> list[CaseSurvey]:
    """Read and check every training case and test scan."""
    described = dataclasses.replace(dataset, training=(), test=())
    surveys = []
    for section, cases in (("training", dataset.training), ("test", dataset.test)):
        survey = functools.partial(survey_case, section=section, dataset=described, tolerance_mm=tolerance_mm)
        surveys += workers.map(survey, cases, title=f"{title} {section}", size=inspection_bytes)
    return surveys


def survey_case(files: CaseFiles, *, section: str, dataset: Dataset, tolerance_mm: float) -> CaseSurvey:
    """Read and check one case."""
    image, label, findings = read_case(files, tolerance_mm=tolerance_mm)
    findings += check_case(files, image, label, dataset, tolerance_mm=tolerance_mm)
    counts = None if label is None else label_counts(label.array)
    if counts is not None and not set(counts) - {dataset.labels.values[0], dataset.labels.ignore_value}:
        findings.append(_remark("labels", f"{files.label} has no foreground"))
    if image is not None:
        findings += _image_remarks(files, image, dataset)
    return CaseSurvey(
        case=files.case,
        section=section,
        findings=tuple(dataclasses.replace(f, case=files.case, section=section) for f in findings),
        scan=None if image is None else _scan_facts(image),
        label_counts=counts,
        label_digest=None if label is None else _digest(label.array),
    )


def compare_cases(surveys: Sequence[CaseSurvey], dataset: Dataset) -> list[Finding]:
    """What shows only when all cases lie side by side: duplicates, labels that no case uses, odd grids."""
    return [
        *find_duplicates(surveys),
        *_without_foreground(surveys, dataset),
        *_unused_labels(surveys, dataset),
        *_mixed_orientations(surveys),
        *_odd_spacings(surveys),
    ]


def find_duplicates(surveys: Sequence[CaseSurvey]) -> list[Finding]:
    """A problem for each case whose image has the very voxels of an earlier one: it would be on both sides of a fold.

    Empty scans do not count: all of them are alike, and each is a problem of its own.
    """
    first: dict[str, CaseSurvey] = {}
    findings = []
    for survey in surveys:
        if survey.scan is None or survey.scan.digest is None:
            continue
        twin = first.setdefault(survey.scan.digest, survey)
        if twin is survey:
            continue
        where = "test scan" if twin.section == "test" else "case"
        message = f"its image has the same voxels as that of {where} {twin.case}"
        if None not in (twin.label_digest, survey.label_digest):
            same = twin.label_digest == survey.label_digest
            message += ", and so has its label" if same else "; their labels differ"
        findings.append(Finding(kind="duplicate", message=message, case=survey.case, section=survey.section))
    return findings


def check_listing(description: Description) -> list[Finding]:
    """Counts in dataset.json that are wrong, and scans in its folders that it does not list."""
    dataset, findings = description.dataset, []
    for key, section in (("numTraining", "training"), ("numTest", "test")):
        stated, found = description.content.get(key), len(getattr(dataset, section))
        if isinstance(stated, int) and stated != found:
            findings.append(_remark("description", f"{DESCRIPTION} says {key} {stated}, and there are {found} cases"))
    listed = {real_path(path) for case in (*dataset.training, *dataset.test) for path in source_files(case)}
    for folder in sorted({path.parent for path in listed}):
        files = {path for path in scan_tree(folder) if real_path(path) not in listed}
        unlisted = sorted(path.relative_to(folder).as_posix() for path in files)
        if unlisted:
            shown = ", ".join(unlisted[:3]) + (", ..." if len(unlisted) > 3 else "")
            findings.append(_remark("file", f"{folder} has {len(unlisted)} files that no case uses: {shown}"))
    return findings


def label_counts(array: np.ndarray) -> dict[int, int]:
    """Voxels of each value of an integer label (S, A, R); plane by plane, as counting makes wide copies."""
    counts: Counter[int] = Counter()
    for plane in array:
        values, voxels = np.unique(plane, return_counts=True)
        counts.update(dict(zip(values.tolist(), voxels.tolist())))
    return dict(sorted(counts.items()))


def _scan_facts(image: Volume) -> ScanFacts:
    minima, is_whole = zip(*map(_intensity_facts, image.array))
    return ScanFacts(
        shape=triple(int(n) for n in image.array.shape[1:]),
        spacing_mm=image.spacing_mm,
        orientation=orientation(image.geometry),
        minima=minima,
        is_whole=is_whole,
        digest=_digest(image.array) if image.array.any() else None,
    )


def _intensity_facts(channel: np.ndarray) -> tuple[float, bool]:
    """Smallest finite intensity of (S, A, R), and whether all are whole; plane by plane, to save memory."""
    minimum, is_whole = np.inf, True
    for plane in channel:
        values = plane[np.isfinite(plane)]
        minimum = min(minimum, float(values.min(initial=np.inf)))
        is_whole = is_whole and bool((values == np.rint(values)).all())
    return minimum, is_whole


def _digest(array: np.ndarray) -> str:
    """Of shape and values; labels of different integer types compare equal."""
    content = hashlib.blake2b(str(array.shape).encode(), digest_size=16)
    dtype = np.dtype(np.float32 if array.dtype.kind == "f" else np.int64)
    for part in array:
        content.update(np.ascontiguousarray(part, dtype).data)
    return content.hexdigest()


def _image_remarks(files: CaseFiles, image: Volume, dataset: Dataset) -> list[Finding]:
    remarks = []
    distance_mm = forms_difference_mm(image.geometry)
    if not distance_mm <= allowed_mm(image.geometry.affine):
        remarks.append(
            _remark(
                "orientation",
                f"{files.images[0]} states two orientations (qform and sform) that lie {distance_mm:.3g} mm apart; the "
                "sform counts here, and other programs may show the scan elsewhere",
            )
        )
    unit = {1: "metres", 3: "micrometres"}.get(image.geometry.xyzt_units & 7)
    if unit:
        shown = " x ".join(f"{size:.4g}" for size in image.spacing_mm)
        remarks.append(_remark("spacing", f"{files.images[0]} is in {unit}: its voxels are {shown} mm (S, A, R)"))
    if 1 in image.array.shape[1:]:
        shape = " x ".join(map(str, image.array.shape[1:]))
        remarks.append(_remark("shape", f"{files.images[0]} is a single slice: {shape} voxels (S, A, R)"))
    constant = [index for index, channel in enumerate(image.array) if channel.min() == channel.max()]
    if constant and image.array.any():
        names = dict(enumerate(dataset.channels))
        shown = ", ".join(f"{index} ({names.get(index, 'not named')})" for index in constant)
        remarks.append(_remark("intensities", f"{files.images[0]} has one intensity everywhere in channel {shown}"))
    return remarks


def _without_foreground(surveys: Sequence[CaseSurvey], dataset: Dataset) -> list[Finding]:
    counts = [survey.label_counts for survey in surveys if survey.section == "training" and survey.label_counts]
    background = {dataset.labels.values[0], dataset.labels.ignore_value}
    if not counts or any(set(count) - background for count in counts):
        return []
    return [Finding(kind="labels", message=f"{NO_FOREGROUND}: look at the labels, which are {len(counts)} here")]


def _unused_labels(surveys: Sequence[CaseSurvey], dataset: Dataset) -> list[Finding]:
    labelled = [survey.label_counts for survey in surveys if survey.label_counts is not None]
    used = {value for counts in labelled for value in counts}
    named = dict(zip(dataset.labels.values, dataset.labels.names)) | {dataset.labels.ignore_value: "ignore"}
    unused = [f"{value} ({name})" for value, name in named.items() if value is not None and value not in used]
    if not unused or not labelled:
        return []
    return [_remark("labels", f"{DESCRIPTION} names labels that no case has: {', '.join(unused)}")]


def _mixed_orientations(surveys: Sequence[CaseSurvey]) -> list[Finding]:
    counts = Counter(survey.scan.orientation for survey in surveys if survey.scan is not None)
    if len(counts) < 2:
        return []
    shown = ", ".join(f"{count} {code}" for code, count in counts.most_common())
    return [_remark("orientation", f"scans are stored in different orientations: {shown}; all are brought to RAS")]


def _odd_spacings(surveys: Sequence[CaseSurvey]) -> list[Finding]:
    scans = [(survey, survey.scan) for survey in surveys if survey.scan is not None]
    if len(scans) < 3:
        return []
    spacings = np.array([scan.spacing_mm for _, scan in scans])
    median = np.median(spacings, axis=0)
    odd: dict[int, list[str]] = defaultdict(list)
    for index, axis in np.argwhere(np.abs(np.log(spacings / median)) > np.log(OUTLIER_RATIO)):
        odd[int(index)].append(f"{spacings[index, axis]:.4g} mm along {'SAR'[axis]} (median {median[axis]:.4g})")
    return [
        dataclasses.replace(
            _remark("spacing", f"its voxels are unlike those of the other scans: {', '.join(texts)}"),
            case=scans[index][0].case, section=scans[index][0].section,
        ) for index, texts in odd.items()
    ]  # fmt: skip


def _remark(kind: str, message: str) -> Finding:
    return Finding(kind=kind, message=message, is_remark=True)

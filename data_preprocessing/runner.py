"""Many cases at once: inspect all of them, then write their shards. Parallel, resumable, in bounded memory.

Pass 1 reads every scan, looks for faults and gathers the fingerprint; it writes nothing, and one bad case stops the run
before anything is written. Pass 2 makes the shards that are missing or stale; a case that fails is reported and the
others go on. Each worker holds one case at a time.
"""

from __future__ import annotations

import dataclasses
import functools
import shlex
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

from data_preprocessing.case_memory import inspection_bytes, preprocessing_bytes
from data_preprocessing.dataset.case_files import CaseFiles
from data_preprocessing.dataset.checks import check_case, read_case
from data_preprocessing.dataset.description_file import Dataset
from data_preprocessing.dataset.findings import Finding, unusable
from data_preprocessing.planning.fingerprint import CaseFingerprint, describe_twins, inspect_case
from data_preprocessing.preprocessor import CaseInput, preprocess_case
from data_preprocessing.readiness import drop_metas
from data_preprocessing.shards import is_current, shard_paths, stamp_plan, stamp_sources, write_shard
from utils.errors import describe_error
from utils.files import file_digest, file_stat
from utils.nifti import Volume, read_image, read_label
from utils.outdated import forget_outdated
from utils.parts import Part
from utils.schema import Plan
from utils.workers import Workers


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaseStatus:
    """What became of a case: `kept` was there and current, `failed` comes with its reason."""

    case: str
    status: Literal["written", "kept", "failed"]
    detail: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaseInspection:
    """What pass 1 found; exactly one of `problems` and `fingerprint` is there."""

    case: str
    problems: tuple[Finding, ...] = ()
    fingerprint: CaseFingerprint | None = None


def inspect_cases(dataset: Dataset, cases: Sequence[CaseFiles], workers: Workers) -> list[CaseFingerprint]:
    """Pass 1: read and check every case.

    Raises:
        UserError: any case has a fault; the table of all faults of all cases.
    """
    described = dataclasses.replace(dataset, training=(), test=())
    inspect = functools.partial(_inspect, dataset=described)
    inspections = workers.map(inspect, cases, title="inspect", size=inspection_bytes)
    problems = [problem for inspection in inspections for problem in inspection.problems]
    if problems:
        faulty = sum(bool(i.problems) for i in inspections)
        raise unusable(
            f"{faulty} of {len(cases)} cases of {dataset.folder} cannot be used; nothing was written:",
            problems,
            dataset.folder,
            advice="Correct these files, or take the cases out of dataset.json, and run again; a repaired copy of what "
            f"can be repaired: python scripts/verify_dataset.py --data {shlex.quote(str(dataset.folder))} --fix FOLDER",
        )
    fingerprints = [i.fingerprint for i in inspections if i.fingerprint is not None]
    for text in describe_twins(fingerprints):
        print(f"warning: {text}", file=sys.stderr)
    return fingerprints


def write_cases(
    cases: Sequence[CaseFiles], plan: Plan, folder: Path, workers: Workers, *, current: Collection[str] = ()
) -> list[CaseStatus]:
    """Pass 2: write the shards of the cases into an existing folder, but keep those of the `current` ones.

    Those that are not kept are incomplete from the start, so that whatever ends this run leaves no old ones among them.
    """
    stale = [case for case in cases if case.case not in current]
    drop_metas(folder, [case.case for case in stale])
    # From here on, what is missing says what is outdated.
    forget_outdated(folder)
    write = functools.partial(_write, plan=plan, plan_stamp=stamp_plan(plan), folder=folder)
    size = functools.partial(preprocessing_bytes, plan=plan)
    done = {status.case: status for status in workers.map(write, stale, title="preprocess", size=size)}
    return [done.get(case.case, CaseStatus(case=case.case, status="kept")) for case in cases]


def current_cases(cases: Sequence[CaseFiles], plan: Plan, folder: Path) -> set[str]:
    """Names of the cases whose shards are complete and made from these files by this plan."""
    stamp = stamp_plan(plan)
    # Most often none or all are there; the files of a case without shards need not be asked.
    there = [case for case in cases if shard_paths(folder, case.case).meta.is_file()]
    return {c.case for c in there if is_current(folder, c.case, stamp_sources(source_files(c)), stamp)}


def lacking_parts(cases: Sequence[CaseFiles], plan: Plan, folder: Path, count: int) -> list[Part]:
    """Those of `count` parts of which a case lacks current shards."""
    current = current_cases(cases, plan, folder)
    parts = (Part(index=index, count=count) for index in range(1, count + 1))
    return [part for part in parts if any(case.case not in current for case in part.own(cases))]


def source_files(files: CaseFiles) -> tuple[Path, ...]:
    """All files of a case, the label last."""
    return (*files.images, *([] if files.label is None else [files.label]))


def _read(files: CaseFiles) -> tuple[Volume, Volume | None]:
    image = read_image(files.images)
    return image, None if files.label is None else read_label(files.label, image.geometry)


def _inspect(files: CaseFiles, *, dataset: Dataset) -> CaseInspection:
    try:
        image, label, problems = read_case(files)
        problems += check_case(files, image, label, dataset)
        if problems:
            return CaseInspection(case=files.case, problems=tuple(problems))
        assert image is not None, "an image that cannot be read is a problem"
        fingerprint = inspect_case(
            files.case,
            image.array,
            None if label is None else label.array,
            spacing_mm=image.spacing_mm,
            labels=dataset.labels,
        )
    except Exception as error:  # One unreadable file must not hide the faults of the others.
        return CaseInspection(
            case=files.case, problems=(Finding(kind="file", message=describe_error(error), case=files.case),)
        )
    return CaseInspection(case=files.case, fingerprint=fingerprint)


def _write(files: CaseFiles, *, plan: Plan, plan_stamp: str, folder: Path) -> CaseStatus:
    try:
        # The stamp comes before the voxels: a file that changes in between makes the shard stale, not wrong.
        source_stamp = stamp_sources(source_files(files))
        label_stat = None if files.label is None else file_stat(files.label)
        image, label = _read(files)
        case = preprocess_case(
            CaseInput(
                case=files.case,
                image=image,
                label=label,
                image_path=str(files.images[0].absolute()),
                label_path=None if files.label is None else str(files.label.absolute()),
                source_stamp=source_stamp,
                plan_stamp=plan_stamp,
                label_digest=None if files.label is None else file_digest(files.label),
                label_stat=label_stat,
            ),
            plan,
        )
        write_shard(folder, case)
    except Exception as error:  # Disk full, out of memory, file gone: the other cases go on.
        return CaseStatus(case=files.case, status="failed", detail=describe_error(error))
    meta = case.meta
    shapes = (meta.original_shape, meta.resampled_shape, meta.padded_shape)
    return CaseStatus(
        case=files.case, status="written", detail=" -> ".join("x".join(map(str, shape)) for shape in shapes)
    )

"""All faults of a data set, said, written down and, in a copy, repaired."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_preprocessing.dataset.decisions import read_decisions
from data_preprocessing.dataset.description_file import DESCRIPTION, Dataset, Description, read_description, task_number
from data_preprocessing.dataset.findings import Finding, findings_table, problems_of
from data_preprocessing.dataset.repair import CaseRepair, write_repaired_copy
from data_preprocessing.dataset.verification import CaseSurvey, check_listing, compare_cases, survey_cases
from utils.errors import UserError
from utils.files import real_path, require_not_read, to_dict, write_json
from utils.throughput import num_cores
from utils.workers import Workers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked for besides the list of faults.

    Attributes:
        tolerance_mm: how far apart corners of a label and its image may lie.
        copy: new folder for the repaired data set; None: none is made.
        decisions: table of an audit of labels, whose decisions the copy follows.
        report: JSON file of all findings; None: none is written.
    """

    tolerance_mm: float
    copy: Path | None = None
    decisions: Path | None = None
    report: Path | None = None


def verify(data: Path, task: str | None, wanted: Wanted, *, n_jobs: int | None) -> list[Finding]:
    """Look at every scan and label of a task and print what is wrong; returns the problems, without the remarks.

    Args:
        data: folder above `TaskNN_Name`, or that folder itself.
        task: number; None where `data` is the folder of one task.
        wanted: what else is made.
        n_jobs: processes; None: one for each core.

    Raises:
        UserError: dataset.json cannot be used, or a file cannot be written.
    """
    number = task_number(data.absolute().name)
    if task is None and number is None:
        raise UserError(f"--data {data} is not the folder of one task; say which with --task")
    description = read_description(data, task or str(number))
    dataset = description.dataset
    if wanted.report is not None:
        require_not_read(wanted.report, "--json", _files_of(dataset))
    target = None if wanted.copy is None else _copy_folder(wanted.copy, dataset.folder)
    decided = {} if wanted.decisions is None else read_decisions(wanted.decisions, dataset.training, dataset.labels)
    if wanted.decisions is not None:
        print(f"{wanted.decisions}: {len(decided) or 'no'} labels have a decision")
    num_cases = len(dataset.training) + len(dataset.test)
    repairs: list[CaseRepair] = []
    with Workers(max(1, min(n_jobs or num_cores(), num_cases))) as workers:
        surveys = survey_cases(dataset, workers, tolerance_mm=wanted.tolerance_mm)
        findings = [*description.findings, *(finding for survey in surveys for finding in survey.findings)]
        findings += [*compare_cases(surveys, dataset), *check_listing(description)]
        problems = problems_of(findings)
        print(f"{dataset.folder}: {len(dataset.training)} training cases, {len(dataset.test)} test scans")
        print(findings_table(findings, dataset.folder) if findings else "nothing to complain about")
        print(f"{len(problems)} problems, {len(findings) - len(problems)} remarks")
        if target is not None:
            repairs = write_repaired_copy(
                description, surveys, target, workers, tolerance_mm=wanted.tolerance_mm, decided=decided
            )
            _print_repairs(repairs, target)
        elif problems:
            print("what can be repaired is written as a copy with --fix FOLDER")
    if wanted.report is not None:
        _write_report(wanted.report, description, surveys, findings, repairs)
    return problems


def _files_of(dataset: Dataset) -> list[Path]:
    """All files of a data set."""
    cases = (*dataset.training, *dataset.test)
    scans = [path for case in cases for path in (*case.images, case.label) if path is not None]
    return [dataset.folder / DESCRIPTION, *scans]


def _copy_folder(output: Path, source: Path) -> Path:
    """The data set's folder in the copy: `output` itself if it is called like one (TaskNN_Name), else inside it."""
    output = output.absolute()
    if real_path(output).is_relative_to(real_path(source)):
        raise UserError(f"--fix {output} lies inside the data set, which is only read; choose another folder")
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"--fix {output} exists and is not an empty folder; choose a new one")
    return output if task_number(output.name) is not None else output / source.name


def _print_repairs(repairs: Sequence[CaseRepair], target: Path) -> None:
    for repair in repairs:
        outcome = f"left out: {repair.left_out}" if repair.left_out else "; ".join(repair.changes)
        if outcome:
            print(f"{repair.files.case}: {outcome}")
    left_out = sum(bool(repair.left_out) for repair in repairs)
    changed = sum(bool(repair.changes) for repair in repairs)
    copied = len(repairs) - left_out - changed
    print(f"{target}: {copied} cases copied, {changed} repaired, {left_out} left out")


def _write_report(
    path: Path,
    description: Description,
    surveys: Sequence[CaseSurvey],
    findings: Sequence[Finding],
    repairs: Sequence[CaseRepair],
) -> None:
    scans: list[dict[str, Any]] = []
    for survey in surveys:
        scan = to_dict(survey)
        del scan["findings"]
        scans.append(scan)
    report = {
        "version": 1,
        "dataset": str(description.dataset.folder),
        "num_problems": len(problems_of(findings)),
        "findings": [to_dict(finding) for finding in findings],
        "cases": scans,
        "repairs": [
            {"case": repair.files.case, "changes": repair.changes, "left_out": repair.left_out} for repair in repairs
        ],
    }
    try:
        write_json(report, path)
    except OSError as error:
        raise UserError(f"--json {path} cannot be written: {error.strerror}") from None

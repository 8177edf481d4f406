"""Look for everything that is wrong with a data set; with --fix write a repaired copy.

python scripts/verify_dataset.py --task 04 --data data
python scripts/verify_dataset.py --task 04 --data data --fix repaired
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.args import parse
from utils.config import default_root
from utils.errors import EXIT_OK, EXIT_PARTIAL, UserError, run_cli

if TYPE_CHECKING:
    from data_preprocessing.dataset.description_file import Description
    from data_preprocessing.dataset.findings import Finding
    from data_preprocessing.dataset.repair import CaseRepair
    from data_preprocessing.dataset.verification import CaseSurvey


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Look for everything that is wrong with a data set. Exit status 0: no problems; 1: problems; 2: dataset.json
    cannot be used."""

    task: str | None = None
    """Task number; not needed where --data is the data set's own folder."""
    data: Path = dataclasses.field(default_factory=lambda: default_root("data"))
    """Folder above TaskNN_Name, or that folder itself. It is only read."""
    tolerance_mm: float = 0.05
    """How far apart corners of a label and its image may lie, in mm. preprocess.py uses the default."""
    n_jobs: int | None = None
    """Processes that work at the same time, each on one case (default: one for each CPU core)."""
    fix: Path | None = None
    """New or empty folder for a copy of the data set with everything repaired that can be."""
    json: Path | None = None
    """File for the report: all findings, and what was read of each scan."""

    def __post_init__(self) -> None:
        if self.task is not None and not (self.task.isdecimal() and len(self.task) <= 3):
            raise UserError(f"--task must be a number such as 04, got {self.task!r}")
        if not self.tolerance_mm >= 0:
            raise UserError(f"--tolerance_mm must not be negative, got {self.tolerance_mm}")
        if self.n_jobs is not None and self.n_jobs < 1:
            raise UserError(f"--n_jobs must be at least 1, got {self.n_jobs}")
        if self.json is not None and not self.json.absolute().parent.is_dir():
            raise UserError(f"--json {self.json} cannot be written: {self.json.parent} is not a folder")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status."""
    options = parse(VerifyOptions, argv, prog="verify_dataset.py")
    from data_preprocessing.dataset.description_file import read_description, task_number
    from data_preprocessing.dataset.findings import findings_table, problems_of
    from data_preprocessing.dataset.verification import check_listing, compare_cases, survey_cases
    from utils.throughput import num_cores
    from utils.workers import Workers

    number = task_number(options.data.absolute().name)
    if options.task is None and number is None:
        raise UserError(f"--data {options.data} is not the folder of one task; say which with --task")
    description = read_description(options.data, options.task or str(number))
    dataset = description.dataset
    target = None if options.fix is None else _copy_folder(options.fix, dataset.folder)
    num_cases = len(dataset.training) + len(dataset.test)
    repairs: list[CaseRepair] = []
    with Workers(max(1, min(options.n_jobs or num_cores(), num_cases))) as workers:
        surveys = survey_cases(dataset, workers, tolerance_mm=options.tolerance_mm)
        findings = [*description.findings, *(finding for survey in surveys for finding in survey.findings)]
        findings += [*compare_cases(surveys, dataset), *check_listing(description)]
        problems = problems_of(findings)
        print(f"{dataset.folder}: {len(dataset.training)} training cases, {len(dataset.test)} test scans")
        print(findings_table(findings, dataset.folder) if findings else "nothing to complain about")
        print(f"{len(problems)} problems, {len(findings) - len(problems)} remarks")
        if target is not None:
            from data_preprocessing.dataset.repair import write_repaired_copy

            repairs = write_repaired_copy(description, surveys, target, workers, tolerance_mm=options.tolerance_mm)
            _print_repairs(repairs, target)
        elif problems:
            print("what can be repaired is written as a copy with --fix FOLDER")
    if options.json is not None:
        _write_report(options.json, description, surveys, findings, repairs)
    return EXIT_PARTIAL if problems else EXIT_OK


def _copy_folder(output: Path, source: Path) -> Path:
    """The data set's folder in the copy: `output` itself if it is called like one (TaskNN_Name), else inside it."""
    from data_preprocessing.dataset.description_file import task_number
    from utils.files import real_path

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
    from data_preprocessing.dataset.findings import problems_of
    from utils.files import to_dict, write_json

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


if __name__ == "__main__":
    sys.exit(run_cli(main))

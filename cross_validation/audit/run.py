"""The audit of a task's labels: all cases looked at, ranked, written down; the data set is only read."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cross_validation.audit.evidence import read_evidence
from cross_validation.audit.kinds import explain
from cross_validation.audit.origin import require_origin
from cross_validation.audit.places import find_places
from cross_validation.audit.ranking import LEAST_CASES, THRESHOLD, Usual, find_usual, threshold
from cross_validation.audit.rows import Audited, audit_rows
from cross_validation.audit.signals import signals
from cross_validation.candidates import find_labels, find_predictions
from cross_validation.records import OUT_OF_FOLD, finished_records, mean_dice
from utils.configurations import CONFIGURATIONS
from utils.errors import UserError, list_problems
from utils.files import file_digest, to_dict, write_json
from utils.label_audit import AUDIT_DETAILS, AUDIT_TABLE, AuditRow, read_audit, write_audit
from utils.locks import folder_lock
from utils.runs import prepare_folder, write_run_record
from utils.throughput import environment, num_cores
from utils.workers import Workers

BYTES_PER_VOXEL = 80
"""Of a case's box: classes, three arrays of probabilities, and distances with the nearest voxel of each."""
EXPLAINED = 0.5
"""Share of the threshold above which a case is explained."""
SHOWN = 10
"""Lines of the table that are printed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditRequest:
    """What is audited, and where it lies.

    Attributes:
        task: two digits.
        configuration: whose out-of-fold predictions count; None: the one with the highest Dice.
        data: folder of the preprocessed data, which know where the labels are.
        labels: folder of the label files; None: where they were when the data were preprocessed.
        results: folder of the models.
        output: folder of the table; None: `<results>/<task>_audit`.
        n_jobs: processes; None: one for each core.
    """

    task: str
    configuration: str | None
    data: Path
    labels: Path | None
    results: Path
    output: Path | None
    n_jobs: int | None

    @property
    def folder(self) -> Path:
        """Where the table is written."""
        return self.output or self.results / f"{self.task}_audit"

    def predictions(self, configuration: str) -> Path:
        """Folder of the out-of-fold predictions of a configuration."""
        return self.results / f"{self.task}_{configuration}" / OUT_OF_FOLD


def audit_labels(asked: AuditRequest) -> list[AuditRow]:
    """Rank all labels, write audit.csv, audit.json and run.json, print the head of the list.

    Raises:
        UserError: predictions or labels are missing, damaged or do not belong together.
    """
    start_s = time.perf_counter()
    configuration = choose_configuration(asked)
    folder = asked.predictions(configuration)
    shards = {name: asked.data / f"{asked.task}_{stage}" for name, stage in CONFIGURATIONS.items()}
    data = find_predictions({configuration: folder}, find_labels(list(shards.values()), asked.labels))
    masks = require_origin(folder.parent, shards[configuration], data.label_files)
    prepare_folder(asked.folder, "--output")
    print(f"{len(data.label_files)} labels against the out-of-fold predictions of {configuration} in {folder}")
    audited, score = look_at_all(asked, folder, data.label_files, masks)
    limit = threshold(len(audited))
    rows = audit_rows(audited, score, limit, data.labels)
    cpu_s = sum(each.cpu_s for each in audited)
    suspicious = int((score > limit).sum())
    with folder_lock(asked.folder):
        keep_decisions(asked.folder / AUDIT_TABLE)
        write_audit(rows, asked.folder / AUDIT_TABLE)
        write_details(asked.folder / AUDIT_DETAILS, configuration, audited, score, limit)
        outcome = {"cases": len(audited), "suspicious": suspicious, "threshold": None if np.isinf(limit) else limit,
                   "cpu_s": cpu_s, "seconds": time.perf_counter() - start_s}  # fmt: skip
        record = asked.folder / "run.json"
        write_run_record(record, options=to_dict(asked), environment=environment(), outcome=outcome)
    print(head_of(rows, limit, len(audited)))
    print(f"{suspicious} of {len(audited)} labels are suspicious; {cpu_s:.1f} CPU seconds")
    print(f"{asked.folder / AUDIT_TABLE}: fill in the column decision, then: verify-dataset --fix COPY --decisions")
    return rows


def choose_configuration(asked: AuditRequest) -> str:
    """The configuration whose predictions are compared with the labels: the asked one, else the one of the best Dice.

    Raises:
        UserError: there are no out-of-fold predictions.
    """
    there = [name for name in CONFIGURATIONS if (asked.predictions(name) / "plan.json").is_file()]
    if (asked.configuration is not None and asked.configuration not in there) or not there:
        raise UserError(
            f"no out-of-fold predictions of {asked.configuration or 'any configuration'} in {asked.results}; this "
            f"gathers them: python scripts/cross_validate.py --task {asked.task} --configurations "
            f"{asked.configuration or '3d_fullres'} --results {asked.results}, with the flags that trained it after --"
        )
    if asked.configuration is not None:
        return asked.configuration

    def dice(name: str) -> float:
        records = finished_records(asked.results / f"{asked.task}_{name}")
        found = (
            mean_dice([case for record in records for case in record.cases], records[0].targets) if records else None
        )
        return -1.0 if found is None or np.isnan(found.mean_dice) else found.mean_dice

    return max(there, key=dice)


def keep_decisions(table: Path) -> None:
    """Rename an earlier table in which a person has decided something (audit_1.csv and so on), so that none is lost."""
    if not table.is_file():
        return
    try:
        decided = any(row.decision for row in read_audit(table))
    except UserError:
        # Whatever became of it, a person has had it open.
        decided = True
    if decided:
        names = (table.with_name(f"{table.stem}_{number}{table.suffix}") for number in itertools.count(1))
        kept = next(name for name in names if not name.exists())
        table.rename(kept)
        print(f"{table} has decisions and is kept as {kept.name}; --decisions takes it, too", flush=True)


def look_at_all(
    asked: AuditRequest, folder: Path, labels: Mapping[str, Path], masks: Mapping[str, str]
) -> tuple[list[Audited], np.ndarray]:
    """All cases with their scores; those that are unusual are looked at again and explained.

    Raises:
        UserError: files are damaged or do not belong together; all are listed.
    """
    size = functools.partial(forecast, folder)
    with Workers(max(1, min(asked.n_jobs or num_cores(), len(labels)))) as workers:
        look = functools.partial(look_at, folder=folder, labels=labels, masks=masks)
        audited = _sound(workers.map(look, list(labels), title="audit", size=size))
        usual = find_usual([each.signals for each in audited])
        score = np.array([usual.score(each.signals) for each in audited])
        unusual = {each.case: each for each, value in zip(audited, score) if value > EXPLAINED * THRESHOLD}
        tell = functools.partial(explain_case, folder=folder, audited=unusual, masks=masks, usual=usual)
        told = {each.case: each for each in _sound(workers.map(tell, list(unusual), title="explain", size=size))}
    return [told.get(each.case, each) for each in audited], score


def _sound(results: Sequence[Audited | str]) -> list[Audited]:
    problems = [result for result in results if isinstance(result, str)]
    if problems:
        raise list_problems(
            "labels cannot be audited:", problems,
            advice="Put the label back, or remove what is damaged and run scripts/cross_validate.py again.",
        )  # fmt: skip
    return [result for result in results if isinstance(result, Audited)]


def forecast(folder: Path, case: str) -> int:
    """Bytes that a case may take: where its foreground fills the scan. Probabilities are read class by class."""
    try:
        shape = np.load(folder / f"{case}.npy", mmap_mode="r", allow_pickle=False).shape
    except (OSError, ValueError, EOFError):
        return 0  # Said when it is looked at.
    return BYTES_PER_VOXEL * math.prod(shape[1:])


def look_at(case: str, *, folder: Path, labels: Mapping[str, Path], masks: Mapping[str, str]) -> Audited | str:
    """The numbers of a case and the places in it, or why it cannot be looked at."""
    label, start_s = labels[case], time.process_time()
    try:
        evidence = read_evidence(folder, case, label, masks[case])
        found, places = signals(evidence), find_places(evidence)
        return Audited(
            case=case, label=label, label_digest=file_digest(label), geometry=evidence.geometry, signals=found,
            explanation=None, places=places, cpu_s=time.process_time() - start_s,
        )  # fmt: skip
    except UserError as error:
        return str(error)


def explain_case(
    case: str, *, folder: Path, audited: Mapping[str, Audited], masks: Mapping[str, str], usual: Usual
) -> Audited | str:
    """A case with what its label looks like, or why it cannot be looked at any more."""
    before, start_s = audited[case], time.process_time()
    try:
        explanation = explain(read_evidence(folder, case, before.label, masks[case]), before.signals, usual)
        cpu_s = before.cpu_s + time.process_time() - start_s
        return dataclasses.replace(before, explanation=explanation, cpu_s=cpu_s)
    except UserError as error:
        return str(error)


def write_details(
    path: Path, configuration: str, audited: Sequence[Audited], score: np.ndarray, limit: float
) -> None:  # fmt: skip
    """Signals and scores of all cases, by which another threshold can be tried, and what the page shows."""
    cases = [
        {"case": each.case, "score": float(value), "suspicious": bool(value > limit), **to_dict(each.signals),
         **({} if each.explanation is None else
            {"kind": each.explanation.kind, "explained": each.explanation.share,
             "structure": each.explanation.structure})}
        for each, value in sorted(zip(audited, score), key=lambda pair: (-pair[1], pair[0].case))
    ]  # fmt: skip
    limit_or_none = None if np.isinf(limit) else limit
    write_json({"version": 1, "configuration": configuration, "threshold": limit_or_none, "cases": cases}, path)


def head_of(rows: Sequence[AuditRow], limit: float, cases: int) -> str:
    """The most suspicious labels as text."""
    lines = [row for row in rows if row.scope == "case"][:SHOWN]
    width = max(len(row.case) for row in lines)
    text = [f"  {'case':{width}}  score  looks like"]
    for row in lines:
        mark = "!" if row.suspicious else " "
        structure, advice = f" ({row.structure})" * bool(row.structure), f"; {row.suggestion}" * bool(row.suggestion)
        text.append(f"{mark} {row.case:{width}}  {row.score:5.1f}  {row.kind}{structure}{advice}")
    if np.isinf(limit):
        text.append(f"{cases} cases are too few to say what is usual (at least {LEAST_CASES}): ranked only")
    else:
        text.append(f"suspicious (!): above {limit:.1f}")
    return "\n".join(text)


def write_page(asked: AuditRequest) -> None:
    """Write the cross-validation's page anew, which shows the suspicious cases first."""
    from report.finishing import finish_with
    from report.writing import write_cross_validation_report

    if asked.output is not None:
        print("warning: the page shows the audit in its usual folder; with --output it is not written", file=sys.stderr)
        return
    finish_with(lambda: write_cross_validation_report(asked.results, asked.task))

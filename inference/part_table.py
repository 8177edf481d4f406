"""Which parts of a prediction are done, and what came of all of them together."""

from __future__ import annotations

import dataclasses
import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inference.mask_stamps import MadeBy
from inference.parts import PartRecord, read_record
from inference.stamp_files import read_stamps
from utils.errors import EXIT_OK, EXIT_PARTIAL, UserError
from utils.locks import is_locked
from utils.parts import Part, part_folder, parts_of
from utils.runs import RECORD

PRECISION = "the precision"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartState:
    """How a part stands; `why` says what is wrong with it, if anything."""

    part: Part
    record: PartRecord | None
    why: str = ""


def part_states(
    output: Path, count: int, cases: Sequence[str], made_by: MadeBy, *, any_precision: bool = False
) -> list[PartState]:
    """How the parts of a division stand.

    Args:
        output: folder of the masks.
        count: number of parts.
        cases: all that there are now, sorted.
        made_by: what predicts now.
        any_precision: whether parts of another precision count, as it is not known here on what they run.
    """
    records = [read_record(output, Part(index=index, count=count)) for index in range(1, count + 1)]
    done = {case for record in records if record is not None and record.state == "finished" for case in record.cases}
    states = []
    for index, record in enumerate(records, start=1):
        part = Part(index=index, count=count)
        if record is None or record.state != "finished":
            why = "not finished"
        elif differences := _differences(record.made_by, made_by, any_precision=any_precision):
            why = "; ".join(differences)
        else:
            new = [case for case in part.own(cases) if case not in done]
            why = f"{len(new)} scans came after it had finished" if new else ""
        states.append(PartState(part=part, record=record, why=why))
    return states


def _differences(before: MadeBy, now: MadeBy, *, any_precision: bool) -> list[str]:
    if any_precision:
        known = {name: value for name, value in before.settings.items() if name == PRECISION}
        now = dataclasses.replace(now, settings=now.settings | known)
    return before.differences(now)


def together(records: Sequence[PartRecord], cases: Sequence[str]) -> dict[str, Any]:
    """The outcome of all parts as that of a single run over these cases."""
    failed: Mapping[str, str] = {case: reason for record in records for case, reason in record.failed.items()}
    return {
        "scans": len(cases),
        "written": sum(record.written for record in records),
        "kept": sum(record.kept for record in records),
        "failed": {case: failed[case] for case in cases if case in failed},
        "parts": len(records),
    }


def print_status(output: Path) -> int:
    """Print how the parts stand that began last; returns the exit status: 0 where all are finished and nothing failed.

    Raises:
        UserError: no part has begun there.
    """
    begun = {part: record for part in parts_of(output) if (record := read_record(output, part)) is not None}
    if not begun:
        raise UserError(f"--status: no part has begun in {output}; give --part I/N, or --slurm with --parts N")
    count = max(begun, key=lambda part: begun[part].begun_s).count
    stamps = read_stamps(output)
    lines, counts, waiting = [("part", "state", "done", "failed", "began", "where")], Counter[str](), []
    for index in range(1, count + 1):
        part = Part(index=index, count=count)
        record = begun.get(part)
        state = _state(output, part, record)
        counts[state] += 1
        if state in ("lost", "not begun") or (record is not None and record.failed and state == "finished"):
            waiting.append(part)
        if record is None:
            lines.append((str(part), state, "", "", "", ""))
            continue
        there = sum(case in stamps and (output / f"{case}{stamps[case].ending}").is_file() for case in record.cases)
        began = datetime.datetime.fromtimestamp(record.begun_s).strftime("%Y-%m-%d %H:%M")
        where = f"{record.host}{f', job {record.job}' if record.job else ''}"
        lines.append((str(part), state, f"{there} of {len(record.cases)}", str(len(record.failed)), began, where))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip())
    print(", ".join(f"{number} {state}" for state, number in counts.items()))
    if waiting:
        print(f"to run again, each by itself: {', '.join(f'--part {part}' for part in waiting)}")
    elif counts["finished"] == count and not (output / RECORD).is_file():
        print(f"{RECORD} is missing; any part again writes it")
    return EXIT_OK if counts["finished"] == count and not waiting else EXIT_PARTIAL


def _state(output: Path, part: Part, record: PartRecord | None) -> str:
    if is_locked(part_folder(output, part)):
        return "running"
    if record is None:
        return "not begun"
    return "finished" if record.state == "finished" else "lost"

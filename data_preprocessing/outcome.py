"""What came of preprocessing: the record in `run.json`, and what is said of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_preprocessing.runner import CaseStatus
from utils.errors import EXIT_OK, EXIT_PARTIAL, list_problems
from utils.files import to_dict
from utils.runs import write_run_record
from utils.throughput import environment


def write_record(
    folder: Path, options: Mapping[str, Any], statuses: Sequence[CaseStatus], *, elapsed_s: float
) -> None:  # fmt: skip
    """Write `run.json`; if that fails, it is said and nothing else happens."""
    outcome = {"elapsed_s": round(elapsed_s, 3), "cases": {s.case: to_dict(s) for s in statuses}}
    try:
        write_run_record(folder / "run.json", options=options, environment=environment(), outcome=outcome)
    except OSError as error:
        print(f"warning: run.json could not be written: {error.strerror}", file=sys.stderr)


def report(folder: Path, statuses: Sequence[CaseStatus], *, verbose: bool) -> int:
    """Say how many cases were written, and which failed; returns the exit status."""
    if verbose:
        for status in statuses:
            print(f"{status.case}: {status.status} {status.detail}")
    counts = {kind: sum(s.status == kind for s in statuses) for kind in ("written", "kept", "failed")}
    print(f"{folder}: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    failed = [f"{s.case}: {s.detail}" for s in statuses if s.status == "failed"]
    if failed:
        title = f"{len(failed)} of {len(statuses)} cases failed:"
        advice = "Remove the cause and run the same command again; finished cases are kept."
        print(f"error: {list_problems(title, failed, advice=advice)}", file=sys.stderr)
    return EXIT_PARTIAL if failed else EXIT_OK

"""The file of results: comparisons by name, each with the runs of its sides, to which later runs are added."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.peers.harness import OURS, ratios, summary_line, table
from utils.errors import UserError
from utils.files import json_ready, write_json


def merged(old: dict[str, Any] | None, new: dict[str, Any], *, add: bool = False) -> dict[str, Any]:
    """The new record with the runs of sides that were not run now, and with `add` all earlier runs, and the ratios."""
    runs = dict((old or {}).get("runs", {}))
    for side, done in new["runs"].items():
        runs[side] = [*(runs.get(side, ()) if add else ()), *done]
    ordered = {side: runs[side] for side in sorted(runs, key=lambda side: side != OURS)}
    medians = {side: summary_line(each) for side, each in ordered.items()}
    return new | {"runs": ordered, "medians": medians, "ratios": ratios(ordered)}


def num_runs(record: dict[str, Any] | None) -> int:
    """How often a record's sides did the work, which is also the first seed that none of them had."""
    return max(map(len, (record or {}).get("runs", {}).values()), default=0)


def read(path: Path | None) -> dict[str, Any]:
    """What an earlier comparison wrote, or nothing."""
    if path is None or not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))["comparisons"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"--json {path} is no result of this script; choose another file") from None


def write(path: Path, records: dict[str, Any]) -> None:
    """The JSON file and the table beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json({"version": 1, "comparisons": json_ready(records)}, path)
    path.with_suffix(".md").write_text(table(records) + "\n", encoding="utf-8")

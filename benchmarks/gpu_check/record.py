"""The file with all numbers, whole after every case, so that whoever ends the check early loses nothing."""

from __future__ import annotations

import dataclasses
import datetime
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.findings import Finding, count
from utils.files import to_dict
from utils.runs import write_run_record
from utils.throughput import environment


class Record:
    """What was found so far, on disk too.

    Args:
        path: the file.
        options: the command's.
        device: "cuda" or "cpu".
    """

    def __init__(self, path: Path, *, options: Any, device: str) -> None:
        self.findings: list[Finding] = []
        self._path, self._options = path, to_dict(options)
        # The GPU is named by its own process, so that a broken one ends that and not this.
        self._environment = environment() | {"device": device}
        self._begun = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._start_s = time.monotonic()

    def add(self, finding: Finding) -> None:
        """One more finding."""
        self.findings.append(finding)
        if (finding.item, finding.case) == ("environment", "versions"):
            self._environment |= {name: value for name, value in finding.numbers.items() if name != "traceback"}
        self._write(finished=False)

    def finish(self) -> None:
        """All items are through."""
        self._write(finished=True)

    def _write(self, *, finished: bool) -> None:
        outcome = {
            "begun": self._begun, "elapsed_s": round(time.monotonic() - self._start_s, 1), "finished": finished,
            "verdicts": count(self.findings), "findings": [dataclasses.asdict(each) for each in self.findings],
        }  # fmt: skip
        write_run_record(self._path, options=self._options, environment=self._environment, outcome=outcome)

"""Look for everything that is wrong with a data set; with --fix write a repaired copy.

python scripts/verify_dataset.py --task 04 --data data
python scripts/verify_dataset.py --task 04 --data data --fix repaired
python scripts/verify_dataset.py --task 04 --data data --fix repaired --decisions results/04_audit/audit.csv
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.args import parse
from utils.config import TaskNumber, default_root
from utils.errors import EXIT_OK, EXIT_PARTIAL, UserError, run_cli
from utils.task_number import normalise_task


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Look for everything that is wrong with a data set. Exit status 0: no problems; 1: problems; 2: dataset.json
    cannot be used."""

    task: TaskNumber | None = None
    """Task number; not needed where --data is the data set's own folder."""
    data: Path = dataclasses.field(default_factory=lambda: default_root("data"))
    """Folder above TaskNN_Name, or that folder itself. It is only read."""
    tolerance_mm: float = 0.05
    """How far apart corners of a label and its image may lie, in mm. preprocess.py uses the default."""
    n_jobs: int | None = None
    """Processes that work at the same time, each on one case (default: one for each CPU core)."""
    fix: Path | None = None
    """New or empty folder for a copy of the data set with everything repaired that can be."""
    decisions: Path | None = None
    """With --fix: audit.csv of audit_labels.py with the column decision filled in; the copy follows it."""
    json: Path | None = None
    """File for the report: all findings, and what was read of each scan."""

    def __post_init__(self) -> None:
        normalise_task(self)
        if not self.tolerance_mm >= 0:
            raise UserError(f"--tolerance_mm must not be negative, got {self.tolerance_mm}")
        if self.n_jobs is not None and self.n_jobs < 1:
            raise UserError(f"--n_jobs must be at least 1, got {self.n_jobs}")
        if self.json is not None and not self.json.absolute().parent.is_dir():
            raise UserError(f"--json {self.json} cannot be written: {self.json.parent} is not a folder")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status (1: there are problems)."""
    options = parse(VerifyOptions, argv, prog="verify_dataset.py")
    # After --help.
    from data_preprocessing.dataset.decisions import require_table
    from data_preprocessing.dataset.verify import Wanted, verify

    if options.decisions is not None:
        require_table(options.decisions, options.fix)
    wanted = Wanted(
        tolerance_mm=options.tolerance_mm, copy=options.fix, decisions=options.decisions, report=options.json
    )  # fmt: skip
    problems = verify(options.data, options.task, wanted, n_jobs=options.n_jobs)
    return EXIT_PARTIAL if problems else EXIT_OK


if __name__ == "__main__":
    sys.exit(run_cli(main))

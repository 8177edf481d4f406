"""Find labels that are probably wrong: those that networks which have not seen them contradict.

python scripts/audit_labels.py --task 04
python scripts/verify_dataset.py --task 04 --fix repaired --decisions results/04_audit/audit.csv

It compares the labels with what scripts/cross_validate.py predicted of each case. No file of the data set is changed.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.args import parse
from utils.config import PreparedFolder, TaskNumber, default_root
from utils.errors import EXIT_OK, UserError, run_cli
from utils.task_number import normalise_task


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """Rank the labels of a data set by how much the out-of-fold predictions contradict them, and say what kind of
    error each looks like. The data set is only read."""

    task: TaskNumber
    """Task number."""
    configuration: Literal["2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"] | None = None
    """Whose predictions the labels are compared with (default: those with the highest Dice)."""
    data: PreparedFolder = dataclasses.field(default_factory=lambda: default_root("data"))
    """Folder of the preprocessed data, which know where the labels are."""
    labels: Path | None = None
    """Folder of the label files <case>.nii.gz (default: where they were when the data were preprocessed)."""
    results: Path = dataclasses.field(default_factory=lambda: default_root("results"))
    """Folder of the models, as cross_validate.py made it."""
    output: Path | None = None
    """Folder for audit.csv and audit.json (default: <results>/<task>_audit, where the page finds them)."""
    n_jobs: int | None = None
    """Processes that work at the same time, each on one case (default: one for each CPU core)."""
    report: bool = True
    """Write the page of the cross-validation anew, with the suspicious cases in its viewer."""

    def __post_init__(self) -> None:
        normalise_task(self)
        if self.n_jobs is not None and self.n_jobs < 1:
            raise UserError(f"--n_jobs must be at least 1, got {self.n_jobs}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status."""
    options = parse(AuditOptions, argv, prog="audit_labels.py")
    # After --help.
    from cross_validation.audit.run import AuditRequest, audit_labels, write_page

    asked = AuditRequest(**{name: value for name, value in vars(options).items() if name != "report"})
    audit_labels(asked)
    if options.report:
        write_page(asked)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_cli(main))

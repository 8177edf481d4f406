"""Choose the configuration, or the pair of them, that predicts unseen cases best, and its post-processing.

python scripts/find_best_configuration.py --task 04
python scripts/inference.py --input scans --output masks --model results/04_best

It compares what scripts/cross_validate.py predicted of each case with the network that had not seen it.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from report.finishing import finish_cross_validation
from utils.args import parse
from utils.config import PreparedFolder, TaskNumber, default_root
from utils.errors import EXIT_OK, UserError, run_cli
from utils.task_number import normalise_task


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestOptions:
    """Compare cross-validated configurations and their pairs, and write what new scans are predicted with."""

    task: TaskNumber
    """Task number."""
    configurations: tuple[Literal["2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"], ...] | None = None
    """Configurations to compare (default: all that have out-of-fold predictions)."""
    ensembles: bool = True
    """Compare the ensembles of two configurations as well."""
    data: PreparedFolder = dataclasses.field(default_factory=lambda: default_root("data"))
    """Folder of the preprocessed data, which know where the labels are."""
    labels: Path | None = None
    """Folder of the label files <case>.nii.gz (default: where they were when the data were preprocessed)."""
    results: Path = dataclasses.field(default_factory=lambda: default_root("results"))
    """Folder of the models, as cross_validate.py made it."""
    output: Path | None = None
    """Folder for decision.json and scores.json (default: <results>/<task>_best)."""
    n_jobs: int | None = None
    """Processes that work at the same time, each on one case (default: one for each CPU core)."""
    allow_unfinished: bool = False
    """Compare what is there where trainings were interrupted or folds are missing."""
    report: bool = True
    """Write the page of the cross-validation anew, with what was decided, unless --output leads elsewhere."""

    def __post_init__(self) -> None:
        normalise_task(self)
        if self.n_jobs is not None and self.n_jobs < 1:
            raise UserError(f"--n_jobs must be at least 1, got {self.n_jobs}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status."""
    options = parse(BestOptions, argv, prog="find_best_configuration.py")
    # After --help.
    from cross_validation.decide import Comparison, find_best

    find_best(Comparison(**{name: value for name, value in vars(options).items() if name != "report"}))
    if options.report and options.output is None:
        finish_cross_validation(options.results, options.task)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_cli(main))

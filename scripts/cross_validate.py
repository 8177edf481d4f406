"""Train all folds of one or several configurations, and predict every training case with the fold that has not seen it.

python scripts/cross_validate.py --task 04 --configurations 2d 3d_fullres -- --epochs 200 --amp
python scripts/cross_validate.py --task 04 --configurations 3d_cascade_fullres --slurm jobs -- --epochs 200

Flags after `--` go to main.py. The same command again continues where the first was stopped.
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
from utils.errors import UserError, run_cli
from utils.slurm_resources import SlurmJobOptions
from utils.task_number import normalise_task


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossValidateOptions:
    """Train the folds of configurations and write out-of-fold predictions. Flags after -- go to main.py.

    Stopped at any point, the same command continues. Exit status 0: all runs are finished; 1: some failed.
    """

    task: TaskNumber
    """Task number."""
    configurations: tuple[Literal["2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"], ...] = ("3d_fullres",)
    """What to train. 3d_cascade_fullres trains all folds of 3d_lowres first, unless they are finished."""
    folds: tuple[int, ...] | None = None
    """Folds to run (default: all)."""
    nfolds: int | None = None
    """Number of folds (default: those that preprocess.py made)."""
    data: PreparedFolder = dataclasses.field(default_factory=lambda: default_root("data"))
    """Folder of the preprocessed data."""
    results: Path = dataclasses.field(default_factory=lambda: default_root("results"))
    """Folder in which <task>_<configuration> and <task>_cross_validation.json are made."""
    gpus: int | None = None
    """GPUs to use, each for one run at a time (default: all there are; 0: one run after the other on the CPU)."""
    nodes: int = 1
    """With --slurm: nodes of each training, which uses --gpus GPUs of each (default: 1; 0: their CPUs). They
    share a file system."""
    prepare: bool = False
    """Only make the data of 3d_cascade_fullres from finished folds of 3d_lowres (a job of --slurm)."""
    checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint of each training predicts the cases that it has not seen, and later new scans. best was chosen
    by these very cases, so that its scores are too high. To change it trains nothing anew."""
    overwrite: bool = False
    """Remove earlier results of these runs and train anew; to continue such a command, leave this flag out."""
    report: bool = True
    """Write a page about all that is finished, <task>_report.html in --results."""
    cluster: SlurmJobOptions = dataclasses.field(default_factory=SlurmJobOptions)

    def __post_init__(self) -> None:
        normalise_task(self)
        if not self.configurations:
            raise UserError("--configurations must name at least one configuration")
        if self.nfolds is not None and self.nfolds < 2:
            raise UserError(f"--nfolds must be at least 2, got {self.nfolds}")
        if self.gpus is not None and self.gpus < 0:
            raise UserError(f"--gpus must not be negative, got {self.gpus}")
        if self.cluster.slurm is not None and self.overwrite:
            raise UserError("--overwrite and --slurm contradict each other: a requeued job would begin anew each time")
        if self.nodes < 1:
            raise UserError(f"--nodes must be at least 1, got {self.nodes}")
        if self.cluster.slurm is not None and (self.gpus or 0) > 1 and self.nodes == 1:
            raise UserError(f"--gpus {self.gpus} and --slurm contradict each other: each job is one run on one GPU")
        if self.prepare and (self.cluster.slurm is not None or self.overwrite):
            raise UserError("--prepare makes the cascade's data only; leave out --slurm and --overwrite")
        if self.prepare and "3d_cascade_fullres" not in self.configurations:
            raise UserError("--prepare needs --configurations 3d_cascade_fullres: no other data are made here")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    options = parse(CrossValidateOptions, words[:cut], prog="cross_validate.py")
    # After --help.
    from cross_validation.jobs import RunSelection
    from cross_validation.nodes import Nodes
    from cross_validation.run import CrossValidation, cross_validate, prepare_cascade, write_slurm

    selection = RunSelection(
        task=options.task, configurations=options.configurations, folds=options.folds, data=options.data,
        results=options.results, overwrite=options.overwrite, checkpoint=options.checkpoint,
        nodes=Nodes(count=options.nodes, gpus=1 if options.gpus is None or options.nodes == 1 else options.gpus),
    )  # fmt: skip
    passed = tuple(words[cut + 1 :])
    asked = CrossValidation(
        selection=selection, passed=passed, nfolds=options.nfolds, gpus=options.gpus, page=options.report
    )
    if options.cluster.slurm is not None:
        return write_slurm(asked, options.cluster.slurm, options.cluster.resources())
    return prepare_cascade(asked) if options.prepare else cross_validate(asked)


if __name__ == "__main__":
    sys.exit(run_cli(main))

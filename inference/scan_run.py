"""Raw scans to masks, many of them: what to do, how much memory it takes, and what became of each scan."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_preprocessing.restoration import SlabRestorer
from inference.mask_folder import MASK, MaskFolder
from inference.mask_stamps import made_by
from inference.memory import PROGRAM_BYTES, Forecast, forecast_stages, free_memory_bytes
from inference.output_folder import refuse_scans_as_output
from inference.postprocessing import keep_largest
from inference.predictor import Predictor
from inference.preparing import PreparedScan
from inference.scans import Scan, find_scans, unread_scans
from utils.disk import size_text
from utils.errors import EXIT_OK, EXIT_PARTIAL, UserError, describe_error
from utils.files import write_json
from utils.nifti import read_header, read_image, to_working, working_grid
from utils.pipeline import MemoryGate, Outcome, Stages, run_pipeline
from utils.reserved import array_bytes
from utils.room import require_room
from utils.runs import prepare_folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanJob:
    """What to predict, with which model, and where masks go."""

    input: Path
    output: Path
    model: Path
    folds: tuple[int, ...] | None
    save_probabilities: bool
    overwrite: bool
    memory_gb: float | None
    """Memory that scans in flight may take together; None: half of what is free."""
    postprocessing: bool = True
    """Apply the post-processing that the model was chosen with."""
    allow_unfinished: bool = False
    """Use interrupted trainings, and folds of which some are missing."""


class ScanRun:
    """Predicts the scans of a job; everything that a user can get wrong shows before the first scan is read.

    Args:
        job: what to do.
        predictors: one per device, of the same model.
        scans: those to predict; None finds them in the job's input.
        other_bytes: memory that is taken besides, by the weights of other configurations.
        told: scans of which a run for another configuration said what is odd; this one adds its own.

    Raises:
        UserError: no scans, or files in the output folder that would be lost.
    """

    hidden: Path | None = None
    """No folder for what an ensemble keeps in between."""

    def __init__(
        self,
        job: ScanJob,
        predictors: Sequence[Predictor],
        scans: Sequence[Scan] | None = None,
        other_bytes: int = 0,
        told: set[str] | None = None,
    ) -> None:
        self.job, self.predictors, self._other_bytes = job, predictors, other_bytes
        self.plan, self.settings = predictors[0].plan, predictors[0].settings
        self.scans = list_scans(job, len(self.plan.channels)) if scans is None else scans
        prepare_folder(job.output, "--output")
        by = made_by(predictors[:1], predictors[0].post_processing)
        self.masks = MaskFolder(job.output, by, overwrite=job.overwrite)
        self.waiting = self.masks.unfinished(self.scans, save_probabilities=job.save_probabilities)
        self.forecasts = {scan.case: self._forecast(scan) for scan in self.waiting}
        self._told = set() if told is None else told
        self._reported = 0

    def run(self) -> tuple[int, dict]:
        """Predict; returns the exit status and a summary."""
        kept = len(self.scans) - len(self.waiting)
        if kept:
            print(f"{kept} of {len(self.scans)} scans have been predicted before (--overwrite predicts them again)")
        self.masks.begin()
        if self.job.save_probabilities:
            # With the label scheme, for whoever averages these probabilities with others.
            write_json(self.plan, self.job.output / "plan.json")
            self._warn_of_full_disk()
        outcomes = run_pipeline(
            self.waiting,
            [Stages(read=self._read, compute=each.stream, write=self._write) for each in self.predictors],
            size=lambda scan: self._case_bytes(scan.case),
            gate=MemoryGate(self._budget_bytes()),
            report=self._report,
        )
        failed = {outcome.case.case: describe_error(outcome.error) for outcome in outcomes if outcome.error is not None}
        written = len(outcomes) - len(failed)
        print(f"{written} written, {kept} kept, {len(failed)} failed: {self.job.output}", flush=True)
        if failed:
            print("these scans could not be predicted:", file=sys.stderr)
            for case, reason in failed.items():
                print(f"  - {case}: {reason}", file=sys.stderr)
        summary = {"scans": len(self.scans), "written": written, "kept": kept, "failed": failed}
        return EXIT_PARTIAL if failed else EXIT_OK, summary

    def _forecast(self, scan: Scan) -> Forecast | None:
        """None for a file whose header cannot be read, which fails when its turn comes."""
        try:
            shape, affine = read_header(scan.images[0])
        except UserError:
            return None
        if len(shape) not in (3, 4) or min(shape) < 1:
            return None
        grid, spacing_mm = working_grid(shape, affine)
        return forecast_stages(self.predictors[0], grid, spacing_mm)

    def _case_bytes(self, case: str) -> int:
        forecast = self.forecasts[case]
        return 0 if forecast is None else forecast.peak_bytes

    def _budget_bytes(self) -> float:
        """Decide and say how much memory the scans may take together."""
        free = free_memory_bytes()
        budget = free / 2 if self.job.memory_gb is None else self.job.memory_gb * 1e9
        case = max(self.forecasts, key=lambda name: self._case_bytes(name), default=None)
        if case is None:
            return budget
        weights = self._other_bytes + sum(predictor.weight_bytes for predictor in self.predictors)
        largest = self._case_bytes(case)
        needed = largest + weights + PROGRAM_BYTES
        print(
            f"memory: at most {needed / 1e9:.1f} GB for the largest scan ({case}), of which {weights / 1e9:.2f} GB are "
            f"weights; {free / 1e9:.1f} GB are free, scans overlap within {max(budget, largest) / 1e9:.1f} GB",
            flush=True,
        )
        if largest + weights > free:
            print(f"warning: {case} may not fit into memory; close other programs", file=sys.stderr)
        return budget

    def _warn_of_full_disk(self) -> None:
        """Say before the work that not all probabilities will fit; which scans fail shows in their turn."""
        needed, free = sum(map(self._disk_bytes, self.waiting)), shutil.disk_usage(self.job.output).free
        if needed > free:
            print(
                f"warning: the probabilities of {len(self.waiting)} scans need {size_text(needed)} of disk, "
                f"{size_text(free)} are free in {self.job.output}; make room, or some scans will fail",
                file=sys.stderr, flush=True,
            )  # fmt: skip

    def _disk_bytes(self, scan: Scan) -> int:
        """Of a scan's probabilities; 0 for a file that cannot be read, which fails in its turn."""
        try:
            shape, _ = read_header(scan.images[0])
        except UserError:
            return 0
        return array_bytes((self.plan.labels.num_outputs, *shape[:3]))

    def _read(self, scan: Scan) -> PreparedScan:
        if scan.problem is not None:
            raise UserError(scan.problem)
        if self.job.save_probabilities:
            require_room(self.job.output, self._disk_bytes(scan), f"the probabilities of {scan.case}")
        volume, quiet = read_image(scan.images), scan.case in self._told
        self._told.add(scan.case)
        return self.predictors[0].prepare(volume, str(scan.images[0]), quiet=quiet)

    def _write(self, scan: Scan, prepared: PreparedScan, slabs: Iterator[np.ndarray]) -> Path:
        target, geometry = self.job.output / f"{scan.case}{MASK}", prepared.meta.geometry
        shape = (self.plan.labels.num_outputs, *reversed(geometry.shape_xyz)) if self.job.save_probabilities else None
        with self.masks.writing(scan, shape) as files:
            # They lie in their file and not in memory.
            stored = files.probabilities
            working = None if stored is None else to_working(stored.swapaxes(-1, -3), geometry.affine)
            restorer = SlabRestorer(prepared.meta, self.plan, working)
            for slab in slabs:
                restorer.add(slab)
            mask = keep_largest(restorer.finish(), self.plan.labels, self.predictors[0].post_processing)
            files.write(mask, geometry)
        return target

    def _report(self, outcome: Outcome) -> None:
        self._reported += 1
        where = f"[{self._reported}/{len(self.waiting)}] {outcome.case.case}"
        if outcome.error is None:
            print(f"{where}: {outcome.seconds:.1f} s", flush=True)
        else:
            print(f"{where}: failed: {describe_error(outcome.error)}", flush=True)


def list_scans(job: ScanJob, num_channels: int) -> list[Scan]:
    """The scans of a job.

    Raises:
        UserError: there are none, or masks would land among them.
    """
    scans = find_scans(job.input, num_channels)
    refuse_scans_as_output(scans, job.output)
    for line in unread_scans(job.input):
        print(f"warning: left out of {job.input}: {line}", file=sys.stderr)
    return list(scans)

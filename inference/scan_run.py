"""Raw scans to masks, many of them: what to do, how much memory it takes, and what became of each scan."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from inference.doubt_files import Doubts, Watch, summary_line
from inference.mask_folder import MASK, MaskFolder, listed
from inference.mask_stamps import made_by
from inference.memory import PROGRAM_BYTES, Forecast, forecast_predictor, free_memory_bytes
from inference.output_folder import refuse_scans_as_output
from inference.predictor import Predictor, Slab
from inference.preparing import PreparedScan
from inference.progress import Progress
from inference.scans import Scan, find_scans, unread_scans
from inference.soft_output import soft_folders, write_soft
from utils.disk import size_text
from utils.errors import EXIT_OK, EXIT_PARTIAL, UserError, describe_error
from utils.files import write_json
from utils.nifti import read_header, read_image, working_grid
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
    save_soft: tuple[str, ...] = ()
    """Targets whose mean probability is written as a map."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ReadScan:
    """A scan that has been read: prepared for each configuration, and watched from there on."""

    scan: Scan
    prepared: list[PreparedScan]
    watch: Watch


class ScanRun:
    """Predicts the scans of a job; everything that a user can get wrong shows before the first scan is read.

    Args:
        job: what to do.
        predictors: one per device, of the same model.
        scans: those to predict; None finds them in the job's input.

    Raises:
        UserError: no scans, or files in the output folder that would be lost.
    """

    def __init__(self, job: ScanJob, predictors: Sequence[Predictor], scans: Sequence[Scan] | None = None) -> None:
        self.job, self.predictors = job, predictors
        self.plan, self.adds_up = predictors[0].plan, predictors[0].adds_up
        self.scans = list_scans(job, len(self.plan.channels)) if scans is None else scans
        prepare_folder(job.output, "--output")
        self.masks = MaskFolder(job.output, made_by(predictors[0]), overwrite=job.overwrite)
        self.waiting = self.masks.unfinished(self.scans, save_probabilities=job.save_probabilities)
        self.forecasts = {scan.case: self._forecast(scan) for scan in self.waiting}
        self.doubts = Doubts(job.output, predictors[0])
        self.soft = soft_folders(job.output, job.save_soft, self.plan.labels)
        self._needs_array = job.save_probabilities or self.adds_up or bool(self.soft)
        self._progress, self._reported = Progress(), 0

    def run(self) -> tuple[int, dict[str, Any]]:
        """Predict; returns the exit status and a summary."""
        kept = len(self.scans) - len(self.waiting)
        if kept:
            print(f"{kept} of {len(self.scans)} scans have been predicted before (--overwrite predicts them again)")
        self.masks.begin()
        if self.job.save_probabilities:
            # With the label scheme, for whoever averages these probabilities with others.
            write_json(self.plan, self.job.output / "plan.json")
            self._warn_of_full_disk()
        for text in self.doubts.warnings:
            print(f"warning: {text}", file=sys.stderr)
        outcomes = run_pipeline(
            self.waiting,
            [Stages(read=self._read, compute=self._compute(each), write=self._write) for each in self.predictors],
            size=lambda scan: self._case_bytes(scan.case),
            gate=MemoryGate(self._budget_bytes()),
            report=self._report,
        )
        failed = {outcome.case.case: describe_error(outcome.error) for outcome in outcomes if outcome.error is not None}
        written = len(outcomes) - len(failed)
        self._progress.say(f"{written} written, {kept} kept, {len(failed)} failed: {self.job.output}")
        summary = {"scans": len(self.scans), "written": written, "kept": kept, "failed": failed}
        records = self.doubts.finish(scan.case for scan in self.scans if scan.case not in failed)
        if records:
            print(summary_line(records))
            doubtful = [record.case for record in records if record.doubtful]
            summary |= {"doubtful": doubtful} if doubtful else {}
        lacking = [each.case for each in self.scans if each.case not in failed and not self._has_soft(each.case)]
        if lacking:
            print(f"warning: no --save_soft map of {listed(lacking)}, predicted before; --overwrite", file=sys.stderr)
        if failed:
            print(f"{len(failed)} of {len(outcomes)} scans could not be predicted:", file=sys.stderr)
            for case, reason in failed.items():
                print(f"  - {case}: {reason}", file=sys.stderr)
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
        return forecast_predictor(self.predictors[0], grid, spacing_mm, affine)

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
        weights = sum(predictor.weight_bytes for predictor in self.predictors)
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

    def _has_soft(self, case: str) -> bool:
        return all((folder / f"{case}{MASK}").is_file() for folder in self.soft.values())

    def _read(self, scan: Scan) -> ReadScan:
        if scan.problem is not None:
            raise UserError(scan.problem)
        if self._needs_array:
            require_room(self.job.output, self._disk_bytes(scan), f"the probabilities of {scan.case}")
        prepared = self.predictors[0].prepare(read_image(scan.images), str(scan.images[0]))
        return ReadScan(scan=scan, prepared=prepared, watch=self.doubts.begin(prepared))

    def _compute(self, predictor: Predictor) -> Callable[[ReadScan], Iterator[Slab]]:
        def compute(item: ReadScan) -> Iterator[Slab]:
            count = self._progress.begin(item.scan.case, predictor.work(item.prepared))
            return predictor.stream(item.prepared, count, item.watch.counters)

        return compute

    def _write(self, scan: Scan, item: ReadScan, slabs: Iterator[Slab]) -> Path:
        geometry, predictor = item.prepared[0].geometry, self.predictors[0]
        kept = self.job.save_probabilities
        stored_shape = (self.plan.labels.num_outputs, *reversed(geometry.shape_xyz)) if self._needs_array else None
        with self.masks.writing(scan, stored_shape, keep=kept) as files:
            # The probabilities lie in their file and not in memory.
            mask = predictor.finish(predictor.collect(slabs, files.probabilities))
            if files.probabilities is not None:
                write_soft(self.soft, scan.case, files.probabilities, geometry)
            self.doubts.write(scan.case, item.watch, mask, item.prepared)
            files.write(mask, geometry)
        return self.job.output / f"{scan.case}{MASK}"

    def _report(self, outcome: Outcome) -> None:
        self._reported += 1
        where = f"[{self._reported}/{len(self.waiting)}] {outcome.case.case}"
        done = f"{outcome.seconds:.1f} s" if outcome.error is None else f"failed: {describe_error(outcome.error)}"
        self._progress.say(f"{where}: {done}")


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

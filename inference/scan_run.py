"""Raw scans to masks, many of them: what to do, how much memory it takes, and what became of each scan."""

from __future__ import annotations

import dataclasses
import functools
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from inference.dicom.segmentation import load_highdicom, segments_of, write_segmentation
from inference.doubt_files import Doubts, Watch, summary_line
from inference.mask_folder import MaskFolder, listed
from inference.mask_formats import DICOM_ENDINGS, mask_ending
from inference.mask_stamps import made_by
from inference.memory import PROGRAM_BYTES, Forecast, forecast_predictor, free_memory_bytes
from inference.naming import describe_anonymously, name_anonymously, naming_nobody
from inference.output_folder import refuse_format, refuse_scans_as_output
from inference.predictor import Predictor, Slab
from inference.preparing import PreparedScan
from inference.progress import Progress
from inference.scans import Scan, find_input, with_reference
from inference.soft_output import SOFT_ENDING, soft_files, soft_folders, write_soft
from utils.certainty import DOUBT_ENDING
from utils.disk import size_text
from utils.errors import EXIT_OK, EXIT_PARTIAL, UserError, describe_error
from utils.files import write_json
from utils.nifti import working_grid, write_mask
from utils.parts import Part, Place
from utils.pipeline import MemoryGate, Outcome, Stages, StoppedCaseError, run_pipeline
from utils.reserved import array_bytes
from utils.room import require_room
from utils.runs import prepare_folder
from utils.scan_formats import require_package


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
    output_format: str | None = None
    """Of the masks (see `mask_formats.ENDINGS`); None: that of the scan."""
    segment_codes: Path | None = None
    """JSON file with codes for the segments of DICOM-SEG."""
    anonymous: bool = False
    """Call scans scan_0001 and so on, everywhere."""
    anonymous_map: Path | None = None
    """File for which scan has which of these names."""
    unpacked: Path | None = None
    """Where the input lies if it was an archive."""
    dicom_channels: tuple[str, ...] = ()
    """Which DICOM series of a study is which channel (see `dicom.channels`)."""
    save_soft: tuple[str, ...] | None = None
    """Targets whose mean probability is written as a map; none of them named: all; None: no maps."""
    part: Part | None = None
    """Only this part of the scans, beside others that do the rest."""
    neighbours: int = 1
    """Processes that share the memory of this machine."""


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
        place: where it works; by default it has the output folder for itself.

    Raises:
        UserError: no scans, or files in the output folder that would be lost.
    """

    def __init__(
        self, job: ScanJob, predictors: Sequence[Predictor], scans: Sequence[Scan] | None = None,
        place: Place | None = None,
    ) -> None:  # fmt: skip
        self.job, self.predictors, self._is_part = job, predictors, place is not None and place.part is not None
        self.plan, self.adds_up = predictors[0].plan, predictors[0].adds_up
        self.scans = list_scans(job, len(self.plan.channels)) if scans is None else scans
        prepare_folder(job.output, "--output")
        self.masks = MaskFolder(job.output, made_by(predictors[0]), overwrite=job.overwrite, place=place)
        self.waiting = self.masks.unfinished(self.scans, save_probabilities=job.save_probabilities)
        merge, labels = predictors[0].merge, self.plan.labels
        classes = dict(zip(labels.names[1:], labels.values[1:])) if merge is None else merge.labels
        self.segments = segments_of(classes, job.segment_codes)
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
        failed = {each.case.case: self._describe(each.case, each.error) for each in outcomes if each.error is not None}
        written = len(outcomes) - len(failed)
        self._progress.say(f"{written} written, {kept} kept, {len(failed)} failed: {self.job.output}")
        summary = {"scans": len(self.scans), "written": written, "kept": kept, "failed": failed}
        if not self._is_part:
            self.masks.gather()
        there = [scan.case for scan in self.scans if scan.case not in failed]
        # Parts leave the table to whoever ends last.
        records = self.doubts.finish(there, edited=self.masks.edited(there), table=not self._is_part)
        if records:
            if not self._is_part:
                print(summary_line(records))
            doubtful = [record.case for record in records if record.doubtful]
            summary |= {"doubtful": doubtful} if doubtful else {}
        known = {record.case for record in records}
        if silent := [case for case in there if case not in known]:
            print(
                f"warning: no doubt of {listed(silent)}: predicted by an earlier version, or {DOUBT_ENDING} is damaged;"
                " --overwrite", file=sys.stderr,
            )  # fmt: skip
        if lacking := [case for case in there if not self._has_soft(case)]:
            print(f"warning: no --save_soft map of {listed(lacking)}, predicted before; --overwrite", file=sys.stderr)
        if failed:
            print(f"{len(failed)} of {len(outcomes)} scans could not be predicted:", file=sys.stderr)
            for case, reason in failed.items():
                print(f"  - {case}: {reason}", file=sys.stderr)
        return EXIT_PARTIAL if failed else EXIT_OK, summary

    def _forecast(self, scan: Scan) -> Forecast | None:
        """None for a file whose header cannot be read or cannot be, which fails when its turn comes."""
        try:
            shape, affine = scan.header()
            if len(shape) not in (3, 4) or min(shape) < 1:
                return None
            grid, spacing_mm = working_grid(shape, affine)
            return forecast_predictor(self.predictors[0], grid, spacing_mm, affine)
        except UserError:
            return None

    def _case_bytes(self, case: str) -> int:
        forecast = self.forecasts[case]
        return 0 if forecast is None else forecast.peak_bytes

    def _budget_bytes(self) -> float:
        """Decide and say how much memory the scans may take together."""
        free = free_memory_bytes()
        budget = free / 2 / self.job.neighbours if self.job.memory_gb is None else self.job.memory_gb * 1e9
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
            shape, _ = scan.header()
        except UserError:
            return 0
        return array_bytes((self.plan.labels.num_outputs, *shape[:3]))

    def _has_soft(self, case: str) -> bool:
        return all((folder / f"{case}{SOFT_ENDING}").is_file() for folder in self.soft.values())

    def _read(self, scan: Scan) -> ReadScan:
        if scan.problem is not None:
            raise UserError(scan.problem)
        if self._needs_array:
            require_room(self.job.output, self._disk_bytes(scan), f"the probabilities of {scan.case}")
        prepared = self.predictors[0].prepare(scan.read(), scan.title)
        return ReadScan(scan=scan, prepared=prepared, watch=self.doubts.begin(prepared))

    def _compute(self, predictor: Predictor) -> Callable[[ReadScan], Iterator[Slab]]:
        def compute(item: ReadScan) -> Iterator[Slab]:
            count = self._progress.begin(item.scan.case, predictor.work(item.prepared))
            return predictor.stream(item.prepared, count, item.watch.counters)

        return compute

    def _write(self, scan: Scan, item: ReadScan, slabs: Iterator[Slab]) -> Path:
        geometry, predictor = item.prepared[0].geometry, self.predictors[0]
        stored_shape = (self.plan.labels.num_outputs, *reversed(geometry.shape_xyz)) if self._needs_array else None
        # Maps of other targets that the same prediction made stay.
        maps = [] if self.masks.holds(scan) else soft_files(self.job.output, scan.case)
        old = [self.doubts.path(scan.case), *maps]
        with self.masks.writing(scan, stored_shape, keep=self.job.save_probabilities, old=old) as files:
            # The probabilities lie in their file and not in memory.
            mask = predictor.finish(predictor.collect(slabs, files.probabilities, item.watch.agreement))
            if files.probabilities is not None:
                write_soft(self.soft, scan.case, files.probabilities, geometry, files.name_beside)
            write_json(
                self.doubts.say(scan.case, item.watch, mask, item.prepared),
                files.name_beside(self.doubts.path(scan.case)),
            )
            files.write(mask, geometry, self._writer(scan))
        return self.job.output / f"{scan.case}{scan.mask_ending}"

    def _describe(self, scan: Scan, error: Exception) -> str:
        return describe_anonymously(error, scan) if self.job.anonymous else describe_error(error)

    def _writer(self, scan: Scan) -> Callable[..., None]:
        """What writes the mask of a scan."""
        if scan.series is None or self.job.output_format not in DICOM_ENDINGS:
            return write_mask
        return functools.partial(
            write_segmentation, series=scan.series, segments=self.segments, anonymous=self.job.anonymous,
            labelmap=self.job.output_format == "dicom-seg-labelmap",
        )  # fmt: skip

    def _report(self, outcome: Outcome) -> None:
        self._reported += 1
        part = "" if self.job.part is None else f"part {self.job.part} "
        where = f"{part}[{self._reported}/{len(self.waiting)}] {outcome.case.case}"
        error = outcome.error
        done = f"{outcome.seconds:.1f} s" if error is None else f"failed: {self._describe(outcome.case, error)}"
        done = "interrupted" if isinstance(error, StoppedCaseError) else done
        self._progress.say(f"{where}: {done}")


def list_scans(job: ScanJob, num_channels: int) -> list[Scan]:
    """The scans of a job, with the format of their masks.

    Raises:
        UserError: there are none, masks would land among them, or cannot have the format.
    """
    with naming_nobody(job.anonymous, (), lists=True):
        found = find_input(job.unpacked or job.input, num_channels, job.dicom_channels)
        scans = [
            dataclasses.replace(scan, mask_ending=mask_ending(scan.images[0], job.output_format))
            for scan in found.scans
        ]
        left_out: Sequence[str] = found.left_out
        if job.anonymous:
            scans = name_anonymously(scans, job.anonymous_map)
            left_out = [f"{len(left_out)} files or folders"] if left_out else []
    refuse_scans_as_output(scans, job.output)
    refuse_format(scans, job.output_format)
    require_package(path for scan in scans for path in (*scan.images, Path(f"{scan.case}{scan.mask_ending}")))
    if job.output_format in DICOM_ENDINGS:
        load_highdicom()
        scans = list(map(with_reference, scans))
    for line in left_out:
        print(f"warning: left out of {'the input' if job.anonymous else job.input}: {line}", file=sys.stderr)
    for scan in scans:
        for remark in scan.remarks:
            print(f"warning: {scan.case}: {remark}", file=sys.stderr)
    return scans

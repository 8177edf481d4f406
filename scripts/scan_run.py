"""Raw scans to masks, many of them: what to do, how much memory it takes, and what became of each scan."""

from __future__ import annotations

import dataclasses
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from data_preprocessing.restoration import SlabRestorer
from data_preprocessing.scans import Scan, find_scans
from models.bundle import ModelBundle
from models.export import load_model
from scripts.forecast import PROGRAM_BYTES, Forecast, forecast_memory, free_memory_bytes
from scripts.predictor import Predictor, PreparedScan, prepare_scan
from utils.errors import EXIT_OK, EXIT_PARTIAL, UserError
from utils.files import write_json
from utils.nifti import read_header, read_image, to_working, working_grid, write_mask
from utils.pipeline import MemoryGate, Outcome, Stages, run_pipeline
from utils.runs import prepare_folder, write_run_record
from utils.runtime import Runtime
from utils.schema import Geometry

MASK, PROBABILITIES = ".nii.gz", ".npy"


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


class ScanRun:
    """Predicts the scans of a job; everything that a user can get wrong shows before the first scan is read.

    Args:
        job: what to do.
        predictors: one per device, of the same model.
    """

    def __init__(self, job: ScanJob, predictors: Sequence[Predictor]) -> None:
        self.job, self.predictors = job, predictors
        self.plan, self.settings = predictors[0].plan, predictors[0].settings
        self.scans = find_scans(job.input, len(self.plan.channels))
        folder = job.output.resolve()
        if any(image.resolve().parent == folder for scan in self.scans for image in scan.images):
            raise UserError(f"--output {job.output} is the folder of the scans; choose another one")
        prepare_folder(job.output, "--output")
        self.waiting = [scan for scan in self.scans if job.overwrite or not self._is_done(scan)]
        self.forecasts = {scan.case: self._forecast(scan) for scan in self.waiting}
        self._reported = 0

    def run(self) -> tuple[int, dict]:
        """Predict; returns the exit status and a summary."""
        kept = len(self.scans) - len(self.waiting)
        if kept:
            print(f"{kept} of {len(self.scans)} scans have been predicted before (--overwrite predicts them again)")
        if self.job.save_probabilities:
            # With the label scheme, for whoever averages these probabilities with others.
            write_json(self.plan, self.job.output / "plan.json")
        outcomes = run_pipeline(
            self.waiting,
            [Stages(read=self._read, compute=each.stream, write=self._write) for each in self.predictors],
            size=lambda scan: self._case_bytes(scan.case),
            gate=MemoryGate(self._budget_bytes()),
            report=self._report,
        )
        failed = {outcome.case.case: _describe(outcome.error) for outcome in outcomes if outcome.error is not None}
        written = len(outcomes) - len(failed)
        print(f"{written} written, {kept} kept, {len(failed)} failed: {self.job.output}", flush=True)
        if failed:
            print("these scans could not be predicted:", file=sys.stderr)
            for case, reason in failed.items():
                print(f"  - {case}: {reason}", file=sys.stderr)
        summary = {"scans": len(self.scans), "written": written, "kept": kept, "failed": failed}
        return EXIT_PARTIAL if failed else EXIT_OK, summary

    def _is_done(self, scan: Scan) -> bool:
        suffixes = [MASK, PROBABILITIES] if self.job.save_probabilities else [MASK]
        return all((self.job.output / f"{scan.case}{suffix}").is_file() for suffix in suffixes)

    def _forecast(self, scan: Scan) -> Forecast | None:
        """None for a file whose header cannot be read, which fails when its turn comes."""
        try:
            shape, affine = read_header(scan.images[0])
        except UserError:
            return None
        if len(shape) not in (3, 4) or min(shape) < 1:
            return None
        grid, spacing_mm = working_grid(shape, affine)
        first = self.predictors[0]
        return forecast_memory(
            grid, spacing_mm, plan=self.plan, settings=self.settings, num_networks=len(first.ensemble.networks),
            on_gpu=first.ensemble.device.type != "cpu",
        )  # fmt: skip

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

    def _read(self, scan: Scan) -> PreparedScan:
        if scan.problem is not None:
            raise UserError(scan.problem)
        return prepare_scan(read_image(scan.images), self.plan, str(scan.images[0]))

    def _write(self, scan: Scan, prepared: PreparedScan, slabs: Iterator[np.ndarray]) -> Path:
        target, geometry = self.job.output / f"{scan.case}{MASK}", prepared.meta.geometry
        with self._probabilities(scan, geometry) as probabilities:
            restorer = SlabRestorer(prepared.meta, self.plan, probabilities)
            for slab in slabs:
                restorer.add(slab)
            mask = restorer.finish()
        # The mask comes last: where it is, the case is done.
        write_mask(target, mask, geometry)
        return target

    @contextmanager
    def _probabilities(self, scan: Scan, geometry: Geometry) -> Iterator[np.ndarray | None]:
        """Zeros (K, S, A, R) to be filled, in a file (K, z, y, x) of the scan's voxel order that appears at the end.

        They lie in the file and not in memory.
        """
        if not self.job.save_probabilities:
            yield None
            return
        target = self.job.output / f"{scan.case}{PROBABILITIES}"
        temporary = target.with_name(f".tmp-{secrets.token_hex(8)}{PROBABILITIES}")
        shape = (self.plan.labels.num_outputs, *reversed(geometry.shape_xyz))
        try:
            stored = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape, version=(1, 0))
            yield to_working(stored.swapaxes(-1, -3), geometry.affine)
            stored.flush()
            del stored
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def _report(self, outcome: Outcome) -> None:
        self._reported += 1
        where = f"[{self._reported}/{len(self.waiting)}] {outcome.case.case}"
        if outcome.error is None:
            print(f"{where}: {outcome.seconds:.1f} s", flush=True)
        else:
            print(f"{where}: failed: {_describe(outcome.error)}", flush=True)


def predict_scans(job: ScanJob, runtime: Runtime, make: Callable[[ModelBundle, torch.device], Predictor]) -> int:
    """Run a job on the devices of `runtime`; returns the exit status.

    Raises:
        UserError: no such model, fold or scan, or a folder that cannot be written to.
    """
    bundle = load_model(job.model, job.folds)
    if bundle.decision is not None:
        print("warning: the model's decision on post-processing is not applied", file=sys.stderr)
    devices = [torch.device("cuda", index) for index in range(runtime.devices)] if runtime.use_gpu else [runtime.device]
    run = ScanRun(job, [make(bundle, device) for device in devices])
    names = ", ".join(fold.name for fold in bundle.folds)
    place = f"{len(devices)} GPU(s)" if runtime.use_gpu else "the CPU"
    print(
        f"model: {bundle.plan.dataset}, {bundle.plan.stage.name}, {names}; on {place}, {runtime.precision}", flush=True
    )
    status, outcome = run.run()
    options = {**dataclasses.asdict(job), "settings": dataclasses.asdict(run.settings)}
    environment = {**runtime.environment(), "precision": runtime.precision}
    environment["peak_memory_bytes"] = runtime.peak_memory_bytes()
    write_run_record(job.output / "run.json", options=options, environment=environment, outcome=outcome)
    return status


def _describe(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"not enough memory ({error})"
    return f"{type(error).__name__}: {error}"

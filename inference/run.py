"""Raw scans to masks with whatever a model is made of: one configuration, or an ensemble of several."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch

from inference.archive import load_model
from inference.decision import PostProcessing
from inference.mask_folder import MASK, PROBABILITIES, MaskFolder
from inference.mask_stamps import made_by, scan_stamp
from inference.model import ModelBundle
from inference.model_set import ModelSet
from inference.output_folder import refuse_other_programs, remove_strays, warn_of_others
from inference.postprocessing import keep_largest
from inference.predictor import Predictor, warn_of_flips
from inference.saved import mean_planes, saved_classes, saved_member
from inference.scan_run import ScanJob, ScanRun, list_scans
from inference.scans import Scan
from utils.disk import size_text
from utils.errors import EXIT_OK, EXIT_PARTIAL, UserError
from utils.files import write_json
from utils.locks import folder_lock
from utils.nifti import read_header, read_label, to_working
from utils.pages import give_back_pages
from utils.reserved import array_bytes
from utils.runs import prepare_folder, write_run_record
from utils.runtime import Runtime

Maker = Callable[[ModelBundle, torch.device], Predictor]


def predict_scans(job: ScanJob, runtime: Runtime, make: Maker) -> int:
    """Run a job on the devices of `runtime`; returns the exit status. A second run into the same folder waits.

    Raises:
        UserError: no such model, fold or scan, or a folder that cannot be written to or holds what would be lost.
    """
    models = load_model(job.model, job.folds, allow_unfinished=job.allow_unfinished)
    if not job.postprocessing:
        if models.post_processing.does_nothing:
            print("warning: --no-postprocessing has no effect: the model has none", file=sys.stderr)
        models = dataclasses.replace(models, post_processing=PostProcessing())
    devices = [torch.device("cuda", index) for index in range(runtime.devices)] if runtime.use_gpu else [runtime.device]
    predictors = [[make(bundle, device) for device in devices] for bundle in models.members]
    scans = list_scans(job, len(models.plan.channels))
    refuse_other_programs(job.output, save_probabilities=job.save_probabilities)
    prepare_folder(job.output, "--output")
    with folder_lock(job.output):
        if len(models.members) == 1:
            for predictor in predictors[0]:
                predictor.post_processing = models.post_processing
            run: ScanRun | EnsembleRun = ScanRun(job, predictors[0], scans)
        else:
            run = EnsembleRun(job, models, predictors, scans)
        remove_strays(job.output, keep=run.hidden)
        settings = predictors[0][0].settings
        if settings.tta:
            warn_of_flips(models)
        place = f"{len(devices)} GPU(s)" if runtime.use_gpu else "the CPU"
        print(f"model: {models.plan.dataset}, {models.describe()}; on {place}, {runtime.precision}", flush=True)
        if run.waiting:
            # Of what is there from now on it would name the wrong model, should this run be killed.
            (job.output / "run.json").unlink(missing_ok=True)
        status, outcome = run.run()
        others = run.masks.others()
        warn_of_others(others, job.output)
        outcome |= {"masks_of_other_origin": others} if others else {}
        options = {**dataclasses.asdict(job), "settings": dataclasses.asdict(settings)}
        environment = {**runtime.environment(), "precision": runtime.precision}
        environment["peak_memory_bytes"] = runtime.peak_memory_bytes()
        write_run_record(job.output / "run.json", options=options, environment=environment, outcome=outcome)
    return status


class EnsembleRun:
    """Predicts scans with each configuration in turn, and averages what they saved.

    Until then their probabilities lie in a hidden folder of the output, and a run that was killed goes on from there.
    Scans are taken in portions whose probabilities need no more than half of the free disk.

    Args:
        job: what to do; its output folder is there and locked.
        models: the configurations.
        predictors: for each configuration one per device.
        scans: of the job.

    Raises:
        UserError: files in the output folder would be lost.
    """

    def __init__(
        self, job: ScanJob, models: ModelSet, predictors: Sequence[Sequence[Predictor]], scans: Sequence[Scan]
    ) -> None:
        self.job, self.models, self.predictors, self.scans = job, models, predictors, scans
        self._made_by = made_by([each[0] for each in predictors], models.post_processing)
        self.masks = MaskFolder(job.output, self._made_by, overwrite=job.overwrite)
        self.waiting = self.masks.unfinished(scans, save_probabilities=job.save_probabilities)
        self.hidden = job.output / f".ensemble-{self._digest()}"

    def run(self) -> tuple[int, dict]:
        """Predict; returns the exit status and a summary."""
        failed: dict[str, str] = {}
        self.masks.begin()
        if self.job.save_probabilities:
            write_json(self.models.plan, self.job.output / "plan.json")
        free_bytes = shutil.disk_usage(self.job.output).free
        for portion in in_portions(self.waiting, self._disk_bytes, free_bytes // 2):
            [first, *others] = portion
            if not others and self._disk_bytes(first) > free_bytes:
                failed[first.case] = (
                    f"its probabilities need {size_text(self._disk_bytes(first))} of disk, "
                    f"{size_text(free_bytes)} are free in {self.job.output}"
                )
                print(f"{first.case}: failed: {failed[first.case]}", file=sys.stderr)
            else:
                failed |= self._predict(portion)
        shutil.rmtree(self.hidden, ignore_errors=True)
        written, kept = len(self.waiting) - len(failed), len(self.scans) - len(self.waiting)
        print(f"ensemble: {written} written, {kept} kept, {len(failed)} failed: {self.job.output}", flush=True)
        summary = {"scans": len(self.scans), "written": written, "kept": kept, "failed": failed}
        return EXIT_PARTIAL if failed else EXIT_OK, summary

    def _predict(self, scans: Sequence[Scan]) -> dict[str, str]:
        """Masks of some scans; returns what became of those that failed."""
        failed: dict[str, str] = {}
        told: set[str] = set()
        weights = sum(predictor.weight_bytes for predictors in self.predictors for predictor in predictors)
        for name, predictors in zip(self.models.names, self.predictors):
            print(f"{name}:", flush=True)
            job = dataclasses.replace(self.job, output=self.hidden / name, save_probabilities=True)
            others = weights - sum(predictor.weight_bytes for predictor in predictors)
            left = [scan for scan in scans if scan.case not in failed]
            failed |= ScanRun(job, predictors, left, others, told).run()[1]["failed"]
        for scan in scans:
            if scan.case in failed:
                continue
            try:
                self._merge(scan)
            except (UserError, OSError) as error:
                failed[scan.case] = str(error)
                print(f"{scan.case}: failed: {error}", file=sys.stderr)
        return failed

    def _disk_bytes(self, scan: Scan) -> int:
        """Probabilities of a scan by all configurations, and their mean; 0 for a file that cannot be read."""
        try:
            shape, _ = read_header(scan.images[0])
        except UserError:
            return 0
        copies = len(self.models.members) + self.job.save_probabilities
        return copies * array_bytes((self.models.plan.labels.num_outputs, *shape[:3]))

    def _digest(self) -> str:
        """Of what predictions depend on: those of another model or of other options are not taken for these."""
        facts = {
            "settings": [dataclasses.asdict(predictors[0].settings) for predictors in self.predictors],
            "precision": [str(predictors[0].ensemble.amp) for predictors in self.predictors],
            "scans": [[scan.case, scan_stamp(scan)] for scan in self.scans],
            "model": self._made_by.model,
        }
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def _merge(self, scan: Scan) -> None:
        """Write the mean mask (and probabilities) of a scan, and remove what it was made of."""
        folders = [self.hidden / name for name in self.models.names]
        members = [saved_member(folder, scan.case) for folder in folders]
        labels = self.models.plan.labels
        shape = members[0].probabilities.shape if self.job.save_probabilities else None
        with self.masks.writing(scan, shape) as files:
            first = 0
            for planes in mean_planes(members) if shape is not None else ():
                files.probabilities[:, first : first + planes.shape[1]] = planes
                first += planes.shape[1]
                give_back_pages(files.probabilities)
            values = np.array(labels.values, dtype=np.uint8)[saved_classes(members)]
            mask = to_working(values.swapaxes(-1, -3), members[0].affine)
            mask = keep_largest(mask, labels, self.models.post_processing)
            files.write(mask, read_label(folders[0] / f"{scan.case}{MASK}").geometry)
        for path in (folder / f"{scan.case}{end}" for folder in folders for end in (MASK, PROBABILITIES)):
            path.unlink()


def in_portions(scans: Sequence[Scan], size: Callable[[Scan], int], limit: int) -> list[list[Scan]]:
    """Scans in their order, in portions of no more than `limit` bytes, or of one scan that is larger by itself."""
    portions: list[list[Scan]] = []
    total = 0
    for scan in scans:
        total += size(scan)
        if not portions or total > limit:
            portions.append([])
            total = size(scan)
        portions[-1].append(scan)
    return portions

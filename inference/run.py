"""Raw scans to masks with a trained model: from the options to the record of the run."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable

import torch

from inference.configuration import ConfigurationModel
from inference.configuration_predictor import ConfigurationPredictor
from inference.decision import PostProcessing
from inference.model_set import load_model_or_set
from inference.output_folder import refuse_other_programs, remove_strays, warn_of_others
from inference.predictor import Predictor, warn_of_flips
from inference.scan_run import ScanJob, ScanRun, list_scans
from utils.errors import UserError
from utils.locks import folder_lock
from utils.runs import prepare_folder, write_run_record
from utils.runtime import Runtime

Maker = Callable[[ConfigurationModel, torch.device], ConfigurationPredictor]


def predict_scans(job: ScanJob, runtime: Runtime, make: Maker) -> int:
    """Run a job on the devices of `runtime`; returns the exit status. A second run into the same folder waits.

    Args:
        job: what to do.
        runtime: devices and precision.
        make: gives what predicts with a configuration on a device.

    Raises:
        UserError: no such model, fold or scan, or a folder that cannot be written to or holds what would be lost.
    """
    model = load_model_or_set(job.model, job.folds, allow_unfinished=job.allow_unfinished)
    if job.save_probabilities and model.merge is not None:
        raise UserError(f"--save_probabilities: {job.model} is a set of models, which has masks only")
    if not job.postprocessing:
        if model.post_processing.does_nothing:
            print("warning: --no-postprocessing has no effect: the model has none", file=sys.stderr)
        model = dataclasses.replace(model, post_processing=PostProcessing())
    devices = [torch.device("cuda", index) for index in range(runtime.devices)] if runtime.use_gpu else [runtime.device]
    predictors = [
        Predictor(
            [make(configuration, device) for configuration in model.configurations], model.post_processing, model.merge
        )
        for device in devices
    ]
    scans = list_scans(job, len(model.plan.channels))
    refuse_other_programs(job.output, save_probabilities=job.save_probabilities)
    prepare_folder(job.output, "--output")
    with folder_lock(job.output):
        run = ScanRun(job, predictors, scans)
        remove_strays(job.output)
        settings = predictors[0].settings
        if settings.tta:
            warn_of_flips(model)
        place = f"{len(devices)} GPU(s)" if runtime.use_gpu else "the CPU"
        print(f"model: {model.plan.dataset}, {model.describe()}; on {place}, {runtime.precision}", flush=True)
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

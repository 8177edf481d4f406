"""Raw scans to masks with a trained model: from the options to the record of the run."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable

import torch

from inference.configuration import ConfigurationModel
from inference.configuration_predictor import ConfigurationPredictor, window_batch
from inference.decided import scored_settings
from inference.decision import PostProcessing
from inference.model_set import load_model_or_set
from inference.output_folder import refuse_other_programs, remove_strays, warn_of_others
from inference.predictor import Predictor, amp_type, warn_of_flips
from inference.scan_run import ScanJob, ScanRun, list_scans
from models.acceleration import resolve_acceleration
from models.inferer import InferenceSettings
from utils.config import HardwareConfig
from utils.errors import UserError
from utils.locks import folder_lock
from utils.runs import prepare_folder, write_run_record
from utils.runtime import Runtime, configure_backends, resolve_hardware

Maker = Callable[[ConfigurationModel, torch.device], ConfigurationPredictor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkUse:
    """On what and how networks are applied, as the user wants it; None leaves it to the machine or to the model.

    Attributes:
        batch_size: windows or slices that go through the network together.
        gpus: how many; 0: the CPU.
        amp: mixed precision.
        compile: with torch.compile.
        tta: average over flips.
        overlap: of neighbouring windows, as a share of the window.
        blend: weights of overlapping windows.
    """

    batch_size: int | None
    gpus: int | None
    amp: bool
    compile: bool
    tta: bool | None
    overlap: float | None
    blend: str


def predict_folder(job: ScanJob, use: NetworkUse) -> int:
    """Run a job as the user wants networks to be applied; returns the exit status.

    Raises:
        UserError: as `predict_scans`; or there are fewer GPUs than wanted.
    """
    hardware = HardwareConfig(gpus=use.gpus, amp=use.amp, compile=use.compile)
    runtime = resolve_hardware(hardware)
    configure_backends(runtime)
    tta, overlap = scored_settings(job.model, tta=use.tta, overlap=use.overlap)

    def make(configuration: ConfigurationModel, device: torch.device) -> ConfigurationPredictor:
        acceleration = resolve_acceleration(hardware, runtime, norm=configuration.model.norm)
        plan, first = configuration.plan, configuration.previous
        fitting = window_batch(plan.stage, device, num_outputs=plan.labels.num_outputs, tta=tta)
        settings = InferenceSettings(
            tta=tta, overlap=overlap, blend=use.blend, window_batch=use.batch_size or fitting,
            fill_batches=acceleration.compiles,
        )  # fmt: skip
        return ConfigurationPredictor(
            configuration, device=device, amp=amp_type(runtime), settings=settings,
            previous=None if first is None else make(first, device), acceleration=acceleration,
        )  # fmt: skip

    return predict_scans(job, runtime, make)


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
    if job.save_soft and model.merge is not None:
        raise UserError(f"--save_soft: {job.model} is a set of models, which has masks only")
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

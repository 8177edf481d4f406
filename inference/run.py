"""Raw scans to masks with a trained model: from the options to the record of the run."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from inference.configuration import ConfigurationModel
from inference.configuration_predictor import ConfigurationPredictor, window_batch
from inference.decided import scored_settings
from inference.decision import PostProcessing
from inference.devices import amp_type, warn_of_flips
from inference.engines.engine import choose_engine, without_gpu
from inference.model import Model
from inference.model_set import load_model_or_set
from inference.naming import recorded_command, recorded_options
from inference.opening import opened
from inference.output_folder import refuse_other_programs, remove_strays, warn_of_others
from inference.predictor import Predictor
from inference.scan_run import ScanJob, ScanRun, list_scans
from models.acceleration import resolve_acceleration
from models.inferer import InferenceSettings
from utils.config import HardwareConfig
from utils.errors import UserError
from utils.locks import folder_lock
from utils.runs import outdate_page, prepare_folder, write_run_record
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
        engine: what computes the networks: torch (also `auto`), onnxruntime or openvino.
    """

    batch_size: int | None
    gpus: int | None
    amp: bool
    compile: bool
    tta: bool | None
    overlap: float | None
    blend: str
    engine: str = "auto"


def predict_folder(job: ScanJob, use: NetworkUse) -> int:
    """Run a job as the user wants networks to be applied; returns the exit status.

    Raises:
        UserError: as `predict_scans`; or there are fewer GPUs than wanted.
    """
    runtime, make = network_maker(job.model, use)
    with opened(job) as there:
        return predict_scans(there, runtime, make)


def network_maker(path: Path, use: NetworkUse) -> tuple[Runtime, Maker]:
    """Devices and precision, and what predicts with a configuration on one of them, as the user wants it.

    Args:
        path: the model; a decision in it says how it was scored.
        use: what the user wants.

    Raises:
        UserError: there are fewer GPUs than wanted.
    """
    wanted = HardwareConfig(gpus=use.gpus, amp=use.amp, compile=use.compile)
    hardware = without_gpu(use.engine, wanted)
    runtime = resolve_hardware(hardware)
    configure_backends(runtime)
    engine = choose_engine(use.engine, wanted, runtime, amp_type(runtime))
    tta, overlap = scored_settings(path, tta=use.tta, overlap=use.overlap)

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
            previous=None if first is None else make(first, device), acceleration=acceleration, engine=engine,
        )  # fmt: skip

    return runtime, make


def load_predictors(path: Path, folds: Sequence[int] | None, use: NetworkUse) -> list[Predictor]:
    """One predictor per device, whose masks are those of `predict_folder`.

    Raises:
        UserError: no such model or fold, or fewer GPUs than wanted.
    """
    runtime, make = network_maker(path, use)
    return make_predictors(load_model_or_set(path, folds), runtime, make)


def make_predictors(model: Model, runtime: Runtime, make: Maker) -> list[Predictor]:
    """One predictor per device."""
    devices = [torch.device("cuda", index) for index in range(runtime.devices)] if runtime.use_gpu else [runtime.device]
    return [
        Predictor(
            [make(configuration, device) for configuration in model.configurations], model.post_processing, model.merge
        )
        for device in devices
    ]


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
    if job.save_soft is not None and model.merge is not None:
        raise UserError(f"--save_soft: {job.model} is a set of models, which has masks only")
    if not job.postprocessing:
        if model.post_processing.does_nothing:
            print("warning: --no-postprocessing has no effect: the model has none", file=sys.stderr)
        model = dataclasses.replace(model, post_processing=PostProcessing())
    predictors = make_predictors(model, runtime, make)
    scans = list_scans(job, len(model.plan.channels))
    refuse_other_programs(job.output, save_probabilities=job.save_probabilities)
    prepare_folder(job.output, "--output")
    with folder_lock(job.output):
        run = ScanRun(job, predictors, scans)
        remove_strays(job.output)
        settings = predictors[0].settings
        if settings.tta:
            warn_of_flips(model)
        place = f"{len(predictors)} GPU(s)" if runtime.use_gpu else "the CPU"
        engine = predictors[0].configurations[0].engine
        by = "" if engine is None else f", by {engine.describe()}"
        print(f"model: {model.plan.dataset}, {model.describe()}; on {place}, {runtime.precision}{by}", flush=True)
        if run.waiting:
            # Of what is there from now on it would name the wrong model, should this run be killed.
            (job.output / "run.json").unlink(missing_ok=True)
            outdate_page(job.output)
        status, outcome = run.run()
        others = run.masks.others()
        warn_of_others(others, job.output)
        outcome |= {"masks_of_other_origin": others} if others else {}
        options = {**recorded_options(dataclasses.asdict(job)), "settings": dataclasses.asdict(settings)}
        environment = {**runtime.environment(), "precision": runtime.precision}
        environment["engine"] = "torch" if engine is None else engine.describe()
        environment["peak_memory_bytes"] = runtime.peak_memory_bytes()
        write_run_record(
            job.output / "run.json", options=options, environment=environment, outcome=outcome,
            command=recorded_command(job.anonymous), named=not job.anonymous,
        )  # fmt: skip
    return status

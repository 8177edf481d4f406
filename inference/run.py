"""Raw scans to masks with a trained model: from the options to the record of the run."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from inference.configuration import ConfigurationModel
from inference.configuration_predictor import ConfigurationPredictor, window_batch
from inference.decided import scored_settings
from inference.decision import PostProcessing
from inference.devices import amp_type, devices_of, one_device, warn_of_flips
from inference.engines.engine import choose_engine, without_gpu
from inference.mask_stamps import made_by
from inference.model import Model
from inference.model_set import load_model_or_set
from inference.naming import recorded_command, recorded_options
from inference.opening import opened
from inference.output_folder import refuse_other_programs, remove_strays, warn_of_others
from inference.page_scans import scan_readers
from inference.part_run import finish_part
from inference.part_table import part_states
from inference.parts import PartRecord, write_record
from inference.predictor import Predictor
from inference.scan_run import ScanJob, ScanRun, list_scans
from inference.scans import Scan
from models.acceleration import resolve_acceleration
from models.inferer import InferenceSettings
from report.finishing import finish_prediction
from utils.config import HardwareConfig
from utils.errors import UserError
from utils.launch import Launch, find_launch
from utils.parts import Part, Place
from utils.runs import outdate_page, prepare_folder, write_run_record
from utils.runtime import Runtime, choose_runtime, configure_backends, detect_machine, resolve_hardware
from utils.throughput import environment as machine_environment
from utils.throughput import peak_memory_bytes

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


def predict_folder(job: ScanJob, use: NetworkUse, *, report: bool = False) -> int:
    """Run a job as the user wants networks to be applied, with a page about its masks; returns the exit status.

    Each process that torchrun or srun started does a part.

    Raises:
        UserError: as `predict_scans`; or there are fewer GPUs than wanted.
    """
    launch = find_launch(os.environ)
    if launch is not None:
        part = (job.part or Part(index=1, count=1)).split(launch.rank, launch.size)
        job = dataclasses.replace(job, part=part, neighbours=launch.local_size)
    runtime, make = network_maker(job.model, use, launch)
    with opened(job) as there:
        return predict_scans(there, runtime, make, launch, report=report)


def network_maker(path: Path, use: NetworkUse, launch: Launch | None = None) -> tuple[Runtime, Maker]:
    """Devices and precision, and what predicts with a configuration on one of them, as the user wants it.

    Args:
        path: the model; a decision in it says how it was scored.
        use: what the user wants.
        launch: which of several processes this is; each has one device.

    Raises:
        UserError: there are fewer GPUs than wanted.
    """
    wanted = HardwareConfig(gpus=use.gpus, amp=use.amp, compile=use.compile)
    hardware = without_gpu(use.engine, wanted if launch is None else one_device(wanted, launch))
    runtime = resolve_hardware(hardware) if launch is None else choose_runtime(hardware, detect_machine())
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


def make_predictors(
    model: Model, runtime: Runtime, make: Maker, launch: Launch | None = None
) -> list[Predictor]:  # fmt: skip
    """One predictor per device."""
    return [
        Predictor(
            [make(configuration, device) for configuration in model.configurations], model.post_processing, model.merge
        )
        for device in devices_of(runtime, launch)
    ]


def predict_scans(
    job: ScanJob, runtime: Runtime, make: Maker, launch: Launch | None = None, *, report: bool = False
) -> int:
    """Run a job on the devices of `runtime`; returns the exit status. A second run into the same folder waits; parts of
    one do not.

    Args:
        job: what to do.
        runtime: devices and precision.
        make: gives what predicts with a configuration on a device.
        launch: which of several processes this is.
        report: write a page, now that it is known where the scans are; of parts the one that ends last does.

    Raises:
        UserError: no such model, fold or scan, or a folder that cannot be written to or holds what would be lost.
    """
    model = _chosen_model(job)
    predictors = make_predictors(model, runtime, make, launch)
    place = Place(output=job.output, part=job.part)
    scans = _all_scans(job, place, len(model.plan.channels))
    refuse_other_programs(job.output, save_probabilities=job.save_probabilities)
    prepare_folder(job.output, "--output")
    with place.held():
        own = scans if job.part is None else job.part.own(sorted(scans, key=lambda scan: scan.case))
        run = ScanRun(job, predictors, own, place)
        _begin(job, run, place)
        _say_how(model, predictors, runtime)
        begun = None
        if job.part is not None:
            begun = PartRecord.begun(job.part, run.masks.made_by, [scan.case for scan in own])
            write_record(job.output, begun)
        status, outcome = run.run()
        with place.exclusive():
            if begun is not None:
                together = finish_part(run, begun, outcome, [scan.case for scan in scans])
                if together is None:
                    return status
                outcome = together
            _write_record(job, run, runtime, devices_of(runtime, launch)[0], outcome)
    if report:
        finish_prediction(job.output, scan_readers(scans, anonymous=job.anonymous))
    return status


def _chosen_model(job: ScanJob) -> Model:
    model = load_model_or_set(job.model, job.folds, allow_unfinished=job.allow_unfinished)
    if job.save_probabilities and model.merge is not None:
        raise UserError(f"--save_probabilities: {job.model} is a set of models, which has masks only")
    if job.save_soft is not None and model.merge is not None:
        raise UserError(f"--save_soft: {job.model} is a set of models, which has masks only")
    if not job.postprocessing:
        if model.post_processing.does_nothing:
            print("warning: --no-postprocessing has no effect: the model has none", file=sys.stderr)
        model = dataclasses.replace(model, post_processing=PostProcessing())
    return model


def _all_scans(job: ScanJob, place: Place, num_channels: int) -> list[Scan]:
    if job.part is None or job.anonymous_map is None:
        return list_scans(job, num_channels)
    # Parts that begin together give the same scan the same name.
    prepare_folder(job.output, "--output")
    with place.exclusive():
        return list_scans(job, num_channels)


def _begin(job: ScanJob, run: ScanRun, place: Place) -> None:
    if place.part is None:
        remove_strays(job.output)
    if run.waiting:
        # Of what is there from now on it would name the wrong model, should this run be killed.
        with place.exclusive():
            (job.output / "run.json").unlink(missing_ok=True)
            outdate_page(job.output)


def _say_how(model: Model, predictors: Sequence[Predictor], runtime: Runtime) -> None:
    if predictors[0].settings.tta:
        warn_of_flips(model)
    place = f"{len(predictors)} GPU(s)" if runtime.use_gpu else "the CPU"
    engine = predictors[0].configurations[0].engine
    by = "" if engine is None else f", by {engine.describe()}"
    print(f"model: {model.plan.dataset}, {model.describe()}; on {place}, {runtime.precision}{by}", flush=True)


def _write_record(
    job: ScanJob, run: ScanRun, runtime: Runtime, device: torch.device, outcome: dict[str, Any]
) -> None:  # fmt: skip
    predictor = run.predictors[0]
    others, engine = run.masks.others(), predictor.configurations[0].engine
    warn_of_others(others, job.output)
    outcome |= {"masks_of_other_origin": others} if others else {}
    options = {**recorded_options(dataclasses.asdict(job)), "settings": dataclasses.asdict(predictor.settings)}
    environment = {**machine_environment(device), "precision": runtime.precision}
    environment["engine"] = "torch" if engine is None else engine.describe()
    environment["peak_memory_bytes"] = peak_memory_bytes(device)
    write_run_record(
        job.output / "run.json", options=options, environment=environment, outcome=outcome,
        command=recorded_command(job.anonymous), named=not job.anonymous,
    )  # fmt: skip


def unfinished_parts(job: ScanJob, use: NetworkUse, count: int) -> list[int]:
    """Numbers of the parts that are yet to be predicted, here looked at without their GPUs; scans that failed count.

    Raises:
        UserError: no such model, fold or scan, or a folder that cannot be written to or holds what would be lost.
    """
    runtime, make = network_maker(job.model, dataclasses.replace(use, gpus=0, amp=False))
    model = _chosen_model(job)
    predictor = make_predictors(model, runtime, make)[0]
    with opened(job) as there:
        cases = sorted(scan.case for scan in list_scans(there, len(model.plan.channels)))
    refuse_other_programs(job.output, save_probabilities=job.save_probabilities)
    states = part_states(job.output, count, cases, made_by(predictor), any_precision=True)
    waiting = [state.part.index for state in states if state.why or (state.record is not None and state.record.failed)]
    # Where all are done and the last one did not come to the record of all, any of them writes it.
    return waiting or ([] if (job.output / "run.json").is_file() else [count])

"""Raw NIfTI scans to masks, as scripts/inference.py does it, with a network of random weights."""

from __future__ import annotations

import dataclasses
import math
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from data_preprocessing.planning.adapt import adapt_plan
from inference.archive import load_model, write_archive
from inference.configuration import ConfigurationModel, FoldWeights
from inference.configuration_predictor import ConfigurationPredictor, Counter, window_batch
from inference.devices import amp_type
from inference.model import single_model
from inference.predictor import Predictor
from inference.preparing import PreparedScan
from inference.scan_run import ScanJob, ScanRun
from models.certainty import CertaintyCounter
from models.flop_count import network_flops
from models.inferer import InferenceSettings, flips
from models.unet import build_network
from models.windows import window_layout
from utils.args import Config
from utils.config import ModelConfig
from utils.errors import UserError
from utils.flops import flop_facts, measure_ceiling
from utils.nifti import read_header
from utils.runtime import Runtime, configure_backends, resolve_hardware, seed_everything
from utils.schema import Plan
from utils.throughput import host_peak_memory_bytes, reset_peak_memory

INFERENCE = Path(__file__).resolve().parents[1] / "scripts/inference.py"


class TimedPredictor(ConfigurationPredictor):
    """Adds up the seconds in which the network worked, and the windows that went through it (flips counted)."""

    network_s = 0.0
    windows = 0

    def stream(
        self, prepared: PreparedScan, count: Counter | None = None, certainty: CertaintyCounter | None = None
    ) -> Iterator[np.ndarray]:
        """As its class's; a slab lies in CPU memory, so the device has done its work when the clock is read."""
        stage, settings = self.plan.stage, self.settings
        layout = window_layout(prepared.image.shape[1:], stage, settings)
        self.windows += layout.num_windows * (len(flips(stage.dim)) if settings.tta else 1)
        slabs = super().stream(prepared, count, certainty)
        while True:
            start_s = time.perf_counter()
            slab = next(slabs, None)
            self.network_s += time.perf_counter() - start_s
            if slab is None:
                return
            yield slab


def measure_inference(
    config: Config, plan: Plan, scans: Sequence[Sequence[Path]], *, start_up: bool = True
) -> tuple[dict[str, Any], Runtime]:
    """Seconds, CPU seconds and memory of predicting scans, and apart from them what a start of the program takes.

    The first scan is predicted once before the clock starts. Then all are predicted in this process, reading, network
    and writing overlapped. Start-up is measured by running scripts/inference.py once more, when nothing is left to
    predict.

    Args:
        config: flags of main.py.
        plan: of the network.
        scans: the files of each scan, one or one per channel.
        start_up: whether to measure that, too.

    Raises:
        UserError: the flags contradict each other, or a scan could not be predicted.
    """
    plan = adapt_plan(plan, config.model, batch_size=None, brats=False)
    seed_everything(config.run.seed)
    with TemporaryDirectory(prefix="nnunet-benchmark-") as name:
        folder = Path(name)
        images = [image for files in scans for image in files]
        for image in images:
            link = folder / "input" / image.name
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(image.absolute())
        _write_model(folder / "model.zip", plan, config.model)
        runtime = resolve_hardware(config.hardware)
        configure_backends(runtime)
        predictor = _predictor(folder / "model.zip", runtime)
        reset_peak_memory()
        idle_bytes = host_peak_memory_bytes()
        _run(_job(folder, folder / "input" / scans[0][0].name, "warm"), predictor)
        reset_peak_memory(runtime.device)
        predictor.network_s, predictor.windows, cpu_s = 0.0, 0, time.process_time()
        elapsed_s = _run(_job(folder, folder / "input", "masks"), predictor)
        cpu_s = time.process_time() - cpu_s
        peaks = {"peak_memory_bytes": runtime.peak_memory_bytes(), "host_peak_memory_bytes": host_peak_memory_bytes()}
        peaks["added_memory_bytes"] = peaks["host_peak_memory_bytes"] - idle_bytes
        outcome: dict[str, Any] = {
            "unit": "scans/s", "scans": len(scans), "patch_size": list(plan.stage.patch_size),
            "voxels_per_scan": sum(math.prod(read_header(image)[0]) for image in images) / len(scans),
            "batch_size": predictor.settings.window_batch, "windows_per_scan": predictor.windows / len(scans),
            "items_per_second": len(scans) / elapsed_s, "seconds_per_scan": elapsed_s / len(scans),
            "cpu_s_per_scan": cpu_s / len(scans),
            "data_wait_share": max(1 - predictor.network_s / elapsed_s, 0.0),
        }  # fmt: skip
        outcome |= peaks | (_start_up(folder, runtime) if start_up else {})
    flops = network_flops(plan, config.model, batch_size=1, training=False) * predictor.windows / len(scans)
    ceiling = measure_ceiling(runtime.device, runtime.precision)
    return outcome | flop_facts(flops, outcome["items_per_second"], ceiling), runtime


def _write_model(path: Path, plan: Plan, model: ModelConfig) -> None:
    model = dataclasses.replace(model, deep_supervision=False)
    network = build_network(
        plan.stage, in_channels=plan.in_channels, num_outputs=plan.labels.num_outputs, model=model
    )  # fmt: skip
    weights = FoldWeights(name="random", fold=None, state_dict=network.state_dict())
    write_archive(path, single_model(ConfigurationModel(source=path, plan=plan, model=model, folds=(weights,))))


def _predictor(path: Path, runtime: Runtime) -> TimedPredictor:
    [configuration] = load_model(path).configurations
    outputs = configuration.plan.labels.num_outputs
    together = window_batch(configuration.plan.stage, runtime.device, num_outputs=outputs, tta=False)
    settings = InferenceSettings(window_batch=together)
    return TimedPredictor(configuration, device=runtime.device, amp=amp_type(runtime), settings=settings)


def _job(folder: Path, scans: Path, output: str) -> ScanJob:
    return ScanJob(
        input=scans, output=folder / output, model=folder / "model.zip", folds=None, save_probabilities=False,
        overwrite=False, memory_gb=None,
    )  # fmt: skip


def _run(job: ScanJob, predictor: TimedPredictor) -> float:
    """Seconds that the job took, what `scripts/inference.py` prepares for it among them."""
    start_s = time.perf_counter()
    status, summary = ScanRun(job, [Predictor([predictor])]).run()
    if status:
        raise UserError(f"scans could not be predicted: {summary['failed']}")
    return time.perf_counter() - start_s


def _start_up(folder: Path, runtime: Runtime) -> dict[str, float]:
    """Wall and CPU seconds of a run that finds all scans predicted: imports, model, device, list of scans."""
    words = ["--input", folder / "input", "--output", folder / "masks", "--model", folder / "model.zip"]
    words += ["--gpus", 1 if runtime.use_gpu else 0, *(["--amp"] if amp_type(runtime) is not None else [])]
    before, start_s = _children_s(), time.perf_counter()
    command = [sys.executable, INFERENCE, *words, "--no_report"]
    answer = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return {"start_up_s": time.perf_counter() - start_s, "start_up_cpu_s": _children_s() - before}


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime

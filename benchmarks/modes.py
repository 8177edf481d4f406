"""What each mode of scripts/benchmark.py does: its data, its flags for main.py, its measurement, its JSON file."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import main as entry
from benchmarks.options import USES
from utils.args import Config, parse_config, to_words
from utils.files import to_dict
from utils.runs import prepare_folder, write_run_record
from utils.throughput import environment

if TYPE_CHECKING:
    from benchmarks.options import BenchmarkOptions
    from data_preprocessing.dataset.description_file import Dataset
    from data_preprocessing.dataset.synthetic import NoiseShape
    from utils.runtime import Runtime
    from utils.schema import Plan

DATA_VARIABLE = "NNUNET_BENCHMARK_DATA"
"""Where the noise lies: processes that Lightning starts for further devices find what the first one wrote."""
NOISE_SCANS = 4


def run_trainer(options: BenchmarkOptions) -> int:
    """train, predict: main.py's own benchmark in this process."""
    with shard_folder(options) as data:
        status = entry.main(main_words(options, data, options.mode))
    prepare_folder(options.target.parent, "--json")
    shutil.copyfile(options.results / "run.json", options.target)
    return status


def run_loading(options: BenchmarkOptions) -> int:
    """data: the training batches of shards."""
    from benchmarks.loading import measure_loading

    with shard_folder(options) as data:
        return _finish(options, *measure_loading(main_config(options, data)))


def run_computing(options: BenchmarkOptions) -> int:
    """compute: training steps on one batch."""
    from benchmarks.computing import measure_computing

    plan = noise_plan(options) if options.data is None else None
    return _finish(options, *measure_computing(main_config(options, options.data or Path()), plan))


def run_preprocessing(options: BenchmarkOptions) -> int:
    """preprocess: scans to shards."""
    from benchmarks.preprocessing import measure_preprocessing

    with scan_data(options) as (dataset, plan):
        outcome = measure_preprocessing(dataset, plan=plan, dim=options.dim, n_jobs=options.n_jobs)
    return _finish(options, outcome)


def run_inference(options: BenchmarkOptions) -> int:
    """inference: scans to masks."""
    from benchmarks.predicting import measure_inference
    from data_preprocessing.planning.fingerprint import combine
    from data_preprocessing.planning.planner import make_plan
    from data_preprocessing.runner import inspect_cases
    from utils.workers import Workers

    with scan_data(options) as (dataset, plan):
        if plan is None:
            fingerprint = combine(inspect_cases(dataset, dataset.training, Workers(1)))
            plan = make_plan(dataset, fingerprint, dim=options.dim, mask_channel=False)
        scans = [case.images for case in dataset.training]
        outcome, runtime = measure_inference(main_config(options, Path()), plan, scans, start_up=options.scale == 1)
    return _finish(options, outcome, runtime)


def run_growth(options: BenchmarkOptions) -> int:
    """growth: three stages at several sizes."""
    from benchmarks.growth import growth_table, measure_growth, measure_in_process

    names = [name for name, use in USES.items() if use.growth]
    outcome = measure_growth(measure_in_process(to_words(options, names)))
    print(growth_table(outcome))
    return _finish(options, outcome, quiet=True)


STAGES: dict[str, Callable[[BenchmarkOptions], int]] = {
    "train": run_trainer, "predict": run_trainer, "preprocess": run_preprocessing, "data": run_loading,
    "compute": run_computing, "inference": run_inference, "growth": run_growth,
}  # fmt: skip


def main_words(options: BenchmarkOptions, data: Path, exec_mode: str) -> list[str]:
    """The command line of main.py that measures, or would measure, the same."""
    training = exec_mode == "train"
    names = [name for name, use in USES.items() if exec_mode in use.of_main]
    words = ["--benchmark", "--exec_mode", exec_mode, "--data", str(data), *to_words(options, names)]
    words += ["--batch_size" if training else "--val_batch_size", str(options.batch_size)]
    if training and options.recipe != "reference":
        words += ["--recipe", options.recipe]
    if options.filters and options.data is None:
        words += ["--depth", str(len(options.filters) - 1)]
    return words


def main_config(options: BenchmarkOptions, data: Path) -> Config:
    """The options as main.py knows them, for stages that training is made of."""
    return parse_config(main_words(options, data, "train"), prog="benchmark.py")


def noise_shape(options: BenchmarkOptions) -> NoiseShape:
    """What the flags say of the noise."""
    from data_preprocessing.dataset.synthetic import NoiseShape

    return NoiseShape(patch_size=options.patch_size, channels=options.channels, scale=options.scale)


def noise_plan(options: BenchmarkOptions) -> Plan:
    """The plan of a task, or a variant of it, for noise."""
    from data_preprocessing.dataset.synthetic import benchmark_plan

    return benchmark_plan(_task(options), options.dim, noise_shape(options))


@contextmanager
def shard_folder(options: BenchmarkOptions) -> Iterator[Path]:
    """`--data`, or a temporary folder with shards of noise."""
    if options.data is not None or DATA_VARIABLE in os.environ:
        yield options.data or Path(os.environ[DATA_VARIABLE])
        return
    from data_preprocessing.dataset.synthetic import write_benchmark_shards

    with tempfile.TemporaryDirectory(prefix="nnunet-benchmark-") as folder:
        write_benchmark_shards(Path(folder), task=_task(options), dim=options.dim, noise=noise_shape(options))
        os.environ[DATA_VARIABLE] = folder
        try:
            yield Path(folder)
        finally:
            del os.environ[DATA_VARIABLE]


@contextmanager
def scan_data(options: BenchmarkOptions) -> Iterator[tuple[Dataset, Plan | None]]:
    """The scans of `--data`, whose plan is still to be made, or scans of noise and their plan."""
    from data_preprocessing.dataset.description_file import load_dataset
    from data_preprocessing.dataset.synthetic_scans import write_benchmark_scans

    if options.data is not None:
        dataset = load_dataset(options.data, _task(options))
        yield dataclasses.replace(dataset, training=dataset.training[: options.scans]), None
        return
    plan = noise_plan(options)
    with tempfile.TemporaryDirectory(prefix="nnunet-benchmark-") as folder:
        write_benchmark_scans(Path(folder), plan, num_scans=options.scans or NOISE_SCANS, scale=options.scale)
        yield load_dataset(Path(folder), plan.task), plan


def _task(options: BenchmarkOptions) -> str:
    return options.task or "01"


def _finish(
    options: BenchmarkOptions, outcome: dict[str, Any], runtime: Runtime | None = None, *, quiet: bool = False
) -> int:
    """Print and write the result; stages without a network say so with `null`."""
    outcome = {"mode": options.mode, **outcome}
    if options.mode != "growth":
        outcome |= {key: outcome.get(key) for key in ("data_wait_share", "flop_per_second", "ceiling_share")}
    facts = environment() if runtime is None else runtime.environment()
    facts |= {"device": "cpu", "precision": None} if runtime is None else {
        "device": runtime.accelerator, "precision": runtime.precision
    }  # fmt: skip
    prepare_folder(options.target.parent, "--json")
    write_run_record(options.target, options=to_dict(options), environment=facts, outcome=outcome)
    if not quiet:
        for name, value in outcome.items():
            print(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")
    return 0

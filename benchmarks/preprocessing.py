"""Preprocessing alone: from NIfTI scans to shards, both passes over the data."""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from data_preprocessing.dataset.case_files import CaseFiles
from data_preprocessing.dataset.description_file import Dataset
from data_preprocessing.planning.fingerprint import combine
from data_preprocessing.planning.planner import make_plan
from data_preprocessing.runner import inspect_cases, write_cases
from utils.errors import UserError
from utils.nifti import read_header
from utils.schema import Plan
from utils.throughput import host_peak_memory_bytes, reset_peak_memory
from utils.workers import Workers


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaseCost:
    """What one pass over one case took, and what it gave."""

    result: Any
    cpu_s: float
    peak_bytes: int
    """Largest resident set so far of the process that did it."""


def measure_preprocessing(dataset: Dataset, *, plan: Plan | None, dim: int, n_jobs: int) -> dict[str, Any]:
    """Inspect and write all training cases of a data set into a temporary folder.

    Pass 1 reads and checks every scan and takes its fingerprint, pass 2 reads it again, preprocesses it and writes the
    shard. The first case goes through both before the clock starts.

    Args:
        dataset: what to preprocess.
        plan: how; None plans by the fingerprint.
        dim: of the plan that is made then.
        n_jobs: processes; each of them needs the peak memory.

    Raises:
        UserError: there are no cases, or faulty ones.
    """
    cases = dataset.training
    if not cases:
        raise UserError(f"{dataset.folder} lists no training cases; there is nothing to measure")
    described = dataclasses.replace(dataset, training=(), test=())
    inspect = functools.partial(_inspect, dataset=described)
    with TemporaryDirectory(prefix="nnunet-benchmark-") as folder, Workers(n_jobs) as workers:
        reset_peak_memory()
        idle_bytes = host_peak_memory_bytes()
        first = [cases[0]] * n_jobs
        warm = _plan(dataset, workers.map(inspect, first, title="warm up")[:1], plan, dim)
        workers.map(functools.partial(_write, plan=warm, folder=Path(folder)), first[:1], title="warm up")
        reset_peak_memory()
        start_s = time.perf_counter()
        inspected = workers.map(inspect, cases, title="inspect")
        used = _plan(dataset, inspected, plan, dim)
        written = workers.map(functools.partial(_write, plan=used, folder=Path(folder)), cases, title="preprocess")
        elapsed_s = time.perf_counter() - start_s
        failed = [status.detail for cost in written for status in cost.result if status.status == "failed"]
    if failed:
        raise UserError(f"{len(failed)} of {len(cases)} cases failed: {failed[0]}")
    outcome = _outcome(cases, inspected, written, elapsed_s) | {"processes": n_jobs}
    # Other processes had another memory to begin with.
    return outcome | {"added_memory_bytes": outcome["peak_memory_bytes"] - idle_bytes if n_jobs == 1 else None}


def _outcome(
    cases: Sequence[CaseFiles], inspected: Sequence[CaseCost], written: Sequence[CaseCost], elapsed_s: float
) -> dict[str, Any]:
    inspect_s, write_s = (sum(cost.cpu_s for cost in costs) / len(cases) for costs in (inspected, written))
    voxels = sum(math.prod(read_header(image)[0]) for case in cases for image in case.images) / len(cases)
    return {
        "unit": "scans/s",
        "scans": len(cases),
        "voxels_per_scan": voxels,
        "items_per_second": len(cases) / elapsed_s,
        "seconds_per_scan": elapsed_s / len(cases),
        "cpu_s_per_scan": inspect_s + write_s,
        "cpu_s_per_scan_inspect": inspect_s,
        "cpu_s_per_scan_write": write_s,
        "mvoxels_per_cpu_s": voxels / 1e6 / (inspect_s + write_s),
        "peak_memory_bytes": max(cost.peak_bytes for cost in (*inspected, *written)),
    }


def _plan(dataset: Dataset, inspected: Sequence[CaseCost], plan: Plan | None, dim: int) -> Plan:
    if plan is not None:
        return plan
    return make_plan(dataset, combine([cost.result for cost in inspected]), dim=dim, mask_channel=False)


def _inspect(case: CaseFiles, *, dataset: Dataset) -> CaseCost:
    return _costs(lambda workers: inspect_cases(dataset, [case], workers)[0])


def _write(case: CaseFiles, *, plan: Plan, folder: Path) -> CaseCost:
    return _costs(lambda workers: write_cases([case], plan, folder, workers))


def _costs(work: Callable[[Workers], Any]) -> CaseCost:
    start_s = time.process_time()
    # In this process, and without its progress: the cases of all processes have one of their own.
    with redirect_stdout(io.StringIO()):
        result = work(Workers(1))
    return CaseCost(result=result, cpu_s=time.process_time() - start_s, peak_bytes=host_peak_memory_bytes())

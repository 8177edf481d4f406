"""The data pipeline alone: batches are taken as fast as they come, and nothing is done with them."""

from __future__ import annotations

import dataclasses
import math
import time
from itertools import islice
from typing import Any

import numpy as np

from training.building import build_data
from training.run_setup import prepare
from utils.args import Config
from utils.files import to_dict
from utils.runtime import Runtime
from utils.throughput import LatencyRecorder, host_peak_memory_bytes, reset_peak_memory, synchronize

AHEAD = 2
"""Batches that DALI prepares before they are asked for."""


def measure_loading(config: Config) -> tuple[dict[str, Any], Runtime]:
    """Patches a second, and the CPU time that a patch takes, of the training batches of a shard folder.

    CPU time is that of all threads of this process. The loader always has batches left to prepare, so that what it
    does ahead of the last batch stands for what it had done ahead of the first.

    Raises:
        UserError: as `training.run_setup.prepare`, or no batch remains after the warm-up.
    """
    run = config.run
    setup = prepare(config)
    more = dataclasses.replace(config, run=dataclasses.replace(run, train_batches=run.train_batches + AHEAD))
    loader = build_data(more, setup).train_dataloader()
    device, size = setup.runtime.device, setup.plan.stage.batch_size
    recorder = LatencyRecorder(items_per_batch=size, warmup=run.warmup)
    reset_peak_memory(device)
    cpu_s = [time.process_time()]
    start_s = time.perf_counter()
    for _ in islice(loader, run.train_batches):
        synchronize(device)
        now_s = time.perf_counter()
        recorder.add(now_s - start_s, waited_s=now_s - start_s)
        start_s = now_s
        cpu_s.append(time.process_time())
    speed = recorder.summary()
    shape = np.load(setup.shards.cases / f"{setup.fold.train[0]}_x.npy", mmap_mode="r", allow_pickle=False).shape
    outcome = {"unit": "patches/s", "batch_size": size, "patch_size": list(setup.plan.stage.patch_size)}
    outcome |= {"channels": shape[0], "voxels_per_volume": math.prod(shape[1:]), "augment": config.loader.augment}
    measured_s = cpu_s[-1] - cpu_s[run.warmup]
    outcome |= to_dict(speed) | {"cpu_ms_per_patch": 1000 * measured_s / (speed.measured_batches * size)}
    return outcome | {"peak_memory_bytes": host_peak_memory_bytes()}, setup.runtime

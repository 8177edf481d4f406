"""One process for each GPU of this machine: the gradients of all together, and their speed.

The processes are those of rank.py. Without a GPU two processes of the CPU stand for them.
"""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check.context import LEAST_SPEED, Checks, Context, judge
from benchmarks.gpu_check.findings import Numbers, Outcome

RANK = Path(__file__).resolve().parent / "rank.py"
CPU_PROCESSES = 2
TOLERANCE = 1e-3
LEAST_EFFICIENCY = 0.85
"""Of a step of one process, the share that a step of all may take longer for."""
POLL_S = 0.05


def checks(context: Context) -> Checks:
    """Numbers, then speed."""
    count = num_processes(context)
    yield f"{count} processes: gradients", functools.partial(gradients, count)
    yield f"{count} processes: speed", functools.partial(speed, count)


def num_processes(context: Context) -> int:
    """As many as there are GPUs."""
    return torch.cuda.device_count() if context.on_gpu else CPU_PROCESSES


def gradients(count: int, context: Context) -> tuple[str, Numbers]:
    """Sums over processes, gradients beside those of one process with the whole batch, and weights after steps."""
    found = launch("gradients", count, context)
    if not found["weights_equal"]:
        raise Outcome("differs", "the processes have different weights after some steps", found)
    return judge(found["distances"], TOLERANCE, found)


def speed(count: int, context: Context) -> tuple[str, Numbers]:
    """A step of all processes beside a step of one."""
    context.need_gpu("what several processes gain is asked of GPUs only")
    if count < 2:
        raise Outcome("skipped", "there is one GPU")
    found = launch("speed", count, context)
    efficiency = found["alone_ms"] / found["together_ms"]
    text = f"{found['together_ms']:.1f} ms a step, alone {found['alone_ms']:.1f}: {efficiency:.0%} efficiency"
    numbers = found | {"efficiency": efficiency, "processes": count}
    if context.sizes.says_speed and efficiency < LEAST_EFFICIENCY * LEAST_SPEED:
        raise Outcome("slower", text, numbers)
    return text, numbers


def launch(task: str, count: int, context: Context) -> dict[str, Any]:
    """Run one task in all processes; returns what the first one found out.

    Raises:
        RuntimeError: a process ended with an error.
    """
    with tempfile.TemporaryDirectory(prefix="nnunet-gpu-check-") as folder:
        job = {"task": task, "world_size": count, "meeting": f"{folder}/meeting", "on_gpu": context.on_gpu}
        job |= {"tiny": not context.sizes.says_speed}
        ranks = [
            subprocess.Popen(
                [sys.executable, str(RANK), json.dumps(job | {"rank": rank})],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            )
            for rank in range(count)
        ]
        try:
            while any(rank.poll() is None for rank in ranks):
                _raise_failure(ranks)
                time.sleep(POLL_S)
            _raise_failure(ranks)
            # A line of JSON fits into the pipe.
            assert ranks[0].stdout is not None
            lines = ranks[0].stdout.read().decode().splitlines()
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
                for end in (rank.stdin, rank.stdout):
                    if end is not None:
                        with contextlib.suppress(OSError):
                            end.close()
    return json.loads(next(line for line in reversed(lines) if line.startswith("{")))


def _raise_failure(ranks: list[subprocess.Popen[bytes]]) -> None:
    for number, rank in enumerate(ranks):
        if rank.poll():
            raise RuntimeError(f"process {number} of {len(ranks)} ended with status {rank.returncode}")

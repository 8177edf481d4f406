"""What every worker shares: its job from the command line, clocks around the measured part, one JSON line at the end.

Only the standard library is imported, because workers also run in the peers' own environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Job = dict[str, Any]
Outcome = dict[str, Any]


def serve(sides: Mapping[str, Callable[[Job], Outcome]]) -> None:
    """Do the job that the first argument describes as JSON, and print what came out as the last line.

    A job has `side` (a key of `sides`), `threads`, `seed`, `folder` (what was prepared) and `scratch` (an empty folder
    for this run); an outcome has `wall_s`, `cpu_s`, `items` and `settings`.
    """
    job = json.loads(sys.argv[1])
    with contextlib.redirect_stdout(sys.stderr):
        outcome = sides[job["side"]](job)
    print(json.dumps(outcome | {"peak_bytes": own_peak_bytes()}), flush=True)
    # Data loaders of some peers leave threads behind that would keep the process.
    os._exit(0)


def cpu_seconds() -> float:
    """User and system seconds of this process and of its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def own_peak_bytes() -> int:
    """Largest resident set so far of this process or of one of its children."""
    scale = 1 if sys.platform == "darwin" else 1024
    return scale * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


class Stopwatch:
    """Wall and CPU seconds of a `with` block."""

    def __enter__(self) -> Stopwatch:
        self._start = (time.perf_counter(), cpu_seconds())
        return self

    def __exit__(self, *_: object) -> None:
        wall_s, cpu_s = self._start
        self.seconds = {"wall_s": time.perf_counter() - wall_s, "cpu_s": cpu_seconds() - cpu_s}


def timed_steps(step: Callable[[], object], *, warmup: int, count: int) -> dict[str, float]:
    """Seconds of `count` calls of `step`, after `warmup` calls that are not measured."""
    for _ in range(warmup):
        step()
    with Stopwatch() as watch:
        for _ in range(count):
            step()
    return watch.seconds


def timed_batches(batches: Iterable, *, warmup: int, count: int) -> dict[str, float]:
    """Seconds in which `count` batches came, after `warmup` ones.

    There must be more batches than are taken: a loader that works ahead did a part of the first measured batches
    before, and does a part of later ones now.
    """
    iterator = iter(batches)
    return timed_steps(lambda: next(iterator), warmup=warmup, count=count)

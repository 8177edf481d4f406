"""Clocks that jump by days while a command runs, and files from another century: it leaves what it leaves otherwise."""

from __future__ import annotations

import datetime
import importlib
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.torture.commands import Limits
from tests.torture.stages import Prepared, prepare, run_stage
from tests.torture.trees import OF_DATES, put_back, read_tree

EACH = 2
FURTHEST_S = 400 * 86400.0
"""By how much a clock is wrong, in both directions."""
DATES = (86400.0, 4_000_000_000.0)
"""Of files: the second day of 1970, and 2096."""


def run_clocks(
    root: Path, *, seed: int, seconds: float, names: Sequence[str] | None = None, reuse: bool = False
) -> dict[str, Any]:
    """Every stage with a clock that is another one at each look, as far as the time allows.

    Only the command itself is fooled; what it starts anew sees the files' dates, and the right time.
    """
    until, rng = time.monotonic() + seconds, random.Random(seed)
    stages, undisturbed = prepare(root, names, reuse=reuse)
    trials = [stage for _ in range(EACH) for stage in stages]
    faults, done = [], 0
    for prepared in trials:
        if time.monotonic() > until:
            break
        done += 1
        if wrong := with_jumps(root, prepared, rng.randrange(10**6)):
            faults.append({"stage": prepared.stage.name, "faults": wrong})
    return {"seed": seed, "undisturbed": undisturbed, "trials": done, "left_out": len(trials) - done, "faults": faults}


def with_jumps(root: Path, prepared: Prepared, seed: int) -> list[str]:
    """One trial: files get dates that no clock has shown, and the command another time at each look."""
    stage, work = prepared.stage, root / "work"
    put_back(prepared.before, work)
    rng = random.Random(seed)
    # All of a folder alike, as a copy or an archive leaves them; what is newer than what matters to some commands.
    for folder in [work, *(path for path in sorted(work.rglob("*")) if path.is_dir())]:
        date = rng.choice(DATES)
        for path in [path for path in folder.iterdir() if path.is_file()]:
            os.utime(path, (date, date))
    outcome = run_stage(stage, work, root, Limits(seconds=stage.limit_s, first=lambda: jump(seed)))
    faults = [] if outcome.status == 0 else [f"ends with {outcome.status}: {outcome.last_words}"]
    if outcome.has_traceback:
        faults.append(f"traceback: {outcome.last_words}")
    return faults + prepared.expected.faults(read_tree(work), but=OF_DATES)[:5]


def jump(seed: int) -> None:
    """Let this process see another time whenever it asks for one."""
    rng, real = random.Random(seed), time.time
    time.time = lambda: real() + rng.uniform(-FURTHEST_S, FURTHEST_S)
    time.time_ns = lambda: int(1e9 * time.time())

    class Jumping(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Jumping:
            return cls.fromtimestamp(time.time(), tz)

    datetime.datetime = Jumping
    importlib.import_module("utils.logger").datetime = Jumping
    importlib.import_module("utils.temporary")._began_s = time.time()

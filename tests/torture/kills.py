"""Commands that are killed at any moment, and given again: what they leave equals an undisturbed run's."""

from __future__ import annotations

import dataclasses
import json
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from tests.torture.commands import Blow, Limits, run
from tests.torture.stages import Prepared, prepare, run_stage
from tests.torture.trees import put_back, read_tree

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MOST_SHOWN = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Killed:
    """One trial: blows in a row, then the same command once more."""

    stage: str
    blows: tuple[tuple[str, float], ...]
    landed: int
    faults: tuple[str, ...]


def run_kills(
    root: Path, *, number: int, seed: int, seconds: float, names: Sequence[str] | None = None, reuse: bool = False
) -> dict:
    """Kill stages until there were `number` kills, or the time is over.

    Returns:
        numbers by stage, and the trials with faults.
    """
    until = time.monotonic() + seconds
    stages, faults = prepare(root, names, reuse=reuse)
    trials: list[Killed] = []
    rng = random.Random(seed)
    waiting = [
        stage for stage in stages
        for _ in range(max(1, round(number * stage.stage.kills / _total(stages) / stage.stage.chain)))
    ]  # fmt: skip
    rng.shuffle(waiting)
    for stage in waiting:
        if time.monotonic() > until:
            break
        trials.append(_trial(root, stage, rng))
        print(f"kills: {json.dumps(dataclasses.asdict(trials[-1]))}"[:2000], flush=True)
    return {
        "seed": seed,
        "undisturbed": faults,
        "kills": {each.stage.name: _count(trials, each.stage.name) for each in stages},
        "left_out": len(waiting) - len(trials),
        "faults": [dataclasses.asdict(trial) for trial in trials if trial.faults],
    }


def _total(stages: Sequence[Prepared]) -> int:
    return sum(each.stage.kills for each in stages)


def _count(trials: Sequence[Killed], name: str) -> dict[str, int]:
    own = [trial for trial in trials if trial.stage == name]
    return {
        "trials": len(own), "kills": sum(len(trial.blows) for trial in own),
        "in_the_middle": sum(trial.landed for trial in own), "with_faults": sum(bool(trial.faults) for trial in own),
    }  # fmt: skip


def _trial(root: Path, prepared: Prepared, rng: random.Random) -> Killed:
    stage, work = prepared.stage, root / "work"
    put_back(prepared.before, work)
    blows, faults, landed = [], [], 0
    for _ in range(stage.chain):
        signum = rng.choice(SIGNALS)
        blow = Blow(
            after_s=rng.uniform(0, prepared.seconds), signum=signum,
            # Ctrl-C reaches all that runs in the terminal; kill -9 and kill mostly one process.
            whole_group=signum == signal.SIGINT or rng.random() < 0.3,
        )  # fmt: skip
        limits = Limits(seconds=stage.limit_s)
        outcome = run(stage.module, stage.command(work), folder=root, limits=limits, blow=blow)
        blows.append((signal.Signals(signum).name, round(blow.after_s, 3)))
        landed += outcome.status != 0
        if outcome.timed_out:
            faults.append(f"does not end after {blows[-1]}: {outcome.last_words}")
            continue
        if outcome.orphans:
            faults.append(f"after {blows[-1]} there still runs {outcome.orphans}")
        # -N: the default action of the signal, before our handler stood or by SIGKILL.
        if outcome.status not in (0, -signum, 128 + signum, 130) or outcome.has_traceback:
            faults.append(f"ends with {outcome.status} after {blows[-1]}: {outcome.last_words}")
    last = run_stage(stage, work, root)
    if last.status != 0:
        faults.append(f"run again it ends with {last.status}: {last.last_words}")
    differences = prepared.expected.faults(read_tree(work))
    faults += differences[:MOST_SHOWN]
    if len(differences) > MOST_SHOWN:
        faults.append(f"and {len(differences) - MOST_SHOWN} more")
    return Killed(stage=stage.name, blows=tuple(blows), landed=landed, faults=tuple(faults))

"""Runs workers of several sides in turn, and makes ratios and a table of what they measured.

A run is one worker process: a dict with `wall_s`, `cpu_s`, `peak_bytes`, `items` and what else the worker found out.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

OURS = "ours"
MEASURES = ("cpu_s", "wall_s", "peak_bytes")
SAMPLE_S = 0.1
"""Least pause between two looks at the memory of a worker and its children."""
SAMPLE_SHARE = 0.01
"""Most of the time that goes into looking: the system counts every page anew, and the core is taken from the worker."""

Run = dict[str, Any]


class WorkerFailed(Exception):
    """A worker ended with an error; the message is the end of what it said."""


def run_worker(command: Sequence[str], environment: Mapping[str, str]) -> Run:
    """Run one worker and return what its last line says, with the peak memory of all its processes together.

    Raises:
        WorkerFailed: it ended with an error, or said nothing.
    """
    process = subprocess.Popen(
        command, env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    lines: list[str] = []
    output = process.stdout
    assert output is not None
    reader = Thread(target=lambda: lines.extend(output), daemon=True)
    reader.start()
    peak_bytes = 0
    while process.poll() is None:
        start = time.perf_counter()
        peak_bytes = max(peak_bytes, tree_bytes(process.pid))
        pause_s = max(SAMPLE_S, (time.perf_counter() - start) / SAMPLE_SHARE)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(pause_s)
    # A grandchild may hold the pipe open.
    reader.join(timeout=5)
    if not reader.is_alive():
        output.close()
    said = [line for line in lines if line.startswith("{")]
    if process.returncode != 0 or not said:
        raise WorkerFailed("".join(lines[-15:]).strip() or f"exit status {process.returncode}")
    run = json.loads(said[-1])
    return run | {"peak_bytes": max(run.get("peak_bytes", 0), peak_bytes)}


def tree_bytes(pid: int) -> int:
    """Memory of a process and its descendants, shared pages counted once; 0 where the system does not tell."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += 1024 * int(line.split()[1])
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(tree_bytes(int(child)) for child in (task / "children").read_text().split())
    except OSError:
        # It has ended in the meantime, or there is no such file system.
        pass
    return total


def interleave(
    sides: Sequence[str], rounds: int, run: Callable[[str, int], Run]
) -> tuple[dict[str, list[Run]], dict[str, str]]:
    """All runs by side, and why sides failed: A B C, C B A, A B C, ... A side that failed once is left out afterwards.

    Turning the order round takes out what slowly changes, such as the temperature of the machine.
    """
    runs: dict[str, list[Run]] = {side: [] for side in sides}
    failed: dict[str, str] = {}
    for number in range(rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            if side in failed:
                continue
            try:
                runs[side].append(run(side, number))
            except WorkerFailed as error:
                failed[side] = str(error)
    return {side: each for side, each in runs.items() if side not in failed}, failed


def ratios(runs: Mapping[str, Sequence[Run]]) -> dict[str, dict[str, float]]:
    """What a peer takes for an item divided by what we take: the median over the rounds, by peer and measure."""
    ours = runs.get(OURS, ())
    result = {}
    for side, theirs in runs.items():
        pairs = list(zip(theirs, ours))
        if side != OURS and pairs:
            result[side] = {
                measure: statistics.median(_cost(a, measure) / _cost(b, measure) for a, b in pairs)
                for measure in MEASURES
            }
    return result


def _cost(run: Run, measure: str) -> float:
    return run[measure] if measure == "peak_bytes" else run[measure] / run["items"]


def summary_line(runs: Sequence[Run]) -> dict[str, float]:
    """Medians of a side: seconds for an item, peak memory, and the Dice where there is one."""
    line = {measure: statistics.median(_cost(run, measure) for run in runs) for measure in MEASURES}
    scores = [run["dice"] for run in runs if run.get("dice") is not None]
    if scores:
        line |= {"dice": statistics.mean(scores), "dice_low": min(scores), "dice_high": max(scores)}
    return line


def table(records: Mapping[str, Mapping[str, Any]]) -> str:
    """A markdown table of all records: one row for each side."""
    rows = [
        "| work | side | CPU s | wall s | peak MB | CPU ratio | wall ratio | memory ratio | Dice |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, record in records.items():
        ratio_of = ratios(record["runs"])
        for side, runs in record["runs"].items():
            line, ratio = summary_line(runs), ratio_of.get(side)
            cells = [name, side, f"{line['cpu_s']:.4g}", f"{line['wall_s']:.4g}", f"{line['peak_bytes'] / 1e6:.0f}"]
            cells += [f"{ratio[measure]:.2f}" for measure in MEASURES] if ratio else ["", "", ""]
            dice = f"{line['dice']:.4f} ({line['dice_low']:.4f} to {line['dice_high']:.4f})" if "dice" in line else ""
            rows.append(f"| {' | '.join([*cells, dice])} |")
        rows += [f"| {name} | {side} | absent: {why} | | | | | | |" for side, why in record["absent"].items()]
        rows += [f"| {name} | {side} | failed | | | | | | |" for side in record["failed"]]
    return "\n".join(rows)


def installed(python: str, packages: Sequence[str]) -> dict[str, str]:
    """Versions of those packages that another interpreter has; nothing is imported there.

    Raises:
        OSError: there is no such interpreter.
    """
    question = (
        "import importlib.metadata as m, json, sys\n"
        "found = {}\n"
        "for name in sys.argv[1:]:\n"
        "    try: found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    answer = subprocess.run([python, "-c", question, *packages], capture_output=True, text=True, check=False)
    return json.loads(answer.stdout) if answer.returncode == 0 else {}


def environment_of(threads: int, own: Mapping[str, str]) -> dict[str, str]:
    """The environment of a worker: as many threads as said, whatever library makes them."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return dict(own) | dict.fromkeys(names, str(threads)) | {"PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1"}


def complain(text: str) -> None:
    """A line for the person who waits."""
    print(text, file=sys.stderr, flush=True)

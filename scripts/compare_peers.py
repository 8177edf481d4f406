"""Do the same work with this program and with its peers, in turn, and write down the ratios.

python scripts/compare_peers.py --stages step loader_nnunet --peers_python /path/to/peers/bin/python

The peers (nnunetv2, batchgeneratorsv2, MONAI, scikit-image) live in an environment of their own; one that is not
there is reported as absent.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.peers import harness
from scripts.peers.stages import NEEDED, PEERS, Comparison, choose
from utils.args import parse
from utils.errors import EXIT_OK, EXIT_PARTIAL, UserError, run_cli
from utils.files import json_ready

PROJECT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Compare CPU seconds, wall seconds and peak memory with the peers that are installed."""

    stages: tuple[str, ...] = ()
    """What to compare: stages (step, sliding, loader_reference, loader_nnunet) or single cases of them such as
    step/batch_2 (default: all)."""
    peers_python: Path = Path(sys.executable)
    """Interpreter of the environment that has the peers (default: this one)."""
    sides: tuple[str, ...] = ()
    """Sides to run; results of the others stay as they are in --json (default: all of a stage)."""
    repetitions: int = 3
    """Times that every side does the work, in turn."""
    quick: bool = False
    """Little work, to see that everything runs; the numbers mean nothing."""
    threads: int = 2
    """Threads of every side (loaders: one)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the network on both sides; bf16 is fast on CPUs that compute in it."""
    json: Path | None = None
    """Results, to which other stages may be added later, with a table in the .md file beside (default:
    scripts/results/compare_peers_cpu.json; with --quick: none)."""

    def __post_init__(self) -> None:
        if self.repetitions < 1 or self.threads < 1:
            raise UserError("--repetitions and --threads must be at least 1")
        try:
            choose(self.stages)
        except ValueError as error:
            raise UserError(f"--stages: {error}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparisons; returns the exit status (1: a side failed)."""
    options = parse(CompareOptions, argv, prog="compare_peers.py")
    target = options.json or (None if options.quick else PROJECT / "scripts/results/compare_peers_cpu.json")
    records = read_records(target)
    try:
        found = harness.installed(str(options.peers_python), PEERS)
    except OSError as error:
        raise UserError(f"--peers_python {options.peers_python} cannot be run: {error.strerror}") from None
    names = []
    for comparison in choose(options.stages):
        name = comparison.name if options.precision == "fp32" else f"{comparison.name}_{options.precision}"
        record = compare(comparison, options, found)
        records[name] = merged(records.get(name), record)
        names.append(name)
        if target is not None:
            write_records(target, records)
    print(harness.table({name: records[name] for name in names}))
    return EXIT_PARTIAL if any(records[name]["failed"] for name in names) else EXIT_OK


def compare(comparison: Comparison, options: CompareOptions, found: dict[str, str]) -> dict[str, Any]:
    """Prepare one comparison's data and run its sides in turn; `found` are the versions of the peers' packages."""
    from utils.throughput import environment

    wanted = [side for side in comparison.sides if not options.sides or side in options.sides]
    absent = absent_sides(wanted, found)
    settings = {"threads": options.threads, "precision": options.precision, "worker": comparison.worker}
    job = {**comparison.job, **(comparison.quick if options.quick else {}), **settings}
    surroundings = harness.environment_of(options.threads, os.environ)
    with tempfile.TemporaryDirectory(prefix="nnunet-peers-") as folder:
        job["folder"] = folder
        harness.complain(f"{comparison.name}: preparing")
        harness.run_worker(_command(sys.executable, "prepare", job), surroundings)

        def run(side: str, number: int) -> harness.Run:
            with tempfile.TemporaryDirectory(prefix="nnunet-peers-") as scratch:
                python = sys.executable if side == harness.OURS else str(options.peers_python)
                mine = job | {"side": side, "seed": number, "scratch": scratch}
                done = harness.run_worker(_command(python, comparison.worker, mine), surroundings)
            harness.complain(f"{comparison.name}: {side} {done['cpu_s']:.2f} CPU s, {done['wall_s']:.2f} wall s")
            return done

        present = [side for side in wanted if side not in absent]
        runs, failed = harness.interleave(present, options.repetitions, run)
    for side, reason in failed.items():
        harness.complain(f"{comparison.name}: {side} failed:\n{reason}")
    return {
        "goal": comparison.goal, "runs": runs, "absent": absent, "failed": failed, "peers": found,
        "job": {name: value for name, value in job.items() if name != "folder"},
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "machine": environment(),
    }  # fmt: skip


def absent_sides(sides: Sequence[str], found: dict[str, str]) -> dict[str, str]:
    """Peers that cannot run, with the packages that they lack."""
    lacking = {side: [name for name in NEEDED.get(side, ()) if name not in found] for side in sides}
    return {side: ", ".join(names) + " not installed" for side, names in lacking.items() if names}


def merged(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """The new record with the runs of sides that were not run now, and the ratios of all."""
    kept = {side: runs for side, runs in (old or {}).get("runs", {}).items() if side not in new["runs"]}
    runs = {**kept, **new["runs"]}
    ordered = {side: runs[side] for side in sorted(runs, key=lambda side: side != harness.OURS)}
    medians = {side: harness.summary_line(each) for side, each in ordered.items()}
    return new | {"runs": ordered, "medians": medians, "ratios": harness.ratios(ordered)}


def read_records(path: Path | None) -> dict[str, Any]:
    """What an earlier comparison wrote, or nothing."""
    if path is None or not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))["comparisons"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"--json {path} is no result of this script; choose another file") from None


def write_records(path: Path, records: dict[str, Any]) -> None:
    """The JSON file and the table beside it."""
    from utils.files import write_json

    path.parent.mkdir(parents=True, exist_ok=True)
    write_json({"version": 1, "comparisons": json_ready(records)}, path)
    path.with_suffix(".md").write_text(harness.table(records) + "\n", encoding="utf-8")


def _command(python: str, worker: str, job: dict[str, Any]) -> list[str]:
    return [python, str(PROJECT / "scripts/peers" / f"{worker}.py"), json.dumps(job)]


if __name__ == "__main__":
    sys.exit(run_cli(main))

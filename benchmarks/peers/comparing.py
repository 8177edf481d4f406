"""Every side does the same work, in turn, in a process of its own; what it cost goes into the file of results."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import evaluate
from benchmarks.peers import harness, records_file
from benchmarks.peers.options import CompareOptions
from benchmarks.peers.stages import NEEDED, PEERS, Comparison, choose
from utils.errors import EXIT_OK, EXIT_PARTIAL, UserError
from utils.files import json_ready
from utils.throughput import environment

PROJECT = Path(__file__).resolve().parents[2]


def compare_all(options: CompareOptions) -> int:
    """Run the comparisons, keep and print their results; returns the exit status (1: a side failed).

    Raises:
        UserError: files or the peers' interpreter are missing, or the file of results is another one's.
    """
    for path in (options.data, options.model):
        if path is not None and not path.exists():
            raise UserError(f"{path} does not exist")
    target = options.json or (None if options.quick else PROJECT / "benchmarks/results/compare_peers_cpu.json")
    records = records_file.read(target)
    try:
        found = harness.installed(str(options.peers_python), PEERS)
    except OSError as error:
        raise UserError(f"--peers_python {options.peers_python} cannot be run: {error.strerror}") from None
    names = []
    for comparison in choose(options.stages):
        name = comparison.name if options.precision == "fp32" else f"{comparison.name}_{options.precision}"
        earlier = records.get(name)
        record = compare(comparison, options, found, first_seed=records_file.num_runs(earlier) if options.more else 0)
        records[name] = records_file.merged(earlier, record, add=options.more)
        names.append(name)
        if target is not None:
            records_file.write(target, records)
    print(harness.table({name: records[name] for name in names}))
    return EXIT_PARTIAL if any(records[name]["failed"] for name in names) else EXIT_OK


def compare(
    comparison: Comparison, options: CompareOptions, found: dict[str, str], *, first_seed: int = 0
) -> dict[str, Any]:
    """Prepare one comparison's data and run its sides in turn; `found` are the versions of the peers' packages."""
    wanted = [side for side in comparison.sides if not options.sides or side in options.sides]
    absent = absent_sides(wanted, found)
    job = job_of(comparison, options)
    surroundings = harness.environment_of(options.threads, os.environ)
    with tempfile.TemporaryDirectory(prefix="nnunet-peers-") as folder:
        job["folder"] = folder
        harness.complain(f"{comparison.name}: preparing")
        harness.run_worker(_command(sys.executable, "prepare", job), surroundings)

        def run(side: str, number: int) -> harness.Run:
            with tempfile.TemporaryDirectory(prefix="nnunet-peers-") as scratch:
                python = sys.executable if side == harness.OURS else str(options.peers_python)
                mine = job | {"side": side, "seed": first_seed + number, "scratch": scratch}
                done = harness.run_worker(_command(python, comparison.worker, mine), surroundings)
                if "predictions" in done:
                    done["dice"] = mean_dice(Path(done.pop("predictions")), Path(folder) / "labels")
            harness.complain(f"{comparison.name}: {side} {done['cpu_s']:.2f} CPU s, {done['wall_s']:.2f} wall s")
            return done

        present = [side for side in wanted if side not in absent]
        runs, failed = harness.interleave(present, options.repetitions, run)
    for side, reason in failed.items():
        harness.complain(f"{comparison.name}: {side} failed:\n{reason}")
    return {
        "goal": comparison.goal, "runs": runs, "absent": absent, "failed": failed, "peers": found,
        "job": recorded(job),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "machine": environment(),
    }  # fmt: skip


def job_of(comparison: Comparison, options: CompareOptions) -> dict[str, Any]:
    """What every worker of a comparison is told."""
    job: dict[str, Any] = {"worker": comparison.worker, **comparison.job, **(comparison.quick if options.quick else {})}
    if options.scans and "scans" in job:
        job["scans"] = options.scans
    names = ("threads", "precision", "our_flags", "data", "model", "seconds", "max_epochs")
    given = {name: json_ready(getattr(options, name)) for name in names}
    return {"batch_size": options.batch_size, **given, **job}


def recorded(job: dict[str, Any]) -> dict[str, Any]:
    """A job as it is kept: folders by their name alone, since where they lay says nothing elsewhere."""
    names = {name: Path(job[name]).name for name in ("data", "model") if job.get(name)}
    return {name: value for name, value in (job | names).items() if name != "folder"}


def mean_dice(predictions: Path, labels: Path) -> float:
    """Mean Dice of masks, by evaluate.py, whoever made them."""
    result = predictions.with_suffix(".json")
    words = ["--preds", str(predictions), "--lbls", str(labels), "--json", str(result), "--no_report"]
    with contextlib.redirect_stdout(sys.stderr):
        evaluate.main([*words, "--csv", str(predictions.with_suffix(".csv"))])
    return json.loads(result.read_text(encoding="utf-8"))["mean_dice"]


def absent_sides(sides: Sequence[str], found: dict[str, str]) -> dict[str, str]:
    """Peers that cannot run, with the packages that they lack."""
    lacking = {side: [name for name in NEEDED.get(side, ()) if name not in found] for side in sides}
    return {side: ", ".join(names) + " not installed" for side, names in lacking.items() if names}


def _command(python: str, worker: str, job: dict[str, Any]) -> list[str]:
    return [python, str(PROJECT / "benchmarks/peers" / f"{worker}.py"), json.dumps(job)]

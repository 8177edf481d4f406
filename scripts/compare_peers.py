"""Do the same work with this program and with its peers, in turn, and write down the ratios.

python scripts/compare_peers.py --stages step loader_nnunet --peers_python /path/to/peers/bin/python

The peers (nnunetv2, batchgeneratorsv2, MONAI, scikit-image) live in an environment of their own; one that is not
there is reported as absent.
"""

from __future__ import annotations

import contextlib
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

from benchmarks.peers import harness, records_file
from benchmarks.peers.stages import NEEDED, PEERS, Comparison, choose
from utils.args import parse
from utils.errors import EXIT_OK, EXIT_PARTIAL, UserError, run_cli
from utils.files import json_ready

PROJECT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Compare CPU seconds, wall seconds and peak memory with the peers that are installed."""

    stages: tuple[str, ...] = ()
    """What to compare: stages (preprocess, loader_reference, loader_nnunet, step, sliding, predict, accuracy) or single
    cases of them such as step/batch_2 (default: all but accuracy)."""
    peers_python: Path = Path(sys.executable)
    """Interpreter of the environment that has the peers (default: this one)."""
    sides: tuple[str, ...] = ()
    """Sides to run; results of the others stay as they are in --json (default: all of a stage)."""
    repetitions: int = 3
    """Times that every side does the work, in turn."""
    more: bool = False
    """Keep the runs that --json has of the same work, and add to them, with further seeds (default: replace them)."""
    quick: bool = False
    """Little work, to see that everything runs; the numbers mean nothing."""
    threads: int = 2
    """Threads of every side (loaders: one)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the network on both sides; bf16 is fast on CPUs that compute in it."""
    data: Path | None = None
    """preprocess, predict, accuracy: task folder of MR scans with one channel, such as Task04_Hippocampus; it is only
    read (default: a made-up task)."""
    scans: int = 0
    """preprocess, predict: number of scans (0: all of the task; predict: all of the validation part of fold 0)."""
    model: Path | None = None
    """predict: model of this program, trained on fold 0, whose weights all sides use (default: random weights)."""
    seconds: float = 531.0
    """accuracy: wall time of a training; repetitions differ in their seed."""
    batch_size: int = 1
    """accuracy: batch size of the peer; on two cores 1 takes it further than 2 in nine minutes."""
    max_epochs: int | None = None
    """accuracy: epochs of this program's training (default: as many as fit, found out before)."""
    our_flags: str = ""
    """Further flags of main.py for this program's side of step and accuracy, written with an equals sign:
    --our_flags="--layout NDHWC"."""
    json: Path | None = None
    """Results, to which other stages may be added later, with a table in the .md file beside (default:
    benchmarks/results/compare_peers_cpu.json; with --quick: none)."""

    def __post_init__(self) -> None:
        for name in ("repetitions", "threads", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if not self.seconds > 0 or self.scans < 0:
            raise UserError(f"--seconds must be positive and --scans not negative, got {self.seconds}, {self.scans}")
        try:
            choose(self.stages)
        except ValueError as error:
            raise UserError(f"--stages: {error}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparisons; returns the exit status (1: a side failed)."""
    options = parse(CompareOptions, argv, prog="compare_peers.py")
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
    from utils.throughput import environment

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
    import evaluate

    result = predictions.with_suffix(".json")
    words = ["--preds", str(predictions), "--lbls", str(labels), "--json", str(result)]
    with contextlib.redirect_stdout(sys.stderr):
        evaluate.main([*words, "--csv", str(predictions.with_suffix(".csv"))])
    return json.loads(result.read_text(encoding="utf-8"))["mean_dice"]


def absent_sides(sides: Sequence[str], found: dict[str, str]) -> dict[str, str]:
    """Peers that cannot run, with the packages that they lack."""
    lacking = {side: [name for name in NEEDED.get(side, ()) if name not in found] for side in sides}
    return {side: ", ".join(names) + " not installed" for side, names in lacking.items() if names}


def _command(python: str, worker: str, job: dict[str, Any]) -> list[str]:
    return [python, str(PROJECT / "benchmarks/peers" / f"{worker}.py"), json.dumps(job)]


if __name__ == "__main__":
    sys.exit(run_cli(main))

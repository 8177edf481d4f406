"""How well wrong labels are found: errors planted in a copy of a data set, cross-validated, audited, counted.

python -m benchmarks.label_audit --source data/Task04_Hippocampus --seed 1
python -m benchmarks.label_audit --source data/Task04_Hippocampus --seed 1 --share 0
"""

from __future__ import annotations

import dataclasses
import json
import math
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.wrong_labels import KINDS, PLANTED, Planting, plant_errors
from utils.args import parse
from utils.errors import EXIT_OK, UserError, run_cli
from utils.files import to_dict, write_json
from utils.label_audit import AUDIT_TABLE, AuditRow, read_audit

PROJECT = Path(__file__).resolve().parents[1]
NETWORK = ("--filters", "8", "16", "32", "64", "--augment", "none", "--learning_rate", "0.002", "--scheduler", "cosine")
NAMES = {
    "shift": ("shifted",), "swap": ("swapped classes",), "missing class": ("missing structure",),
    "dilation": ("dilated",), "missing slices": ("missing slices",), "other case": ("wrong scan",),
}  # fmt: skip
"""Kind that is planted -> what the audit calls it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditBenchmark:
    """Plant errors, cross-validate small networks on them, audit, and count what was found."""

    source: Path
    """Data set with sound labels: the folder TaskNN_Name."""
    seed: int = 1
    """Of the cases, the errors and the networks."""
    cases: int = 100
    """Cases to take (0: all)."""
    share: float = 0.2
    """Share of them that gets a wrong label."""
    folds: int = 3
    """Folds of the cross-validation."""
    epochs: int = 6
    """Epochs of each fold."""
    steps: int = 25
    """Training steps of an epoch."""
    output: Path = Path("label_audit")
    """Folder for data, networks and the audit; what is finished there is not done again."""

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise UserError(f"--share must be at least 0 and below 1, got {self.share}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status."""
    options = parse(AuditBenchmark, argv, prog="label_audit.py")
    folder = options.output.absolute() / f"{options.source.name}_{options.share:g}_seed{options.seed}"
    task = options.source.name[4:6]
    planting = Planting(cases=options.cases, share=options.share, seed=options.seed)
    data = folder / options.source.name
    if not (data / PLANTED).is_file():
        plant_errors(options.source, data, planting)
    _run("preprocess.py", "--task", task, "--data", data, "--results", folder, "--dim", "3",
         "--nfolds", options.folds, "--n_jobs", "1")  # fmt: skip
    _run("scripts/cross_validate.py", "--task", task, "--data", folder, "--results", folder, "--gpus", "0", "--",
         *NETWORK, "--epochs", options.epochs, "--batches_per_epoch", options.steps,
         "--skip_first_n_eval", options.epochs - 1, "--seed", options.seed, "--num_workers", "1")  # fmt: skip
    cpu_s = _run("scripts/audit_labels.py", "--task", task, "--data", folder, "--results", folder, "--n_jobs", "1")
    outcome = count_found(read_audit(folder / f"{task}_audit" / AUDIT_TABLE), json.loads((data / PLANTED).read_text()))
    write_json(outcome | {"cpu_s": cpu_s, "options": to_dict(options)}, folder / "outcome.json")
    print(outcome_table(outcome))
    print(f"the audit took {cpu_s:.1f} CPU seconds with its start and its page; {folder / 'outcome.json'}")
    return EXIT_OK


def count_found(rows: Sequence[AuditRow], planted: Mapping[str, str]) -> dict[str, Any]:
    """How many planted errors are among as many cases at the head of the ranking, and above the threshold, by kind.

    Args:
        rows: of the audit.
        planted: case -> kind of its error.
    """
    cases = [row for row in rows if row.scope == "case"]
    head = {row.case for row in cases[: len(planted)]}
    found = []
    for kind in KINDS:
        of_kind = [row for row in cases if planted.get(row.case) == kind]
        names = Counter(row.kind for row in of_kind)
        found.append({"kind": kind, "planted": len(of_kind), "head": sum(row.case in head for row in of_kind),
                      "suspicious": sum(row.suspicious for row in of_kind), "called": dict(names.most_common()),
                      "named": sum(row.kind in NAMES[kind] for row in of_kind)})  # fmt: skip
    clean = [row for row in cases if row.case not in planted]
    return {"cases": len(cases), "planted": len(planted), "head": len(head & planted.keys()), "kinds": found,
            "clean": len(clean), "clean_suspicious": sum(row.suspicious for row in clean),
            "auroc": _auroc([row.case in planted for row in cases])}  # fmt: skip


def outcome_table(outcome: Mapping[str, Any]) -> str:
    """The counts as text."""
    lines = [f"{'planted':16}{'cases':>6}{'in head':>9}{'suspicious':>12}{'named':>7}  called"]
    for kind in outcome["kinds"]:
        called = ", ".join(f"{name} {number}" for name, number in kind["called"].items())
        lines.append(f"{kind['kind']:16}{kind['planted']:6}{kind['head']:9}{kind['suspicious']:12}{kind['named']:7}  "
                     f"{called}")  # fmt: skip
    planted, clean = outcome["planted"], outcome["clean"]
    if planted:
        lines.append(f"in the first {planted} of {outcome['cases']}: {outcome['head']} of {planted} "
                     f"({outcome['head'] / planted:.0%}); AUROC {outcome['auroc']:.3f}")  # fmt: skip
    lines.append(f"clean labels above the threshold: {outcome['clean_suspicious']} of {clean} "
                 f"({outcome['clean_suspicious'] / max(1, clean):.1%})")  # fmt: skip
    return "\n".join(lines)


def _auroc(ranked: Sequence[bool]) -> float:
    """Of a ranking, most suspicious first: how often a wrong label stands before a sound one."""
    wrong, right, before = sum(ranked), len(ranked) - sum(ranked), 0
    seen = 0
    for each in ranked:
        seen += each
        before += 0 if each else seen
    return before / (wrong * right) if wrong and right else math.nan


def _run(*words: object) -> float:
    """Run a script of this project; returns the CPU seconds that it took."""
    before = _children_s()
    command = [sys.executable, str(PROJECT / str(words[0])), *map(str, words[1:])]
    if status := subprocess.run(command).returncode:
        raise UserError(f"{' '.join(command)} ended with status {status}")
    return _children_s() - before


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(run_cli(main))

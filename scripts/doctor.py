"""Say what this machine and installation can do, and check in seconds that the parts work.

python scripts/doctor.py
python scripts/doctor.py --json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.errors import EXIT_OK, EXIT_PARTIAL, run_cli
from utils.machine import machine_facts
from utils.program import program_name
from utils.self_check import Check, default_folders, free_memory, run_checks


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Say what this machine can do, and check that the program's parts work. Exit status 0: all that is needed works;
    1: something does not, and its line says what."""

    json: bool = False
    """Print JSON, for a bug report or a program."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print everything; returns the exit status (1: a needed part does not work)."""
    options = parse_options(argv)
    facts = machine_facts(default_folders(), free_memory)
    checks = run_checks()
    broken = [check for check in checks if check.state == "broken"]
    if options.json:
        report = {"ok": not broken, "machine": facts, "checks": [dataclasses.asdict(check) for check in checks]}
        print(json.dumps(report, indent=1))
    else:
        print(table(facts, checks))
    return EXIT_PARTIAL if broken else EXIT_OK


def parse_options(argv: Sequence[str] | None) -> DoctorOptions:
    """Parse the one flag; with the standard library alone, because this command is for incomplete installations."""
    name = program_name("doctor.py")
    parser = argparse.ArgumentParser(prog=name, description=DoctorOptions.__doc__, epilog=f"Example: {name} --json")
    parser.add_argument("--json", action="store_true", help="print JSON, for a bug report or a program")
    return DoctorOptions(**vars(parser.parse_args(argv)))


def table(facts: dict[str, str], checks: Sequence[Check]) -> str:
    """One screen of text, what does not work marked and named again at the end."""
    width = max(map(len, (*facts, *(check.name for check in checks))))
    marks = {"ok": "ok", "absent": "--", "broken": "NOT OK"}
    lines = [f"        {name:{width}}  {text}" for name, text in facts.items()]
    lines += [f"{marks[check.state]:6}  {check.name:{width}}  {check.text}" for check in checks]
    broken = [check.name for check in checks if check.state == "broken"]
    end = f"NOT OK: {', '.join(broken)}" if broken else "all needed parts work"
    return "\n".join([*lines, end])


if __name__ == "__main__":
    sys.exit(run_cli(main))

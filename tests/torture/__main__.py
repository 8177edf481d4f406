"""Torture of the whole program: kills, full disks, damaged files; half an hour, drawn by a seed.

python -m tests.torture
python -m tests.torture --parts fuzz --fuzz 2000 --seed 3
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.torture.clocks import run_clocks
from tests.torture.commands import warm_up
from tests.torture.disk import run_disk
from tests.torture.endure import run_endure
from tests.torture.fuzz import run_fuzz
from tests.torture.fuzz_targets import TARGETS
from tests.torture.kills import run_kills
from tests.torture.stages import STAGES
from tests.torture.twice import run_twice

SHARES = {"kills": 0.35, "disk": 0.15, "fuzz": 0.3, "twice": 0.1, "clocks": 0.05, "endure": 0.05}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts that are asked for; exit status 1 where one found a fault."""
    options = _options(argv)
    warm_up()
    total = sum(SHARES[name] for name in options.parts)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="torture-") as temporary:
        for name in options.parts:
            begin, folder = time.monotonic(), (options.work or Path(temporary)) / "all"
            seconds = 60 * options.minutes * SHARES[name] / total
            results[name] = _part(name, options)(folder, seconds) | {"seconds": round(time.monotonic() - begin)}
            # The next part finds what the stages leave undisturbed.
            options.reuse = True
            print(_in_words(name, results[name]), flush=True)
            if options.json:
                options.json.write_text(json.dumps(results, indent=1))
    return int(any(_faults(result) for result in results.values()))


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=SHARES, default=list(SHARES))
    parser.add_argument(
        "--minutes", type=float, default=30, help="for all parts together; what does not fit is left out"
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--fuzz", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    stages, targets = [stage.name for stage in STAGES], [target.name for target in TARGETS]
    parser.add_argument("--stages", nargs="+", choices=stages, help="of the kills and disks, only these")
    parser.add_argument("--targets", nargs="+", choices=targets, help="of the damaged files, only these")
    parser.add_argument("--work", type=Path, help="folder to work in, which is kept")
    parser.add_argument("--reuse", action="store_true", help="the states that an earlier call has left in --work")
    parser.add_argument("--json", type=Path, help="file for the results")
    return parser.parse_args(argv)


def _part(name: str, options: argparse.Namespace) -> Callable[[Path, float], dict[str, Any]]:
    if name == "fuzz":
        how: dict[str, Any] = {"number": options.fuzz, "names": options.targets}
    else:
        how = {"names": options.stages} | ({"number": options.kills} if name == "kills" else {})
    run = {
        "kills": run_kills,
        "disk": run_disk,
        "fuzz": run_fuzz,
        "twice": run_twice,
        "clocks": run_clocks,
        "endure": run_endure,
    }[name]
    return lambda folder, seconds: run(folder, seed=options.seed, seconds=seconds, reuse=options.reuse, **how)


def _faults(result: dict[str, Any]) -> int:
    return len(result["faults"]) + len(result["undisturbed"])


def _in_words(name: str, result: dict[str, Any]) -> str:
    lines = [f"{name}: {_faults(result)} faults, seed {result['seed']}, {result['seconds']} s"]
    for key in (
        "kills",
        "targets",
        "trials",
        "left_out",
        "no_worker_hit",
        "disks",
        "twice",
        "without_package",
        "epochs",
        "books",
    ):
        if isinstance(result.get(key), dict):
            lines += [
                f"  {which}: {', '.join(f'{k} {v}' for k, v in counts.items())}"
                for which, counts in result[key].items()
            ]
        elif key in result:
            lines.append(f"  {key}: {result[key]}")
    lines += [f"  undisturbed: {fault}" for fault in result["undisturbed"]]
    lines += [f"  FAULT {json.dumps(entry, ensure_ascii=False)}" for entry in result["faults"]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

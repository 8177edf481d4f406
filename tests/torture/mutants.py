"""Mutation testing of the core: small changes to the code, one at a time, each of which a test must notice.

python -m tests.torture.mutants
python -m tests.torture.mutants --modules utils/scores.py --number 40

Changes are drawn by a seed from all that can be made: comparisons, arithmetic, numbers, conditions, statements left
out. For each the tests beside the module run first, in a copy of the project; what survives them meets all quick tests
of the module's room and those of the whole way.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from tests.torture.activity import Activity, of_session
from tests.torture.changes import Mutant, make_mutant, mutants_of
from tests.torture.equivalents import reason

PROJECT = Path(__file__).resolve().parents[2]
CORE: dict[str, tuple[str, ...]] = {
    "data_preprocessing/resampling.py": ("test_resampling.py", "test_nearest_ties.py"),
    "data_preprocessing/restoration.py": ("test_restoration.py", "test_restoration_slabs.py"),
    "data_preprocessing/normalization.py": ("test_normalization.py",),
    "data_preprocessing/planning/topology.py": ("planning/test_topology.py",),
    "data_preprocessing/planning/stages.py": ("planning/test_stages.py", "planning/test_planner.py"),
    "data_preprocessing/planning/planner.py": ("planning/test_planner.py", "test_planner_nnunet.py"),
    "data_preprocessing/planning/fingerprint.py": ("planning/test_fingerprint.py",),
    "utils/scores.py": ("test_scores.py",),
    "utils/scoring.py": ("test_scoring.py",),
    "models/loss.py": ("test_loss.py", "test_volume_loss.py"),
    "models/dice_entropy.py": ("test_dice_entropy.py", "test_loss.py"),
    "models/sliding_window.py": ("test_sliding_window.py", "test_inferer.py"),
    "models/windows.py": ("test_windows.py", "test_sliding_window.py"),
}
"""Module of the core -> its tests, below the folder of tests of its room."""
FURTHER = ("tests/test_preprocess_numbers.py", "tests/inference/test_predictor.py", "tests/test_evaluate.py")
SLOWER = 10.0
"""A change that makes the tests take so many times as long is noticed, too."""
_COPIED = ("tests", "main.py", "preprocess.py", "download.py", "evaluate.py", "pyproject.toml", "scripts", "utils",
           "data_preprocessing", "data_loading", "models", "report", "inference", "training", "cross_validation",
           "benchmarks", "serving")  # fmt: skip


def choose(folder: Path, modules: Sequence[str], number: int, seed: int) -> list[Mutant]:
    """`number` changes to modules of a folder, from each as many as its size lets expect; the same for equal code."""
    sources = {module: (folder / module).read_text() for module in modules}
    sizes = {module: len(mutants_of(source)) for module, source in sources.items()}
    chosen = []
    for module, size in sizes.items():
        share = min(max(1, round(number * size / sum(sizes.values()))), size)
        numbers = random.Random(f"{seed} {module}").sample(range(size), share)
        chosen += [make_mutant(module, sources[module], each) for each in numbers]
    return [each for each in chosen if _compiles(each.text)]


def _compiles(text: str) -> bool:
    try:
        compile(text, "mutant", "exec")
    except (SyntaxError, ValueError):
        return False
    return True


def test_files(module: str) -> tuple[list[str], list[str]]:
    """Tests beside a module, and further ones for what survives these."""
    room = module.split("/")[0]
    beside = [f"tests/{room}/{name}" for name in CORE[module]]
    return beside, [f"tests/{room}", *FURTHER]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """A copy of the project in which changes are made and tests run.

    Attributes:
        folder: the copy.
        log: what the last tests wrote.
        times: seconds of tests on sound code, by module and which of its tests; filled when they are needed.
        further: whether what survives the tests beside it meets the further ones, too.
        slow: whether the slow ones of the tests beside it take part.
    """

    folder: Path
    log: Path
    times: dict[tuple[str, int], float] = dataclasses.field(default_factory=dict)
    further: bool = True
    slow: bool = True

    def notices(self, mutant: Mutant) -> str | None:
        """Which tests notice the change: "beside", "further" or, if none does, None."""
        for which, name in enumerate(("beside", "further")[: 1 + self.further]):
            limit_s = SLOWER * self._seconds(mutant.module, which) + 10
            if self._pass_with(mutant.module, mutant.text, which, limit_s) is None:
                return name
        return None

    def _seconds(self, module: str, which: int) -> float:
        """How long tests take on sound code.

        Raises:
            RuntimeError: they fail; then they say nothing of changes.
        """
        if (module, which) not in self.times:
            # As changes are written: without comments.
            plain = ast.unparse(ast.parse((self.folder / module).read_text()))
            if (taken_s := self._pass_with(module, plain, which, 1800)) is None:
                raise RuntimeError(f"the tests of {module} fail on sound code: {self.log.read_text()[-2000:]}")
            self.times[module, which] = taken_s
        return self.times[module, which]

    def _pass_with(self, module: str, text: str, which: int, limit_s: float) -> float | None:
        path = self.folder / module
        # The copy's own, as the project may have changed since.
        sound = path.read_bytes()
        path.write_text(text)
        try:
            # Further ones are the quick ones.
            slow = self.slow and which == 0
            return _tests_pass(self.folder, test_files(module)[which], self.log, slow=slow, limit_s=limit_s)
        finally:
            path.write_bytes(sound)


def _tests_pass(folder: Path, files: Sequence[str], log: Path, *, slow: bool, limit_s: float) -> float | None:
    """Run tests in a copy of this process, which has imported what takes long and nothing of ours.

    Returns:
        seconds of processors that they took; None where one failed, or they hang.
    """
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        os.setsid()
        os.chdir(folder)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        # Not this copy of the tests and not this folder.
        for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
            del sys.modules[name]
        sys.path[:] = [str(folder), *(path for path in sys.path if path and Path(path).resolve() != PROJECT)]
        sys.dont_write_bytecode = True
        status = 1
        try:
            import pytest

            only = [] if slow else ["-m", "not slow"]
            # A plugin that is there already for what was imported is no fault.
            early = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
            status = int(pytest.main(["-x", "-q", "-p", "no:randomly", *early, *only, *files]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    activity = Activity(lambda: of_session(pid), limit_s)
    while not activity.hangs():
        found, code = os.waitpid(pid, os.WNOHANG)
        if found:
            return activity.ran_s if os.waitstatus_to_exitcode(code) == 0 else None
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Make the changes and count what survives; exit status 1 where more than one in twenty does."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("--modules", nargs="+", choices=CORE, default=list(CORE))
    parser.add_argument("--number", type=int, default=130)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="of the changes, these numbers and ranges of them (7 20-29)")
    parser.add_argument("--beside", action="store_true", help="only the tests beside the module, which is much faster")
    parser.add_argument("--quick", action="store_true", help="without the slow tests")
    parser.add_argument("--json", type=Path, help="file for the results")
    options = parser.parse_args(argv)
    assert not any(name.split(".")[0] in ("models", "utils", "data_preprocessing") for name in sys.modules), "imported"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in ("torch", "monai.networks.nets", "scipy.ndimage", "nibabel", "pytorch_lightning", "pytest", "tyro"):
        importlib.import_module(name)
    with tempfile.TemporaryDirectory(prefix="mutants-") as temporary:
        folder = Path(temporary) / "project"
        folder.mkdir()
        for name in _COPIED:
            source = PROJECT / name
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, folder / name)
        bench = Bench(
            folder=folder, log=Path(temporary) / "log.txt", further=not options.beside, slow=not options.quick
        )
        chosen = choose(folder, options.modules, options.number, options.seed)
        return _try_all(bench, [chosen[number] for number in _numbers(options.only, len(chosen))], options)


def _numbers(ranges: Sequence[str] | None, number: int) -> list[int]:
    """What `7 20-22` means: 7, 20, 21, 22; all of so many where nothing is said."""
    ends = [[int(each) for each in words.split("-")] for words in ranges or [f"0-{number - 1}"]]
    return [each for end in ends for each in range(end[0], min(end[-1] + 1, number))]


def _try_all(bench: Bench, mutants: Sequence[Mutant], options: argparse.Namespace) -> int:
    """Exit status 1 where more than one change in twenty survives."""
    killed: dict[str, int] = {"beside": 0, "further": 0}
    survivors: list[dict[str, str | int]] = []
    equivalent: list[dict[str, str | int]] = []
    for mutant in mutants:
        told = {"module": mutant.module, "line": mutant.line, "change": mutant.change}
        line = (bench.folder / mutant.module).read_text().splitlines()[mutant.line - 1]
        if why := reason(mutant.module, line, mutant.change):
            equivalent.append(told | {"reason": why})
            continue
        by = bench.notices(mutant)
        if by is None:
            survivors.append(told)
        else:
            killed[by] += 1
        print(f"{by or 'survives'}: {mutant.module}:{mutant.line}: {mutant.change}", flush=True)
        if options.json:
            found = {"seed": options.seed, "tried": sum(killed.values()) + len(survivors), "killed": killed}
            options.json.write_text(json.dumps(found | {"survivors": survivors, "equivalent": equivalent}, indent=1))
    number = sum(killed.values()) + len(survivors)
    print(f"{number - len(survivors)} of {number} changes are noticed ({killed['beside']} by the tests beside them)")
    return int(len(survivors) > number / 20)


if __name__ == "__main__":
    sys.exit(main())

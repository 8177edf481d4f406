"""A preprocessed task of tiny scans and cross_validate.py run on it, for the tests of cross-validation.

As a program, it is cross_validate.py with fake_main.py in place of main.py and preprocess.py.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from cross_validation import cascade_job, fold_run, jobs
from scripts import cross_validate
from tests.conftest import PROJECT
from utils.errors import run_cli

FAKE = PROJECT / "tests/scripts/fake_main.py"


@dataclasses.dataclass(frozen=True)
class Study:
    """Shards below `data`, results below `root`."""

    data: Path
    root: Path

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def calls_file(self) -> Path:
        return self.root / "calls.jsonl"

    def words(self, *words: str) -> list[str]:
        cut = words.index("--") if "--" in words else len(words)
        own = ["--task", "77", "--data", str(self.data), "--results", str(self.results), *words[:cut]]
        return [*own, *(() if "--gpus" in words else ("--gpus", "0")), *words[cut:]]

    def run(self, *words: str) -> int:
        """In this process."""
        return run_cli(lambda: cross_validate.main(self.words(*words)))

    def start(self, *words: str, **environment: str) -> subprocess.CompletedProcess:
        """As a program, so that it can be killed."""
        variables = os.environ | {"FAKE_CALLS": str(self.calls_file), "PYTHONPATH": str(PROJECT)} | environment
        command = [sys.executable, "-m", "tests.scripts.cross_validation", *self.words(*words)]
        # As in the background of a shell script, which ignores Ctrl-C.
        return subprocess.run(
            command, cwd=PROJECT, env=variables, capture_output=True, text=True, timeout=120,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        )  # fmt: skip

    def calls(self) -> list[dict]:
        """What the fake was asked to do, in order."""
        return [json.loads(line) for line in self.calls_file.read_text().splitlines()]

    def whats(self) -> list[str]:
        return [call["what"] for call in self.calls()]

    def summary(self) -> dict[str, dict]:
        """Configuration -> its part of the summary."""
        content = json.loads((self.results / "77_cross_validation.json").read_text())
        return {record["configuration"]: record for record in content["configurations"]}

    def out_of_fold(self, configuration: str) -> set[str]:
        return {path.name for path in (self.results / f"77_{configuration}/out_of_fold").iterdir()}


if __name__ == "__main__":
    # Takes seconds to import; the command that is given again, in the tests' own process, checks its flags.
    jobs.check_training = lambda *_, **__: None
    fold_run.MAIN = cascade_job.PREPROCESS = FAKE
    sys.exit(run_cli(cross_validate.main))

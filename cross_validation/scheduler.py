"""Long jobs side by side, one per device: each is a chain of commands and functions that a killed program continues.

A job is claimed by a lock that its commands inherit: whoever outlives a killed scheduler still holds it, so no two
processes ever work in one folder, and a second scheduler waits for them.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from utils.errors import UserError
from utils.locks import claim_file, release_file

POLL_S = 0.1
GRACE_S = 20.0
"""How long a command may take to end when it is asked to."""
TAIL_BYTES = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A program to run: the argument list, and what a person calls it."""

    name: str
    words: tuple[str, ...]


Steps = Generator[Command | Callable[[], None], None, str]
"""What is left to do, decided anew after each step; returns the job's last state, such as "finished"."""


class Job(Protocol):
    """What the scheduler asks of a job."""

    @property
    def name(self) -> str:
        """For people, and for the jobs that wait for it."""

    @property
    def after(self) -> tuple[str, ...]:
        """Names of the jobs that must have ended well before."""

    @property
    def lock(self) -> Path:
        """File that whoever works on it holds locked."""

    @property
    def log(self) -> Path:
        """File that takes the output of its commands."""

    def steps(self, gpu: str | None) -> Steps:
        """What is left to do on a device (CUDA_VISIBLE_DEVICES; None: the CPU)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended; `error` is empty unless it failed."""

    job: Job
    state: str
    seconds: float
    error: str = ""


def run_jobs(
    jobs: Sequence[Job],
    gpus: Sequence[str | None],
    *,
    report: Callable[[Outcome], None],
    notice: Callable[[str], None],
    watch: Callable[[list[str]], None] = lambda lines: None,
) -> list[Outcome]:
    """Run all jobs in order, one at a time on each device; a failed job stops only those that come after it.

    Args:
        jobs: what to do; a job stands behind those that it waits for.
        gpus: for each device the value of CUDA_VISIBLE_DEVICES; None is the CPU.
        report: called with each job that has ended.
        notice: called once for each job that another process is working on; it is waited for.
        watch: called again and again with a line about each job that runs.
    """
    with ThreadPoolExecutor(len(gpus)) as pool:
        schedule = _Schedule(jobs, gpus, notice, pool)
        try:
            while schedule.waiting or schedule.active:
                ended = schedule.advance()
                for outcome in ended:
                    report(outcome)
                if not ended:
                    watch([each.describe() for each in schedule.active])
                    time.sleep(POLL_S)
        finally:
            for each in schedule.active:
                each.terminate()
            for each in schedule.active:
                each.wait()
    return schedule.outcomes


class _Schedule:
    """Which jobs wait, which run and on what, which have ended."""

    def __init__(
        self, jobs: Sequence[Job], gpus: Sequence[str | None], notice: Callable[[str], None], pool: ThreadPoolExecutor
    ) -> None:
        self.waiting = list(jobs)
        self.active: list[_Running] = []
        self.outcomes: list[Outcome] = []
        self._gpus, self._notice, self._pool = gpus, notice, pool
        self._noticed: set[str] = set()

    def advance(self) -> list[Outcome]:
        """Begin what can begin, look after what runs; the jobs that have ended."""
        ended = self._give_up()
        for gpu in self._gpus:
            if gpu not in [each.gpu for each in self.active]:
                self._begin_next(gpu)
        for each in list(self.active):
            outcome = each.advance()
            if outcome is not None:
                self.active.remove(each)
                ended.append(outcome)
        self.outcomes += ended
        return ended

    def _give_up(self) -> list[Outcome]:
        """End the jobs that wait for one that failed."""
        failed = {outcome.job.name for outcome in self.outcomes if outcome.error}
        given_up = []
        for job in list(self.waiting):
            missing = [name for name in job.after if name in failed]
            if missing:
                self.waiting.remove(job)
                given_up.append(
                    Outcome(job=job, state="not begun", seconds=0.0, error=f"it needs {missing[0]}, which failed")
                )
        return given_up

    def _begin_next(self, gpu: str | None) -> None:
        unfinished = {job.name for job in self.waiting} | {each.job.name for each in self.active}
        for job in self.waiting:
            if unfinished & set(job.after):
                continue
            lock = claim(job.lock)
            if lock is not None:
                self.waiting.remove(job)
                self.active.append(_Running(job, gpu, lock, self._pool))
                return
            if job.name not in self._noticed:
                self._noticed.add(job.name)
                self._notice(f"{job.name}: another process works on it; it is waited for")


def claim(path: Path) -> int | None:
    """An open file that holds the lock, or None while another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return claim_file(path)


class _Running:
    """A claimed job on its device."""

    def __init__(self, job: Job, gpu: str | None, lock: int, pool: ThreadPoolExecutor) -> None:
        self.job, self.gpu = job, gpu
        self._lock: int | None = lock
        self._pool = pool
        self._steps = job.steps(gpu)
        self._start_s = time.perf_counter()
        self._name = ""
        self._process: subprocess.Popen | None = None
        self._work: Future | None = None

    def advance(self) -> Outcome | None:
        """Look after the current step and begin the next one; the outcome once the job has ended."""
        if self._process is not None:
            status = self._process.poll()
            if status is None:
                return None
            self._process = None
            if status != 0:
                return self._end("failed", self._reason(status))
        if self._work is not None and not self._work.done():
            return None
        try:
            if self._work is not None:
                work, self._work = self._work, None
                work.result()
            step = next(self._steps)
            if isinstance(step, Command):
                self._begin(step)
            else:
                self._work = self._pool.submit(step)
        except StopIteration as end:
            return self._end(end.value)
        except (UserError, OSError) as error:
            return self._end("failed", str(error))
        return None

    def _begin(self, command: Command) -> None:
        assert self._lock is not None, "a job that has ended begins nothing"
        self._name = command.name
        environment = dict(os.environ) if self.gpu is None else {**os.environ, "CUDA_VISIBLE_DEVICES": self.gpu}
        with self.job.log.open("ab") as log:
            log.write(f"$ {shlex.join(command.words)}\n".encode("utf-8", "surrogateescape"))
            log.flush()
            self._process = subprocess.Popen(
                command.words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment,
                pass_fds=(self._lock,),
            )  # fmt: skip

    def _reason(self, status: int) -> str:
        """Why a command failed: its own last word where that was an error, and where to read more."""
        how = f"exit status {status}" if status > 0 else f"killed by signal {-status}"
        last = next((line for line in reversed(self._tail()) if line.startswith(("error:", "$ "))), "")
        said = f" ({last.removeprefix('error: ')})" if last.startswith("error:") else ""
        return f"{self._name}: {how}{said}; see {self.job.log}"

    def describe(self) -> str:
        """The job, its step, and the last line that its command has written."""
        said = self._tail()[-1:] if self._process is not None else []
        return ": ".join([self.job.name, self._name, *(line for line in said if not line.startswith("$ "))])

    def _tail(self) -> list[str]:
        with self.job.log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_BYTES))
            return log.read().decode(errors="replace").splitlines()

    def _end(self, state: str, error: str = "") -> Outcome:
        self._release()
        return Outcome(job=self.job, state=state, seconds=time.perf_counter() - self._start_s, error=error)

    def _release(self) -> None:
        if self._lock is not None:
            release_file(self.job.lock, self._lock)
            self._lock = None

    def terminate(self) -> None:
        """Ask the command to end."""
        if self._process is not None:
            self._process.terminate()

    def wait(self) -> None:
        """Wait until it has ended, and make it end."""
        if self._process is not None:
            try:
                self._process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._release()

"""cross_validation/scheduler.py: jobs that need each other meet only when they run at the same time."""

from __future__ import annotations

import dataclasses
import fcntl
import os
from pathlib import Path

import pytest

from cross_validation.scheduler import Command, Steps, run_jobs
from utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class ShellJob:
    """Runs shell lines, each at most 30 s, and then a function."""

    name: str
    folder: Path
    lines: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    function: object = None

    @property
    def lock(self) -> Path:
        return self.folder / f".{self.name}.lock"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def steps(self, gpu: str | None) -> Steps:
        for line in self.lines:
            yield Command(name="step", words=("timeout", "30", "bash", "-c", f"cd {self.folder}; {line}"))
        if self.function:
            yield self.function
        return "finished"


def run(*jobs: ShellJob, gpus=(None,), notice=lambda text: None) -> dict[str, str]:
    """Job -> state, or error."""
    outcomes = run_jobs(jobs, gpus, report=lambda outcome: None, notice=notice)
    return {outcome.job.name: outcome.error or outcome.state for outcome in outcomes}


def test_two_devices_work_at_the_same_time(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    # Either end of the pipe opens only when the other one does.
    jobs = (
        ShellJob("a", tmp_path, ("echo $CUDA_VISIBLE_DEVICES > pipe",)),
        ShellJob("b", tmp_path, ("cat pipe; echo $CUDA_VISIBLE_DEVICES",)),
    )
    assert run(*jobs, gpus=("3", "5")) == {"a": "finished", "b": "finished"}
    assert (tmp_path / "b.log").read_text().splitlines()[-2:] == ["3", "5"]


@pytest.mark.slow
def test_one_device_does_one_job_after_the_other(tmp_path):
    jobs = [ShellJob(name, tmp_path, (f"mkdir busy; echo {name} >> order; rmdir busy",)) for name in "abc"]
    assert set(run(*jobs).values()) == {"finished"}
    assert (tmp_path / "order").read_text() == "a\nb\nc\n"


def test_a_free_device_goes_past_jobs_that_must_wait(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    jobs = (
        ShellJob("first", tmp_path, ("cat pipe",)),
        ShellJob("second", tmp_path, ("cat first.log",), after=("first",)),
        ShellJob("other", tmp_path, ("echo met > pipe",)),
    )
    assert set(run(*jobs, gpus=("0", "1")).values()) == {"finished"}
    assert (tmp_path / "second.log").read_text().splitlines()[-1] == "met"


@pytest.mark.slow
def test_failures_say_why_and_reach_those_that_wait(tmp_path):
    def fail() -> None:
        raise UserError("no such scan")

    jobs = (
        ShellJob("bad", tmp_path, ("echo error: no luck; exit 3", "touch never")),
        ShellJob("function", tmp_path, function=fail),
        ShellJob("killed", tmp_path, ("kill -9 $PPID",)),
        ShellJob("waiting", tmp_path, after=("bad",)),
        ShellJob("last", tmp_path, after=("waiting",)),
        ShellJob("free", tmp_path, ("true",)),
    )
    found = run(*jobs)
    assert found.pop("bad") == f"step: exit status 3 (no luck); see {tmp_path}/bad.log"
    assert found.pop("killed") == f"step: killed by signal 9; see {tmp_path}/killed.log"
    assert found == {
        "function": "no such scan",
        "waiting": "it needs bad, which failed",
        "last": "it needs waiting, which failed",
        "free": "finished",
    }
    assert not (tmp_path / "never").exists()


def test_a_job_of_another_process_is_waited_for(tmp_path):
    job, notices = ShellJob("a", tmp_path, ("true",)), []
    with job.lock.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        def notice(text: str) -> None:
            notices.append(text)
            fcntl.flock(other, fcntl.LOCK_UN)

        assert run(job, notice=notice) == {"a": "finished"}
    assert notices == ["a: another process works on it; it is waited for"]


def test_commands_hold_the_lock_themselves(tmp_path):
    assert run(ShellJob("a", tmp_path, (f"readlink /proc/$$/fd/* | grep -c {tmp_path}/.a.lock",))) == {"a": "finished"}


def test_an_interrupt_ends_the_commands(tmp_path):
    os.mkfifo(tmp_path / "pipe")

    def interrupt(outcome) -> None:
        raise KeyboardInterrupt

    jobs = (
        ShellJob("endless", tmp_path, ("echo $$ > pid; exec cat pipe",)),
        ShellJob("short", tmp_path, ("until test -s pid; do :; done",)),
    )
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, ("0", "1"), report=interrupt, notice=print)
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()
    with jobs[0].lock.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

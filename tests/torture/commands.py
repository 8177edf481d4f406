"""Command lines of the program, each in a process of its own that has imported everything already.

Starting Python and torch takes seconds, and hardly any fault hides there; so this process imports what the commands
need, without starting a thread, and a copy of it (a fork) runs each command. What a command starts itself (trainings of
a cross-validation, pools) starts anew, as it does for users.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import importlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.torture.activity import Activity
from utils.errors import run_cli

MODULES = (
    "preprocess", "main", "evaluate", "scripts.cross_validate", "scripts.find_best_configuration",
    "scripts.export_model", "scripts.inference", "scripts.report", "scripts.import_model", "scripts.verify_dataset",
    "models.nn_unet", "models.trainer", "training.building", "inference.predictor", "inference.run",
    "data_loading.data_module", "data_preprocessing.runner", "report.page", "matplotlib.pyplot", "scipy.ndimage",
)  # fmt: skip
"""The last ones are imported when they are needed."""
MARK = "NNUNET_TORTURE"
"""Variable by which processes that a command started are known."""
_ENDING = {signal.SIGINT, signal.SIGTERM}
_ENDING_S = 20.0
"""How long whatever a command started may go on after the command is gone."""
_TELLING_S = 2.0
"""How long processes that hang have to say where."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a command ended.

    Attributes:
        status: exit status; -N after the signal N.
        text: what it wrote, both streams.
        seconds: wall time.
        orphans: command lines of processes that outlived it.
        timed_out: whether it was killed because it took too long.
        peak_bytes: memory that it, or one that it waited for, took at most.
    """

    status: int
    text: str
    seconds: float
    orphans: tuple[str, ...] = ()
    timed_out: bool = False
    peak_bytes: int = 0

    @property
    def has_traceback(self) -> bool:
        """Whether it ended in a way that no user should see."""
        return "Traceback (most recent call last)" in self.text

    @property
    def last_words(self) -> str:
        """The end of what it wrote; of what hung, where all its threads stood."""
        return self.text[-12000 if self.timed_out else -1500 :]


def warm_up() -> None:
    """Import what the commands need; called once, before the first of them."""
    for name in MODULES:
        importlib.import_module(name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a command may take; None: as much as there is.

    Attributes:
        seconds: of processors, all its processes together; see `Activity`.
        first: is called in its process before it begins.
    """

    seconds: float = 120.0
    memory_bytes: int | None = None
    file_bytes: int | None = None
    temporary: Path | None = None
    first: Callable[[], None] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blow:
    """A signal that hits a command after some seconds, and perhaps all that it started, as Ctrl-C does."""

    after_s: float
    signum: int
    whole_group: bool = False


def start(module: str, words: Sequence[str], log: Path, limits: Limits, mark: str) -> int:
    """Start `main(words)` of a module; returns the number of its process, the leader of a group of its own.

    Raises:
        RuntimeError: this process has threads; a fork of it may wait for ever for one of them.
    """
    if (threads := len(os.listdir("/proc/self/task"))) != 1:
        raise RuntimeError(f"{threads} threads run before a fork")
    sys.stdout.flush()
    sys.stderr.flush()
    # A blow that comes at once hits the program, and not what is done for it here.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        return pid
    status = 1
    try:
        os.setsid()
        # What it starts gets this environment; it is how they are known.
        os.environ[MARK] = mark
        if limits.temporary is not None:
            os.environ["TMPDIR"] = str(limits.temporary)
        with log.open("wb", buffering=0) as file:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        # Whatever hangs is told to abort, and says where: this process, and each that it starts.
        faulthandler.enable(2)
        os.environ["PYTHONFAULTHANDLER"] = "1"
        for kind, value in ((resource.RLIMIT_AS, limits.memory_bytes), (resource.RLIMIT_FSIZE, limits.file_bytes)):
            if value is not None:
                resource.setrlimit(kind, (value, value))
        # A file that is too large is an error for the program, and not its death.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        sys.argv = [module]
        # What was imported in another process knows when that one began.
        importlib.import_module("utils.temporary")._began_s = time.time()
        if limits.first is not None:
            limits.first()
        status = run_cli(lambda: _run_here(module, words))
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status if 0 <= status < 256 else 1)


def _run_here(module: str, words: Sequence[str]) -> int | None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    return importlib.import_module(module).main(list(words))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Running:
    """A command that was started."""

    pid: int
    mark: str
    log: Path
    begin: float
    limits: Limits


def begin(module: str, words: Sequence[str], *, log: Path, limits: Limits | None = None) -> Running:
    """Start a command, which writes to `log`."""
    limits, now = limits or Limits(), time.monotonic()
    mark = f"{os.getpid()}-{now}"
    return Running(pid=start(module, words, log, limits, mark), mark=mark, log=log, begin=now, limits=limits)


def run(
    module: str, words: Sequence[str], *, folder: Path, limits: Limits | None = None, blow: Blow | None = None,
    meanwhile: Callable[[int, str], None] | None = None,
) -> Outcome:  # fmt: skip
    """Run a command, perhaps hit by a signal, and wait for it and all that it started.

    Args:
        folder: for its log.
        meanwhile: called while it runs, again and again, with the number of its process, which is a fork and does
            not carry the mark, and with the mark of those that it started.
    """
    return wait_for(begin(module, words, log=folder / "output.txt", limits=limits), blow, meanwhile)


def wait_for(
    running: Running, blow: Blow | None = None, meanwhile: Callable[[int, str], None] | None = None, beside: str = "",
) -> Outcome:  # fmt: skip
    """Wait for a command and all that it started; what hangs is killed, and says where it stood.

    Args:
        running: the command.
        blow: that hits it.
        meanwhile: see `run`.
        beside: mark of another command that it may wait for.
    """
    pid, mark, log = running.pid, running.mark, running.log
    activity = Activity(lambda: [pid, *marked(mark), *(marked(beside) if beside else ())], running.limits.seconds)
    hit, timed_out, found, told = False, False, 0, ""
    while not found:
        found, code, used = os.wait4(pid, os.WNOHANG)
        passed = time.monotonic() - running.begin
        if found:
            break
        if blow is not None and not hit and passed >= blow.after_s:
            hit = True
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if blow.whole_group else os.kill)(pid, blow.signum)
        if activity.hangs():
            timed_out = True
            told = _where_they_stand(pid, mark, log)
            _kill_all(pid, mark)
            _, code, used = os.wait4(pid, 0)
            break
        if meanwhile is not None:
            meanwhile(pid, mark)
        time.sleep(0.002)
    orphans = () if timed_out else _wait_for_others(mark)
    _kill_all(pid, mark)
    return Outcome(
        status=os.waitstatus_to_exitcode(code), seconds=time.monotonic() - running.begin, orphans=orphans,
        text=(log.read_text(errors="replace") if log.exists() else "") + told, timed_out=timed_out,
        peak_bytes=used.ru_maxrss << 10,
    )  # fmt: skip


def marked(mark: str) -> Iterator[int]:
    """Processes that a command started, by the mark they began with; not its own one, a fork."""
    wanted = f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)


def _wait_for_others(mark: str) -> tuple[str, ...]:
    until = time.monotonic() + _ENDING_S
    while left := list(marked(mark)):
        if time.monotonic() > until:
            break
        time.sleep(0.05)
    names = []
    for pid in left:
        with contextlib.suppress(OSError):
            names.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200])
    return tuple(names)


def _where_they_stand(pid: int, mark: str, log: Path) -> str:
    """Let all processes of a command abort, itself last; returns what those with logs of their own wrote there."""
    others, logs = [each for each in marked(mark) if each != pid], set()
    for each in (*others, pid):
        with contextlib.suppress(OSError):
            logs.add(Path(os.readlink(f"/proc/{each}/fd/2")))
            os.kill(each, signal.SIGABRT)
            time.sleep(_TELLING_S / (1 + len(others)))
    own = sorted(path for path in logs - {log.resolve()} if path.is_file())
    return "".join(f"\n{path}:\n{path.read_text(errors='replace')[-4000:]}" for path in own)


def _kill_all(pid: int, mark: str) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    for other in marked(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(other, signal.SIGKILL)

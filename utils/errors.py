"""Errors that a user can fix, and the one place that turns them into an exit status."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from utils.disk import FULL, DiskFull
from utils.output import steady_output

EXIT_OK, EXIT_PARTIAL, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130

FIXABLE = {*FULL, errno.EROFS, errno.EACCES, errno.EPERM}
"""Faults of the operating system that the user can fix: a full disk, a folder that is not theirs."""
END_SIGNALS = ("SIGTERM", "SIGHUP", "SIGUSR1")
"""Signals that end a run as Ctrl-C does: those of `kill` and Slurm, of a closed terminal, of Slurm's --signal=USR1."""


_noted: list[KeyboardInterrupt] = []
"""Interrupts of the program that runs, so that one is not lost."""


class UserError(Exception):
    """Bad input: the message says what is wrong, where, and what to do next.

    Raised for anything that the person at the keyboard can fix (a missing folder, a malformed file, flags that
    contradict each other). Programming mistakes are `assert`s and stay tracebacks.

    Args:
        message: for that person.
        files: what it names besides the file that it is about, such as the file of a header's voxels.
    """

    def __init__(self, message: str = "", *, files: Sequence[Path] = ()) -> None:
        super().__init__(message)
        self.files = tuple(files)


def missing_file(path: Path) -> UserError:
    """The error of a file that is not there, or of a link that leads nowhere."""
    if not path.is_symlink():
        return UserError(f"{path} does not exist")
    return UserError(f"{path} does not exist (a link to {path.readlink()})", files=[path.readlink()])


class SaidElsewhere(UserError):
    """What another process of the same run says on the same screen: this one ends as it does, without a word."""


def require(condition: bool, message: str) -> None:
    """Raise a UserError of this message where the condition does not hold."""
    if not condition:
        raise UserError(message)


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to end; whatever cleans up after Ctrl-C cleans up after it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def list_problems(title: str, problems: Sequence[str], *, advice: str, shown: int = 20) -> UserError:
    """One error for many bad cases: the first `shown` of them, the number of the rest, and what to do next."""
    lines = [f"  - {problem}" for problem in problems[:shown]]
    if len(problems) > shown:
        lines.append(f"  ... and {len(problems) - shown} more")
    return UserError("\n".join([title, *lines, advice]))


def run_cli(command: Callable[[], int | None]) -> int:
    """Run a command; report a `UserError`, a full disk or a refused folder as one message on stderr.

    Output that nobody reads any more (`| head`, a closed terminal) does not end the command.

    Returns:
        The command's own exit status (None counts as 0), 2 for such an error, 130 after Ctrl-C, and 128 + its number
        after another signal that ends a run (143 after SIGTERM).
    """
    steady_output()
    try:
        with signals_interrupt():
            return command() or EXIT_OK
    except SaidElsewhere:
        return EXIT_USAGE
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except OSError as error:
        # One that names a file is the user's: a folder in its place, a name that is too long, a link to itself.
        if error.errno not in FIXABLE and not (error.errno and error.filename):
            raise
        print(f"error: {describe_fault(error)}", file=sys.stderr)
        return EXIT_USAGE
    except (KeyboardInterrupt, SystemExit) as error:
        interrupt = find_interrupt(error)
        if interrupt is None:
            raise
        by = f" by {interrupt}" if isinstance(interrupt, Interrupted) else ""
        # The other processes of one run would say the same.
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print("\n".join([f"interrupted{by}", *getattr(interrupt, "__notes__", ())]), file=sys.stderr)
        return 128 + interrupt.signum if isinstance(interrupt, Interrupted) else EXIT_INTERRUPTED


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """Let SIGTERM and its like end the block as Ctrl-C does; a signal that is ignored (nohup) stays so."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in END_SIGNALS if hasattr(signal, name)]
        before = {number: signal.SIG_DFL for number in numbers if signal.getsignal(number) is signal.SIG_DFL}
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            before[signal.SIGINT] = signal.default_int_handler
    unraisable = sys.unraisablehook
    try:
        for number in before:
            signal.signal(number, interrupt_run)
        # Python tells of what it drops, with a traceback; an interrupt is raised again (`raise_lost_interrupt`).
        sys.unraisablehook = lambda told: None if told.exc_value in _noted else unraisable(told)
        yield
    finally:
        sys.unraisablehook = unraisable
        _noted.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def interrupt_run(signum: int, frame: FrameType | None) -> None:
    """Signal handler: raise `Interrupted`, or for Ctrl-C `KeyboardInterrupt`, in the main thread."""
    _noted.append(KeyboardInterrupt() if signum == signal.SIGINT else Interrupted(signum))
    raise _noted[-1]


def raise_lost_interrupt() -> None:
    """Raise an interrupt again that did not get through: Python drops what is raised while it frees an object."""
    if _noted:
        raise _noted[-1]


def find_interrupt(error: BaseException) -> KeyboardInterrupt | None:
    """The interrupt that an exception is, or that Lightning turned into its own exit; None if there is none."""
    if isinstance(error, KeyboardInterrupt):
        return error
    context = error.__context__ if isinstance(error, SystemExit) else None
    return find_interrupt(context) if context is not None else None


@contextlib.contextmanager
def continues_with(advice: str | Callable[[], str]) -> Iterator[None]:
    """Tell whoever interrupts the block how to go on from there; a function is asked then."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        if interrupt := find_interrupt(error):
            interrupt.add_note(advice if isinstance(advice, str) else advice())
        raise


def describe_fault(error: OSError) -> str:
    """A fault of the operating system in one line: what, where, and how much room is missing where that is known."""
    room = f" ({error.room})" if isinstance(error, DiskFull) else ""
    # A copy names where it comes from first.
    return f"{error.strerror}: {error.filename2 or error.filename or 'while writing'}{room}"


def describe_error(error: Exception) -> str:
    """What a case says of itself that failed while the others go on: one line, or the whole of our own messages."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"not enough memory ({error})"
    return f"{type(error).__name__}: {error}"

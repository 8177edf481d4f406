"""Errors that a user can mend, and the one place that turns them into an exit status."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence

EXIT_OK, EXIT_PARTIAL, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130

MENDABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
"""Faults of the operating system that the user can mend: a full disk, a folder that is not theirs."""


class UserError(Exception):
    """Bad input: the message says what is wrong, where, and what to do next.

    Raised for anything that the person at the keyboard can mend (a missing folder, a malformed file, flags that
    contradict each other). Programming mistakes are `assert`s and stay tracebacks.
    """


def list_problems(title: str, problems: Sequence[str], *, advice: str, shown: int = 20) -> UserError:
    """One error for many bad cases: the first `shown` of them, the number of the rest, and what to do next."""
    lines = [f"  - {problem}" for problem in problems[:shown]]
    if len(problems) > shown:
        lines.append(f"  ... and {len(problems) - shown} more")
    return UserError("\n".join([title, *lines, advice]))


def run_cli(command: Callable[[], int | None]) -> int:
    """Run a command; report a `UserError`, a full disk or a refused folder as one message on stderr.

    Returns:
        The command's own exit status (None counts as 0), 2 for such an error, 130 after Ctrl-C.
    """
    try:
        return command() or EXIT_OK
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except BrokenPipeError:
        # Whoever read our output (head, less) has seen enough; the interpreter must not complain at its last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        print(f"error: {error.strerror}: {error.filename or 'while writing'}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED

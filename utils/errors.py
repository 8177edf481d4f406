"""Errors that a user can mend, and the one place that turns them into an exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

EXIT_OK, EXIT_PARTIAL, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


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
    """Run a command; report a `UserError` as one message on stderr and exit status 2, without a traceback.

    Returns:
        The command's own exit status (None counts as 0), 2 for a `UserError`, 130 after Ctrl-C.
    """
    try:
        return command() or EXIT_OK
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED

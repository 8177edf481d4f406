"""The one way to write a task's number: as all folders have it, with two digits at least."""

from __future__ import annotations

from typing import Any

from utils.errors import UserError


def checked_task(text: str) -> str:
    """A task's number as all folders have it: 4, 04 and 004 are one task, "04".

    Raises:
        UserError: it is no number of at most three digits.
    """
    if not (text.isdecimal() and len(text) <= 3):
        raise UserError(f"--task must be a number such as 04, got {text!r}")
    return f"{int(text):02d}"


def normalise_task(options: Any) -> None:
    """In `__post_init__` of frozen options: their `task` (None, one or several) becomes what all folders have.

    Raises:
        UserError: as `checked_task`.
    """
    task = options.task
    if task is not None:
        task = tuple(map(checked_task, task)) if isinstance(task, tuple) else checked_task(task)
    object.__setattr__(options, "task", task)

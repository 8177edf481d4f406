"""Lengths of time as users type them: 90s, 10m, 1h30m."""

from __future__ import annotations

import re

from utils.errors import UserError

UNITS_S = {"d": 86400, "h": 3600, "m": 60, "s": 1}
"""Letter -> seconds."""


def as_typed(seconds: float) -> str:
    """A length of time as a user would type it, to the second: 90 s is 1m30s."""
    left, words = round(seconds), ""
    for letter, unit in UNITS_S.items():
        count, left = divmod(left, unit)
        words += f"{count}{letter}" if count else ""
    return words or f"{seconds:g}s"


def seconds_of(text: str, flag: str) -> float:
    """The seconds of a length of time such as 45s, 10m, 1.5h or 1h30m; a number is seconds where it stands alone.

    Raises:
        UserError: it is none, or not longer than nothing.
    """
    compact = text.replace(" ", "").lower()
    compact += "s" if re.fullmatch(r"[\d.]+", compact) else ""
    parts = re.fullmatch(r"(?:([\d.]+)d)?(?:([\d.]+)h)?(?:([\d.]+)m(?:in)?)?(?:([\d.]+)s)?", compact)
    try:
        numbers = [float(part or 0) for part in parts.groups()] if parts and compact else []
    except ValueError:
        numbers = []
    seconds = sum(number * unit for number, unit in zip(numbers, UNITS_S.values()))
    if seconds <= 0:
        raise UserError(f"{flag} {text!r} is no length of time; write it like 90s, 10m, 1h30m or 8h")
    return seconds

"""Refusing work whose result surely does not fit on the disk, before it begins."""

from __future__ import annotations

from pathlib import Path

from utils.disk import free_bytes, size_text
from utils.errors import UserError


def require_room(folder: Path, needed_bytes: int, what: str, elsewhere: str = "") -> None:
    """Find out before hours of work that its files do not fit.

    Args:
        folder: where they go; it need not be there yet.
        needed_bytes: a size that they surely have.
        what: what they are, for the message.
        elsewhere: the flag or variable that chooses another folder.

    Raises:
        UserError: the disk has less room; nothing is said where its room is unknown (and a quota is not seen).
    """
    free = free_bytes(folder)
    if free is not None and free < needed_bytes:
        raise UserError(
            f"{folder}: {what} need {size_text(needed_bytes)} and {size_text(free)} are free there; "
            f"make room, or choose another folder{f' with {elsewhere}' if elsewhere else ''}"
        )

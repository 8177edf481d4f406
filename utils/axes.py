"""Numbers along the three axes of a volume."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def triple(values: Iterable[T]) -> tuple[T, T, T]:
    """Three values, one for each axis of a volume, as a tuple of that length."""
    first, second, third = values
    return first, second, third

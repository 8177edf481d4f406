"""Colours that people with red-green blindness can tell apart (Okabe and Ito, 2008), for curves and masks alike."""

from __future__ import annotations

COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00", "#0072b2", "#f0e442", "#999999")
MISSED, INVENTED, CONFUSED = "#56b4e9", "#d55e00", "#f0e442"
"""Difference of mask and label: only in the label, only in the mask, another structure."""
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "", "1 2", "6 2 2 2")
"""So that curves are told apart without colour, too."""


def colour(index: int) -> str:
    """Colour of the target with this number, counted from 0; after eight they come again."""
    return COLOURS[index % len(COLOURS)]


def rgb(code: str) -> tuple[int, int, int]:
    """Red, green and blue (0..255) of `#rrggbb`."""
    return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)

"""Lengths of time as users type them."""

from __future__ import annotations

import pytest

from utils.duration import as_typed, seconds_of
from utils.errors import UserError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("45s", 45), ("10m", 600), ("10min", 600), ("1.5h", 5400), ("1h30m", 5400), ("1 h 30 M", 5400),
     ("1d", 86400), ("2m30s", 150)],
)  # fmt: skip
def test_lengths_of_time(text, seconds):
    assert seconds_of(text, "--budget") == seconds


@pytest.mark.parametrize("text", ["", "0", "0m", "-5m", "soon", "5w", "m", "1m1h", "1.2.3s", "1e3", "1h30", "2d12"])
def test_what_is_no_length_of_time_is_refused(text):
    with pytest.raises(UserError, match=r"--budget .* write it like 90s, 10m"):
        seconds_of(text, "--budget")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(90, "1m30s"), (150, "2m30s"), (600, "10m"), (5400, "1h30m"), (86400, "1d"), (0.25, "0.25s"), (45, "45s")],
)
def test_a_length_is_written_as_it_is_typed(seconds, text):
    assert as_typed(seconds) == text
    assert seconds_of(text, "--budget") == seconds

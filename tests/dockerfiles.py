"""Dockerfiles as lists of steps."""

from __future__ import annotations

from tests.conftest import PROJECT


def steps(name: str) -> list[tuple[str, str]]:
    """(instruction, its words) with continued lines joined and comments left out."""
    lines = [line for line in (PROJECT / name).read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]

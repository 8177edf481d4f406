"""The list of known holes is about the packages and versions that are pinned."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
PAGE = (PROJECT / "docs/reference/security.md").read_text(encoding="utf-8")
SECTION = PAGE[PAGE.index("## Known holes") : PAGE.index("With a connection to the internet")]
ROWS = [line.strip("| ").split(" | ") for line in SECTION.splitlines() if line.startswith("| ")][1:]


def pins() -> dict[str, str]:
    lines = [
        line.partition("#")[0].strip()
        for name in ("requirements.txt", "requirements-extras.txt")
        for line in (PROJECT / name).read_text(encoding="utf-8").splitlines()
    ]
    pairs = [line.split("==") for line in lines if line]
    return {re.sub(r"\[.*", "", name): version for name, version in pairs}


def number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def test_every_pinned_package_is_named_with_its_version():
    told = dict(re.findall(r"\b([A-Za-z][\w-]*) (\d+(?:\.\d+)+)\b", SECTION.replace("\n", " ")))
    missing = {name: version for name, version in pins().items() if told.get(name) != version}
    assert not missing, f"read what was published about {missing}, and say so in docs/reference/security.md"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_pinned_version_is_past_every_hole(row):
    name, version = row[0].split()
    assert pins()[name] == version
    holes = re.findall(r"\((to )?(\d[\d.]*)\)", row[1])
    assert holes
    for last, other in holes:
        assert number(version) > number(other) if last else number(version) >= number(other)

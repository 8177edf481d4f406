"""Which cases of a folder of shards a run found outdated before it failed: `.outdated.json`, for the next message.

It is written before the folder's mark of being ready is taken away, and goes when the folder is ready again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from utils.errors import UserError
from utils.files import read_json, write_json
from utils.schema import FORMAT_VERSION, check_version

# Hidden, so that no case can have this name.
OUTDATED = ".outdated.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutdatedCases:
    """Case (or another word for what is outdated) -> why."""

    version: int
    reasons: dict[str, str]

    def __post_init__(self) -> None:
        check_version(self.version, OUTDATED)


def note_outdated(folder: Path, reasons: Mapping[str, str]) -> None:
    """Write down what is outdated in a folder of shards."""
    write_json(OutdatedCases(version=FORMAT_VERSION, reasons=dict(reasons)), folder / OUTDATED)


def outdated_cases(folder: Path) -> dict[str, str]:
    """What was written down; empty where nothing was."""
    try:
        return read_json(OutdatedCases, folder / OUTDATED).reasons
    except UserError:
        return {}


def forget_outdated(folder: Path) -> None:
    """Call it when the folder is ready again."""
    (folder / OUTDATED).unlink(missing_ok=True)

"""What is wrong with a data set, or worth knowing of it: one sentence each, shown together in one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """A problem, which makes a case unfit for use, or a remark, which does not."""

    kind: str
    """One word: file, shape, grid, channels, intensities, labels, orientation, spacing, duplicate, description."""
    message: str
    case: str = ""
    """Name of the case; empty where the finding is about the data set as a whole."""
    section: str = ""
    """`training` or `test`, where a case is meant."""
    is_remark: bool = False


def problems_of(findings: Sequence[Finding]) -> list[Finding]:
    """The findings that are not mere remarks."""
    return [finding for finding in findings if not finding.is_remark]


def findings_table(findings: Sequence[Finding], folder: Path) -> str:
    """The findings as text, problems first; paths are shown relative to the data set's folder."""
    ordered = [*problems_of(findings), *(finding for finding in findings if finding.is_remark)]
    rows = [("", "case", "about", "finding")]
    for finding in ordered:
        case = finding.case + (" (test)" if finding.case and finding.section == "test" else "")
        message = finding.message.replace(f"{folder}/", "")
        rows.append(("remark" if finding.is_remark else "problem", case or "all", finding.kind, message))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[3]]) for row in rows)


def unusable(title: str, findings: Sequence[Finding], folder: Path, *, advice: str) -> UserError:
    """One error with the table of all findings."""
    return UserError("\n".join([title, findings_table(findings, folder), advice]))

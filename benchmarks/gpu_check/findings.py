"""What a check says: one verdict with a line of text and the numbers behind it; only the standard library is needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

Verdict = Literal["ok", "differs", "slower", "failed", "skipped", "not run"]
VERDICTS: tuple[Verdict, ...] = ("ok", "differs", "slower", "failed", "skipped", "not run")
"""ok: as it should be. differs: other numbers than the CPU's. slower: right, but slower than what it should replace.
failed: an error, a crash or no end. skipped: not for this machine. not run: the time was over."""
BAD: tuple[Verdict, ...] = ("differs", "failed")

Numbers = dict[str, Any]
"""JSON-ready."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """What one case of an item found out."""

    item: str
    case: str
    verdict: Verdict
    text: str
    numbers: Numbers = dataclasses.field(default_factory=dict)
    seconds: float = 0.0

    def line(self, width: int) -> str:
        """The line that a person reads."""
        return f"  {self.verdict:8} {self.case:{width}}  {self.text}"


class Outcome(Exception):
    """Not an error: the end of a case with a verdict of its own, from wherever it is found out."""

    def __init__(self, verdict: Verdict, text: str, numbers: Numbers | None = None) -> None:
        super().__init__(text)
        self.verdict, self.text, self.numbers = verdict, text, numbers or {}


def count(findings: Sequence[Finding]) -> dict[str, int]:
    """How many findings there are of each verdict."""
    return {verdict: sum(finding.verdict == verdict for finding in findings) for verdict in VERDICTS}


def is_bad(findings: Sequence[Finding]) -> bool:
    """Whether something differs or failed."""
    return any(finding.verdict in BAD for finding in findings)


def summary(findings: Sequence[Finding]) -> str:
    """The last lines: how many of each verdict, and all that is not as it should be, by name."""
    lines = [", ".join(f"{number} {verdict}" for verdict, number in count(findings).items() if number)]
    for verdict in ("differs", "failed", "slower", "not run"):
        names = [f"{finding.item}: {finding.case}" for finding in findings if finding.verdict == verdict]
        lines += [f"{verdict}: {'; '.join(names)}"] if names else []
    return "\n".join(lines)

"""What a person decided about suspicious labels: read from the table of an audit, carried out on arrays.

Words of the column `decision`: nothing or `keep`; `remove`; `swap A B`; `shift X Y Z`; `erase V ...`; `replace FILE`.
Arrays: x, y, z as stored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data_preprocessing.dataset.case_files import CaseFiles
from utils.errors import UserError, list_problems
from utils.files import file_digest
from utils.label_audit import AuditRow, parse_box, read_audit
from utils.schema import LabelScheme

WORDS = {"keep": (0, 0), "remove": (0, 0), "swap": (2, 2), "shift": (3, 3), "erase": (1, 255), "replace": (1, 1)}
"""Word -> fewest and most values after it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """What shall become of a label.

    Attributes:
        word: one of `WORDS`, without `keep`.
        values: of swap and erase label values, of shift voxels along x, y, z.
        file: of replace.
        box: where; None: everywhere.
        text: as it was written.
    """

    word: str
    values: tuple[int, ...] = ()
    file: Path | None = None
    box: tuple[slice, slice, slice] | None = None
    text: str = ""


def read_decisions(path: Path, cases: Sequence[CaseFiles], labels: LabelScheme) -> dict[str, tuple[Decision, ...]]:
    """The decisions of a table by case, in the order of its lines; cases without one are left out.

    Raises:
        UserError: a decision cannot be understood, is about no training case of the data set, or about a label that is
            not the one that was audited, or does not go with another about the same label; all are listed.
    """
    files = {case.case: case for case in cases}
    found: dict[str, list[Decision]] = {}
    problems = []
    digests: dict[str, str] = {}
    for row in read_audit(path):
        try:
            decision = parse_decision(row, labels, path.parent)
            if decision is not None:
                case = _audited_case(row, files, digests)
                found.setdefault(case, []).append(decision)
        except ValueError as error:
            problems.append(f"{row.case}: {error}")
    problems += [f"{case}: {problem}" for case, decisions in found.items() for problem in _discords(decisions)]
    if problems:
        raise list_problems(f"decisions of {path} cannot be carried out:", problems, advice="Nothing was written.")
    return {case: tuple(decisions) for case, decisions in found.items()}


def parse_decision(row: AuditRow, labels: LabelScheme, folder: Path) -> Decision | None:
    """The decision of a line; None where the label stays as it is.

    Args:
        row: the line.
        labels: whose values may be named.
        folder: that `replace` counts from.

    Raises:
        ValueError: it cannot be understood.
    """
    words = row.decision.split()
    # Spreadsheets like to begin with a capital.
    word = words[0].lower() if words else ""
    if not words or (word == "keep" and len(words) == 1):
        return None
    if word == "replace":
        name = row.decision.split(maxsplit=1)[1:]
        file = folder / name[0].strip() if name else folder
        if not file.is_file():
            raise ValueError(f"{row.decision!r}: there is no file {file}")
        return Decision(word=word, file=file, text=row.decision)
    fewest, most = WORDS.get(word, (1, 0))
    if not fewest <= len(words) - 1 <= most:
        raise ValueError(f"{row.decision!r} is no decision: keep, remove, swap A B, shift X Y Z, erase V ..., replace "
                         "FILE, or nothing")  # fmt: skip
    try:
        values = tuple(map(int, words[1:]))
    except ValueError:
        raise ValueError(f"{row.decision!r}: {word} needs whole numbers") from None
    unknown = [value for value in values if value not in labels.values] if word in ("swap", "erase") else []
    if unknown:
        raise ValueError(f"{row.decision!r}: {unknown[0]} is no label value ({', '.join(map(str, labels.values))})")
    box = parse_box(row.where) if row.scope == "place" and word in ("swap", "erase") else None
    return Decision(word=word, values=values, box=box, text=row.decision)


def carry_out(decisions: Sequence[Decision], label: np.ndarray) -> np.ndarray:
    """The label (x, y, z) after all decisions but `replace` and `remove`, one after the other; the given one stays."""
    found = label.copy()
    for decision in decisions:
        if decision.word == "shift":
            found = _shifted(found, decision.values)
        elif decision.word in ("swap", "erase"):
            part = found[decision.box or (slice(None),) * 3]
            part[...] = _renamed(part, _renaming(decision))
    return found


def _renaming(decision: Decision) -> dict[int, int]:
    if decision.word == "erase":
        return dict.fromkeys(decision.values, 0)
    first, second = decision.values
    return {first: second, second: first}


def _renamed(values: np.ndarray, renaming: Mapping[int, int]) -> np.ndarray:
    found = values.copy()
    for old, new in renaming.items():
        found[values == old] = new
    return found


def _shifted(label: np.ndarray, voxels: Sequence[int]) -> np.ndarray:
    """Moved along each axis; what comes in is background, what leaves the volume is lost."""
    found = np.zeros_like(label)
    into = tuple(slice(max(0, step), max(0, size + min(0, step))) for step, size in zip(voxels, label.shape))
    out_of = tuple(slice(max(0, -step), max(0, size - max(0, step))) for step, size in zip(voxels, label.shape))
    found[into] = label[out_of]
    return found


def _discords(decisions: Sequence[Decision]) -> list[str]:
    """Why decisions about one label cannot be followed one after the other."""
    words = [each.word for each in decisions]
    done = [(each.word, sorted(each.values) if each.word == "swap" else each.values, each.file, each.box)
            for each in decisions]  # fmt: skip
    # A line copied by mistake would undo a swap, or move a label twice as far.
    twice = [each.text for index, each in enumerate(decisions)
             if each.word not in ("remove", "erase") and done[index] in done[:index]]  # fmt: skip
    problems = [f"{text!r} is decided twice; leave one of the lines" for text in twice]
    if "remove" in words and len(set(words)) > 1:
        problems.append("it cannot be removed and changed")
    if "replace" in words[1:] and len(set(words)) > 1:
        problems.append("it is changed before it is replaced; put the line with replace first")
    if words.count("replace") > 1 and not twice:
        problems.append("it is replaced by several files; leave one of the lines")
    return problems


def _audited_case(row: AuditRow, files: Mapping[str, CaseFiles], digests: dict[str, str]) -> str:
    """The case that a line is about.

    Raises:
        ValueError: there is none, or its label is another one.
    """
    name = row.case
    if name not in files:
        # Spreadsheets take zeros away in front of a number; the digest says whether it is the same case.
        alike = [each for each in files if name.isdigit() and each.lstrip("0") == name.lstrip("0")]
        name = alike[0] if len(alike) == 1 else name
    case = files.get(name)
    if case is None or case.label is None:
        raise ValueError("it is no training case of the data set; was it renamed or removed since the audit?")
    try:
        digest = digests.setdefault(name, file_digest(case.label))
    except OSError as error:
        raise ValueError(f"{case.label} cannot be read: {error.strerror}") from None
    if digest != row.label_digest:
        raise ValueError(f"{case.label} is not the file that was audited; audit it again, or decide nothing about it")
    return name


def describe(decisions: Sequence[Decision]) -> str:
    """What was done, for people."""
    return "label: " + ", then ".join(decision.text for decision in decisions) + " (decided)"


def require_table(path: Path, fix: Path | None) -> None:
    """Refuse `--decisions` that cannot be carried out.

    Raises:
        UserError: there is no copy to carry them out on, or no such file.
    """
    if fix is None:
        raise UserError("--decisions are carried out on a copy of the data set; say where it goes with --fix FOLDER")
    if not path.is_file():
        raise UserError(f"--decisions {path} is not a file; nnunet audit-labels writes one")

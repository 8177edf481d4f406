"""The table of an audit of labels: one line for each suspicion, and a column in which a person decides.

`nnunet audit-labels` writes it, a person fills in `decision`, `nnunet verify-dataset --fix --decisions` reads it.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError, list_problems
from utils.files import write_atomically

AUDIT_TABLE = "audit.csv"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditRow:
    """A suspicion: of a case as a whole, or of one place in it.

    Attributes:
        rank: 1 is the most suspicious case; the places of a case have its rank.
        case: name.
        scope: `case`, or `place` for one connected part of it.
        score: robust deviations from what is usual in the data set, of a place its nats.
        suspicious: whether the score is above the threshold.
        kind: what kind of error it looks like.
        structure: name of the class or classes.
        where: first and last voxel along x, y, z of the file, as viewers count them from 0: `3-17 4-20 0-9`.
        suggestion: what could be decided, in the words of `decision`, or advice.
        decision: a person's; see docs/how-to/audit-labels.md.
        label: file that was audited.
        label_digest: of its bytes, so that no decision falls on another label.
    """

    rank: int
    case: str
    scope: str
    score: float
    suspicious: bool
    kind: str
    structure: str
    where: str
    suggestion: str
    decision: str
    label: str
    label_digest: str


COLUMNS = tuple(field.name for field in dataclasses.fields(AuditRow))
NEEDED = ("case", "decision", "label_digest", "where", "scope")
"""Columns without which no decision can be carried out; a spreadsheet may have dropped others."""


def write_audit(rows: Sequence[AuditRow], path: Path) -> None:
    """Write the table; it appears whole."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        values = dataclasses.asdict(row) | {"score": f"{row.score:.2f}", "suspicious": _yes(row.suspicious)}
        writer.writerow([values[name] for name in COLUMNS])
    content = text.getvalue().encode("utf-8")
    write_atomically(path, lambda file: file.write(content))


def read_audit(path: Path) -> list[AuditRow]:
    """Read the table, as written here or saved again by a spreadsheet (with semicolons or a byte order mark, too).

    Raises:
        UserError: it cannot be read, or lacks columns or numbers; all faults are listed.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a table: {error}; save it as CSV (UTF-8)") from None
    lines = text.splitlines()
    semicolons = bool(lines) and lines[0].count(";") > lines[0].count(",")
    reader = csv.DictReader(io.StringIO(text), delimiter=";" if semicolons else ",")
    missing = [name for name in NEEDED if name not in (reader.fieldnames or ())]
    if missing:
        raise UserError(f"{path} has no column {', '.join(missing)}; give the {AUDIT_TABLE} of nnunet audit-labels")
    rows, problems = [], []
    for number, entry in enumerate(reader, start=2):
        try:
            rows.append(_row({name: (entry.get(name) or "").strip() for name in COLUMNS}))
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    if problems:
        raise list_problems(
            f"{path} cannot be read:", problems, advice="Put these lines right; rank and score are numbers."
        )
    return rows


def _row(entry: dict[str, str]) -> AuditRow:
    score = entry["score"].replace(",", ".")
    return AuditRow(
        rank=int(entry["rank"] or 0), case=entry["case"], scope=entry["scope"], score=float(score or 0),
        suspicious=entry["suspicious"].lower() in ("yes", "true", "1"), kind=entry["kind"],
        structure=entry["structure"], where=entry["where"], suggestion=entry["suggestion"], decision=entry["decision"],
        label=entry["label"], label_digest=entry["label_digest"],
    )  # fmt: skip


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def box_text(box: Sequence[tuple[int, int]]) -> str:
    """(start, stop) along x, y, z as text: first and last voxel."""
    return " ".join(f"{start}-{stop - 1}" for start, stop in box)


def parse_box(text: str) -> tuple[slice, slice, slice]:
    """The box of a text.

    Raises:
        ValueError: it is none.
    """
    try:
        ends = [tuple(map(int, part.split("-"))) for part in text.split()]
        (x, x_last), (y, y_last), (z, z_last) = ends
        if x > x_last or y > y_last or z > z_last:
            raise ValueError
    except ValueError:
        raise ValueError(f"{text!r} is no box of voxels such as 3-17 4-20 0-9") from None
    return slice(x, x_last + 1), slice(y, y_last + 1), slice(z, z_last + 1)

"""The table of an audit of labels: one line for each suspicion, and a column in which a person decides.

`nnunet audit-labels` writes it, a person fills in `decision`, `nnunet verify-dataset --fix --decisions` reads it.
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError, list_problems
from utils.files import write_atomically

AUDIT_TABLE, AUDIT_DETAILS = "audit.csv", "audit.json"


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

DIGEST = "sha256:"
"""Before a digest in the file: digits alone, or with an e between, spreadsheets make a rounded number of."""


def write_audit(rows: Sequence[AuditRow], path: Path) -> None:
    """Write the table; it appears whole."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        values = dataclasses.asdict(row) | {
            "score": f"{row.score:.2f}", "suspicious": _yes(row.suspicious), "label_digest": DIGEST + row.label_digest
        }  # fmt: skip
        writer.writerow([values[name] for name in COLUMNS])
    content = text.getvalue().encode("utf-8")
    write_atomically(path, lambda file: file.write(content))


def read_audit(path: Path) -> list[AuditRow]:
    """Read the table, as written here or saved again by a spreadsheet: with semicolons or tabs, decimal commas, other
    line ends, encodings and empty lines.

    Raises:
        UserError: it cannot be read, or lacks columns, cells or numbers; all faults are listed.
    """
    text = _text_of(path)
    mark = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=None), delimiter=mark, strict=True)
    rows: list[AuditRow] = []
    problems: list[str] = []
    try:
        names = [name.strip() for name in next(reader, [])]
        _require_columns(names, path)
        for cells in reader:
            try:
                if any(cell.strip() for cell in cells):
                    rows.append(_row(names, cells))
            except ValueError as error:
                problems.append(f"line {reader.line_num}: {error}")
    except csv.Error as error:
        problems.append(f"line {reader.line_num}: {error}; is there a quotation mark too many or too few?")
    if problems:
        raise list_problems(
            f"{path} cannot be read:", problems,
            advice="Put these lines right; rank and score are numbers.",
        )  # fmt: skip
    return rows


def _text_of(path: Path) -> str:
    try:
        content = path.read_bytes()
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return content.decode("utf-16")
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError:
            # What Excel saves as CSV in western Europe; a name that is spoiled by it is no case, which is said then.
            return content.decode("cp1252")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} cannot be read as a table: {reason}; save it as CSV (UTF-8)") from None


def _require_columns(names: Sequence[str], path: Path) -> None:
    twice = [name for name in COLUMNS if names.count(name) > 1]
    if twice:
        raise UserError(f"{path} has two columns {twice[0]}; leave one of them")
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise UserError(
            f"{path} has no column {', '.join(missing)}; give the {AUDIT_TABLE} of nnunet audit-labels. Where a "
            "spreadsheet shows each line in one cell, open it there again with commas between the columns"
        )


def _row(names: Sequence[str], cells: Sequence[str]) -> AuditRow:
    """A line of the table.

    Raises:
        ValueError: it has too many cells or too few, or something that is no number, or names no case.
    """
    found = dict(zip(names, (cell.strip() for cell in cells)))
    if any(cell.strip() for cell in cells[len(names) :]) or any(name not in found for name in NEEDED):
        raise ValueError(f"it has {len(cells)} cells, the first line {len(names)}")
    entry = {name: found.get(name, "") for name in COLUMNS}
    if broken := [name for name in COLUMNS if "\n" in entry[name]]:
        raise ValueError(f"{broken[0]} goes over several lines; is there a quotation mark too many?")
    if not entry["case"]:
        raise ValueError("it names no case")
    score = float(entry["score"].replace(",", ".") or 0)
    return AuditRow(
        rank=int(entry["rank"] or 0), case=entry["case"], scope=entry["scope"], score=score,
        suspicious=entry["suspicious"].lower() in ("yes", "true", "1"), kind=entry["kind"],
        structure=entry["structure"], where=entry["where"], suggestion=entry["suggestion"], decision=entry["decision"],
        label=entry["label"], label_digest=entry["label_digest"].removeprefix(DIGEST),
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

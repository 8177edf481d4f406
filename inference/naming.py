"""Names that say nothing of the patient: scan_0001 and so on, and no path of a scan in what is said or recorded."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from inference.scans import Scan
from utils.errors import UserError
from utils.files import write_json
from utils.json_text import parse_json

HIDDEN = "(hidden by --anonymous)"


def name_anonymously(scans: Sequence[Scan], record: Path | None) -> list[Scan]:
    """The scans as scan_0001, scan_0002, ... in their order.

    Args:
        scans: sorted by case.
        record: JSON file that says which scan has which name; one that is there goes on: its scans keep their names,
            and new ones get the next. None: nothing is written, and names follow from the order alone.

    Raises:
        UserError: the file is there and is no such file.
    """
    known = {} if record is None else _read_names(record)
    used = set(known.values())
    free = (name for number in range(1, 10**6) if (name := f"scan_{number:04d}") not in used)
    names = {scan.case: known.get(scan.case) or next(free) for scan in scans}
    if record is not None:
        write_json(known | names, record)
    renamed = [dataclasses.replace(scan, case=names[scan.case], shown=names[scan.case]) for scan in scans]
    return [
        dataclasses.replace(scan, problem=None if scan.problem is None else _without(scan.problem, old, scan.case))
        for scan, old in zip(renamed, scans)
    ]


def without_paths(text: str, scan: Scan) -> str:
    """A message about a scan with its anonymous name in place of its files' names."""
    return _without(text, scan, scan.case)


def recorded_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a job as run.json has them: without what says where an anonymous input came from.

    They are of all scans, whichever of them this process predicts.
    """
    kept = {name: value for name, value in options.items() if name not in ("unpacked", "part", "neighbours")}
    if not options["anonymous"]:
        return kept
    model = kept.get("model")
    if model is not None and not Path(model).is_absolute() and not Path(model).resolve().is_relative_to(Path.cwd()):
        # The folder that a relative path begins in is not recorded.
        kept["model"] = Path(model).resolve()
    return kept | {"input": HIDDEN, "anonymous_map": None}


def recorded_command(anonymous: bool) -> list[str]:
    """The command line as run.json has it; the values of flags that name the input are hidden where that is asked."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return list(_hidden(words)) if anonymous else words


def _hidden(words: Sequence[str]) -> Iterator[str]:
    hide = False
    for word in words:
        flag, separator, _ = word.partition("=")
        is_ours = flag.replace("-", "_") in ("__input", "__anonymous_map")
        yield HIDDEN if hide else f"{flag}={HIDDEN}" if is_ours and separator else word
        hide = is_ours and not separator


def _without(text: str, scan: Scan, name: str) -> str:
    for image in scan.images:
        for shown in (str(image), str(image.parent), image.name):
            text = text.replace(shown, name) if len(shown) > 2 else text
    # As a word: it may be part of one by chance.
    return re.sub(rf"(?<!\w){re.escape(scan.case)}(?!\w)", name, text) if len(scan.case) > 2 else text


def _read_names(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        names = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"--anonymous_map {path} cannot be read as JSON: {error}; choose another file") from None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"--anonymous_map {path} holds something else; choose another file")
    return names

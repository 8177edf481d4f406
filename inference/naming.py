"""Names that say nothing of the patient: scan_0001 and so on, and no path of a scan in what is said or recorded."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from inference.dicom.series import Series
from inference.scans import Scan
from utils.errors import UserError, describe_error, describe_fault
from utils.files import write_json
from utils.json_text import parse_json

HIDDEN = "(hidden by --anonymous)"
QUOTED = re.compile(r"b?(['\"])[^\n]*\1")
"""Other programs quote names of files, and what stands in them."""
ONE_WORD, MANY_WORDS = ("__input", "__anonymous_map"), ("__dicom_channels",)
"""Flags whose values say something of the input, by how many of them there are."""


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
    return [_renamed(scan, names[scan.case]) for scan in scans]


def _renamed(scan: Scan, name: str) -> Scan:
    problem = None if scan.problem is None else scan.nameless or _without(scan.problem, scan, name)
    series = None if scan.series is None else _renamed_series(scan.series, name)
    return dataclasses.replace(scan, case=name, shown=name, problem=problem, nameless="", series=series)


def _renamed_series(series: Series, name: str) -> Series:
    """Series whose messages name nobody."""
    others = tuple(_renamed_series(each, f"{name}, channel {n}") for n, each in enumerate(series.others, start=1))
    return dataclasses.replace(series, name=name, problem=series.nameless or series.problem, others=others)


def describe_anonymously(error: Exception, scan: Scan) -> str:
    """What a scan says of its fault: of errors that are none of ours nothing but their kind, as they quote values."""
    if isinstance(error, OSError) and error.strerror:
        return f"{type(error).__name__}: {error.strerror}"
    if isinstance(error, UserError):
        return _without(str(error), scan, scan.case, error.files)
    if isinstance(error, MemoryError):
        return _without(describe_error(error), scan, scan.case)
    return f"{type(error).__name__} (what it says is hidden by --anonymous)"


@contextlib.contextmanager
def naming_nobody(anonymous: bool, places: Sequence[Path | None], *, lists: bool = False) -> Iterator[None]:
    """What ends the block in an error says it without these places, if that is asked.

    Args:
        anonymous: whether it is asked.
        places: files and folders whose names, and those of what is in them, are hidden.
        lists: hide the lines of lists as well, which name files or series.

    Raises:
        UserError: in place of one that names them, and of faults of the operating system with a file.
    """
    if not anonymous:
        yield
        return
    try:
        yield
    except UserError as error:
        raise UserError(_hide(str(error), [*places, *error.files], lists=lists)) from None
    except OSError as error:
        if not (error.errno and error.filename):
            raise
        raise UserError(_hide(describe_fault(error), places, lists=lists)) from None


def _hide(text: str, places: Sequence[Path | None], *, lists: bool) -> str:
    given = {form for place in places if place is not None for form in (place, *_absolute(place))}
    for place in sorted(given, key=lambda form: len(str(form)), reverse=True):
        text = _replaced(text, place, HIDDEN)
    if lists:
        text = QUOTED.sub(HIDDEN, text)
    lines = text.split("\n")
    kept = [line for line in lines if not (lists and line.lstrip().startswith(("- ", "... and ")))]
    if len(kept) < len(lines):
        kept.insert(1, f"  ({len(lines) - len(kept)} lines hidden by --anonymous; without it they are shown)")
    return "\n".join(kept)


def _replaced(text: str, place: Path, by: str) -> str:
    """A text without a file or folder, and without what is in it, to the end of the line: names may hold blanks."""
    inside = rf"{re.escape(os.sep)}[^\n]*"
    # Alone, `.`, `..` and `/` name nothing.
    alone = r"|(?!\w)" if place.name not in ("", "..") else ""
    return re.sub(rf"(?<![\w.]){re.escape(str(place).rstrip(os.sep))}(?:{inside}{alone})", by, text)


def _absolute(place: Path) -> tuple[Path, Path]:
    return place.absolute(), Path(os.path.realpath(place))


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
    channels = HIDDEN if kept.get("dicom_channels") else ()
    return kept | {"input": HIDDEN, "anonymous_map": None, "dicom_channels": channels}


def recorded_command(anonymous: bool) -> list[str]:
    """The command line as run.json has it; the values of flags that name the input are hidden where that is asked."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return list(_hidden(words)) if anonymous else words


def _hidden(words: Sequence[str]) -> Iterator[str]:
    left = 0
    for word in words:
        flag, separator, _ = word.partition("=")
        name = flag.replace("-", "_")
        if left and not (left > 1 and word.startswith("--")):
            yield HIDDEN
            left -= left == 1
            continue
        yield f"{flag}={HIDDEN}" if separator and name in (*ONE_WORD, *MANY_WORDS) else word
        left = 2 if name in MANY_WORDS else int(name in ONE_WORD and not separator)


def _without(text: str, scan: Scan, name: str, files: Sequence[Path] = ()) -> str:
    """A message about a scan with its anonymous name in place of the names of its files, and of others."""
    named = {shown for file in (*scan.images, *files) for shown in (str(file), file.name) if len(shown) > 2}
    for shown in sorted(named, key=len, reverse=True):
        text = text.replace(shown, name)
    # Other programs quote what they find in a file.
    text = re.sub(r'"[^\n]*"', HIDDEN, text)
    # What is left behind the folder's name is another file there.
    for folder in {image.parent for image in scan.images}:
        text = _replaced(text, folder, name)
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

"""The scans of a prediction for its page: DICOM series, archives and anonymous scans, which are more than named files.

A page calls a scan what its mask is called, and says nothing else of it: no path, nothing of a DICOM header.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

from inference.dicom.channels import TABLE
from inference.naming import HIDDEN, describe_anonymously
from inference.scans import Scan, find_input
from report.records import read_run
from report.scored import plan_behind
from report.sources import Readers
from utils.archives import unpack_zip
from utils.errors import UserError
from utils.json_text import parse_json
from utils.nifti import Volume
from utils.temporary import private_folder


def scan_readers(scans: Sequence[Scan], *, anonymous: bool) -> Readers:
    """What reads each scan by the name of its mask."""
    return {scan.case: functools.partial(_read, scan, anonymous=anonymous) for scan in scans}


@contextlib.contextmanager
def scans_again(masks: Path) -> Iterator[Readers]:
    """The scans of a folder of masks, where its record still leads to a DICOM series or an archive.

    Plain files need no such reader, and where anonymous scans came from is not recorded. What was unpacked is gone at
    the end of the block.
    """
    place, channels = _input_of(masks)
    with contextlib.ExitStack() as stack:
        readers: Readers = {}
        # Whatever is wrong with them now, a page can be written: it says that they were not found.
        with contextlib.suppress(Exception):
            archive = place is not None and place.is_file() and place.suffix.lower() == ".zip"
            if place is not None and archive:
                # As in `opened`: series directly in an archive are called after it.
                unpacked = stack.enter_context(private_folder("nnunet-page")) / place.stem
                unpack_zip(place, unpacked)
                place = unpacked
            if place is not None and place.exists():
                plan = plan_behind(masks, read_run(masks / "run.json"))
                number = max(len(channels), 1) if plan is None else len(plan.channels)
                found = find_input(place, number, channels).scans
                readers = scan_readers([scan for scan in found if archive or scan.series], anonymous=False)
        yield readers


def _input_of(masks: Path) -> tuple[Path | None, tuple[str, ...]]:
    """What `--input` and `--dicom_channels` were; None and nothing where the record does not say."""
    try:
        record = parse_json((masks / "run.json").read_bytes())
        options, folder = record["options"], record["working_folder"]
        name, words = options["input"], options.get("dicom_channels", [])
        if not isinstance(name, str) or name == HIDDEN:
            return None, ()
        # Patterns, or a table, which is a file.
        tables = [word.lower().endswith(TABLE) for word in words]
        return Path(folder, name), tuple(
            str(Path(folder, word)) if table else word for word, table in zip(words, tables)
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None, ()


def _read(scan: Scan, *, anonymous: bool) -> Volume:
    try:
        return scan.read()
    except UserError as error:
        raise UserError(describe_anonymously(error, scan) if anonymous else str(error)) from None

"""The stamps of a folder of masks on disk: `masks.json`, and while a run goes on a record of each mask that it wrote.

A run over thousands of scans would write a table of all of them after each scan. So each mask has a small file of its
own in `masks.json.d/`, which counts more than the table does; at the end they are gathered into it. After a kill they
stay, and whoever reads the stamps reads both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference.mask_stamps import STAMPS, MaskStamp, StampFile
from utils.errors import UserError
from utils.files import file_state, read_json, to_dict, write_atomically
from utils.schema import FORMAT_VERSION, check_version

RECORDS = f"{STAMPS}.d"
"""Folder of the records that are not yet gathered, `<case>.json` each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StampRecord:
    """The stamp of one mask. Written to `masks.json.d/<case>.json`."""

    version: int = FORMAT_VERSION
    case: str
    stamp: MaskStamp

    def __post_init__(self) -> None:
        check_version(self.version, RECORDS)


def read_stamps(folder: Path) -> dict[str, MaskStamp]:
    """Case -> stamp of the masks of a folder, whatever others do there meanwhile.

    Raises:
        UserError: a file is damaged.
    """
    return _read_all(folder, None)


def read_sound_stamps(folder: Path) -> tuple[dict[str, MaskStamp], bool]:
    """What `read_stamps` gives, without what damaged files say; and whether there are such files."""
    damaged: list[Path] = []
    return _read_all(folder, damaged), bool(damaged)


def _read_all(folder: Path, damaged: list[Path] | None) -> dict[str, MaskStamp]:
    """Read the table and then the records; damaged files are put into `damaged`, or (None) are an error."""
    while True:
        before = table_state(folder)
        if damaged is not None:
            damaged.clear()
        try:
            stamps = _read_table(folder, damaged)
            for path in sorted((folder / RECORDS).glob("[!.]*.json")):
                _add_record(path, stamps, damaged)
        except FileNotFoundError:
            # Records were gathered after they had been listed.
            continue
        # They are in the table before they are gone.
        if table_state(folder) == before:
            return stamps


def read_record(folder: Path, case: str) -> MaskStamp | None:
    """The stamp of a mask that was written since the table was; None where there is none.

    Raises:
        UserError: it is damaged.
    """
    try:
        return _read(StampRecord, record_path(folder, case)).stamp
    except FileNotFoundError:
        return None


def table_state(folder: Path) -> tuple[int, int, int] | None:
    """What changes with every new `masks.json`; None where there is none."""
    return file_state(folder / STAMPS)


def record_path(folder: Path, case: str) -> Path:
    """Where the record of a mask lies."""
    return folder / RECORDS / f"{case}.json"


def stage_record(case: str, stamp: MaskStamp, folder: Path, temporary: Path) -> None:
    """Write a record under a temporary name; it has only to be renamed to `record_path`.

    Raises:
        OSError: there is no room; it names the table.
    """
    try:
        (folder / RECORDS).mkdir(exist_ok=True)
        temporary.write_bytes(_text(StampRecord(case=case, stamp=stamp)))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder / STAMPS)) from error


def write_table(folder: Path, stamps: Mapping[str, MaskStamp]) -> None:
    """Write `masks.json`, and remove the records, which it holds; nobody else may write records meanwhile."""
    content = _text(StampFile(masks=dict(sorted(stamps.items()))))
    write_atomically(folder / STAMPS, lambda file: file.write(content))
    for path in (folder / RECORDS).glob("*"):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        (folder / RECORDS).rmdir()


def _read_table(folder: Path, damaged: list[Path] | None) -> dict[str, MaskStamp]:
    try:
        return dict(_read(StampFile, folder / STAMPS).masks)
    except FileNotFoundError:
        return {}
    except UserError:
        if damaged is None:
            raise
        damaged.append(folder / STAMPS)
        return {}


def _add_record(path: Path, stamps: dict[str, MaskStamp], damaged: list[Path] | None) -> None:
    """Raises FileNotFoundError where it is not there."""
    try:
        record = _read(StampRecord, path)
    except UserError:
        if damaged is None:
            raise
        damaged.append(path)
        # What the table says is of the mask before, and would make this one an edited one.
        stamps.pop(path.name.removesuffix(".json"), None)
    else:
        stamps[record.case] = record.stamp


def _read(kind: type[Any], path: Path) -> Any:
    """Raises FileNotFoundError where it is not there."""
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link that leads nowhere; remove it, or give --overwrite")
    try:
        return read_json(kind, path)
    except UserError as error:
        if not path.exists():
            raise FileNotFoundError(path) from None
        raise UserError(
            f"{error}; it says what masks of that folder were made from: choose another folder, or --overwrite to "
            "predict all of them again"
        ) from None


def _text(content: StampFile | StampRecord) -> bytes:
    return (json.dumps(to_dict(content), indent=1) + "\n").encode()

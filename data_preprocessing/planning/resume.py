"""What an earlier run left that this run may use: the fingerprint, and folds edited by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from data_preprocessing.dataset.description_file import Dataset
from data_preprocessing.runner import source_files
from data_preprocessing.shards import stamp_sources
from utils.errors import UserError
from utils.files import read_json, write_json
from utils.schema import FORMAT_VERSION, Fingerprint, LabelScheme, Splits, check_version


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a stored fingerprint was computed from, and found free of faults. Written to `inspection.json`."""

    version: int
    channels: tuple[str, ...]
    labels: LabelScheme
    source_stamps: dict[str, str]
    """Case -> digest of size and modification time of its files."""

    def __post_init__(self) -> None:
        check_version(self.version, "inspection")


def describe_sources(dataset: Dataset) -> Inspection:
    """The training cases as they are now."""
    return Inspection(
        version=FORMAT_VERSION,
        channels=dataset.channels,
        labels=dataset.labels,
        source_stamps={case.case: stamp_sources(source_files(case)) for case in dataset.training},
    )


def stored_fingerprint(folder: Path, inspection: Inspection, *, relative_size: bool = False) -> Fingerprint | None:
    """The fingerprint of an earlier run, if no case was added, taken out or changed since; else None.

    With `relative_size` one of an earlier version, which does not say how much cropping takes away, is not used.
    """
    try:
        if read_json(Inspection, folder / "inspection.json") != inspection:
            return None
        fingerprint = read_json(Fingerprint, folder / "fingerprint.json")
    except UserError:
        return None
    if relative_size and fingerprint.median_relative_size is None:
        return None
    return fingerprint if set(fingerprint.cases) == set(inspection.source_stamps) else None


def store_fingerprint(folder: Path, fingerprint: Fingerprint, inspection: Inspection) -> None:
    """Write both, unless they are there; the inspection last, as it vouches for the fingerprint."""
    if stored_fingerprint(folder, inspection) == fingerprint:
        return
    (folder / "inspection.json").unlink(missing_ok=True)
    write_json(fingerprint, folder / "fingerprint.json")
    write_json(inspection, folder / "inspection.json")


def write_splits(folder: Path, splits: Splits, *, asked_for: bool = False) -> None:
    """Write the folds; ones that are there stay (a person may have edited them) if they split the same cases.

    Folds of other cases, or another number of folds, are kept as `splits.old.json`; so are any others when these were
    `asked_for` by --splits or --group_by.
    """
    path = folder / "splits.json"
    if path.is_file():
        try:
            stored = read_json(Splits, path)
        except UserError:
            stored = None
        if stored == splits or (not asked_for and stored is not None and _outline(stored) == _outline(splits)):
            return
        path.replace(folder / "splits.old.json")
        print(f"{path}: these folds are other ones than before; the old ones are in splits.old.json")
    write_json(splits, path)


def _outline(splits: Splits) -> tuple[int, set[str]]:
    return len(splits.folds), {case for fold in splits.folds for case in (*fold.train, *fold.val)}

"""Where the scans, labels and names of a result are, followed from what its record says."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from report.notices import note_damage
from report.records import RunFacts, fold_folders, read_mapping, read_run
from utils.archives import read_member
from utils.errors import UserError
from utils.files import from_dict, read_json
from utils.json_text import parse_json
from utils.nifti import Volume
from utils.scan_names import scan_files, scan_stem
from utils.schema import CaseMeta, Plan

T = TypeVar("T")
MAX_PLAN_BYTES = 16 << 20
"""A plan has some kilobytes; what an archive calls one and is larger is left alone."""
FIRST_CHANNEL = "_0000"
"""nnU-Net's ending of the first of several files of a scan."""


Readers = Mapping[str, Callable[[], Volume]]
"""Case -> what reads its scan, of whoever knows more of scans than that they are files (DICOM series, archives)."""
FILES_ALONE: Readers = MappingProxyType({})
"""All scans are files that are read here."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaseFiles:
    """The files of one case; of several channels the first."""

    case: str
    image: Path | None
    mask: Path | None = None
    label: Path | None = None
    read: Callable[[], Volume] | None = None
    """What reads the scan, in place of its file."""


def shard_folder(run: RunFacts) -> Path | None:
    """The preprocessed data of a run of main.py; None where they are not any more.

    `--data` is that folder, one of its sub-folders `val` and `test`, or the one above it.
    """
    data = run.resolve(run.option("run", "data"))
    if data is None:
        return None
    candidates = [data, data.parent, data / f"{run.option('run', 'task')}_{run.option('run', 'dim')}d"]
    return next((folder for folder in candidates if (folder / "plan.json").is_file()), None)


def case_places(run: RunFacts) -> list[Path]:
    """Folders in which the `<case>.json` of a run's shards may lie: those of `--exec_mode val` and `test`, too."""
    data, root = run.resolve(run.option("run", "data")), shard_folder(run)
    places = [place for place in (data, root) if place is not None]
    return list(dict.fromkeys([*places, *(root / name for name in ("val", "test") if root is not None)]))


def files_of_shard(places: Iterable[Path], case: str, mask: Path | None = None) -> CaseFiles:
    """Scan and label that a case was preprocessed from, as far as they are still there."""
    for place in places:
        meta = read_object(CaseMeta, place / f"{case}.json")
        if meta is None:
            continue
        label = None if meta.label is None else existing(Path(meta.label))
        return CaseFiles(case=case, image=existing(Path(meta.image)), mask=mask, label=label)
    return CaseFiles(case=case, image=None, mask=mask)


def scans_of_folder(folder: Path | None) -> dict[str, Path]:
    """Case -> scan (its first channel) of what `--input` was: a folder, a task's folder, or one file."""
    if folder is None:
        return {}
    if folder.is_file():
        return {_case_of(folder): folder}
    files = scan_files(folder) or scan_files(folder / "imagesTs")
    found: dict[str, Path] = {}
    for path in files:
        found.setdefault(_case_of(path), path)
    return found


def by_case(folder: Path | None) -> dict[str, Path]:
    """Case -> mask or label file of a folder."""
    return {} if folder is None else {scan_stem(path): path for path in scan_files(folder)}


def read_object(kind: type[T], path: Path) -> T | None:
    """A file of the project's own JSON; None where there is none that can be read."""
    if not path.is_file():
        return None
    try:
        return read_json(kind, path)
    except (UserError, OSError, ValueError) as error:
        note_damage(path, error)
        return None


def read_plan(path: Path | None) -> Plan | None:
    """A plan.json; None where there is none that can be read."""
    return None if path is None else read_object(Plan, path)


def plan_of_model(model: Path | None) -> Plan | None:
    """The plan of a model that predicted: that of an exported file, or of the data that it was trained on."""
    if model is None:
        return None
    if model.is_file():
        return _archived_plan(model) or _trained_plan(model)
    members = read_mapping(model / "decision.json").get("members")
    folders = [model]
    if isinstance(members, list):
        names = [member.get("folder") for member in members if isinstance(member, dict)]
        folders = [model / name for name in names if isinstance(name, str)] or folders
    return next((plan for folder in folders if (plan := _configuration_plan(folder)) is not None), None)


def plan_of_run(run: RunFacts | None) -> Plan | None:
    """The plan of the data of a run of main.py."""
    folder = None if run is None else shard_folder(run)
    return None if folder is None else read_plan(folder / "plan.json")


def channels_of(plan: Plan | None) -> tuple[str, ...]:
    """Names of the channels of a plan's scans."""
    return () if plan is None else tuple(channel.name for channel in plan.channels)


def existing(path: Path) -> Path | None:
    """The path, if there is a file."""
    return path if path.is_file() else None


def _configuration_plan(folder: Path) -> Plan | None:
    plan = read_plan(folder / "out_of_fold" / "plan.json") or _trained_plan(folder / "checkpoints")
    folds = (_trained_plan(fold / "checkpoints") for fold in fold_folders(folder))
    return plan or next((plan for plan in folds if plan is not None), None) or _trained_plan(folder)


def _trained_plan(checkpoints: Path) -> Plan | None:
    """By the record of the training that a checkpoint, or a folder of them, belongs to."""
    records = (place / "run.json" for place in (checkpoints, checkpoints.parent, checkpoints.parent.parent))
    return next((plan for path in records if (plan := plan_of_run(read_run(path))) is not None), None)


def _archived_plan(path: Path) -> Plan | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted((name for name in archive.namelist() if name.endswith("plan.json")), key=len)
            if not names or archive.getinfo(names[0]).file_size > MAX_PLAN_BYTES:
                return None
            content = parse_json(read_member(archive, names[0]))
        return from_dict(Plan, content, source=str(path))
    except zipfile.BadZipFile:
        # A checkpoint of another program.
        return None
    except (OSError, ValueError, RuntimeError, UserError) as error:
        note_damage(path, error)
        return None


def _case_of(path: Path) -> str:
    stem = scan_stem(path)
    return stem.removesuffix(FIRST_CHANNEL) or stem

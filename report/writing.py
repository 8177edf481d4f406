"""The one edge of the room: a folder in, `report.html` beside what it is about."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from report.cross_validation import (
    cross_validation_page,
    find_tasks,
    read_cross_validation,
    write_cross_validation_views,
)
from report.evaluation import ScoreFiles
from report.masks import mask_page, read_masks, write_mask_views
from report.notices import collecting, notices
from report.records import fold_folders, read_run
from report.sources import FILES_ALONE, Readers
from report.training import read_training, training_page, write_training_views
from report.views import Room, Views
from utils.errors import UserError
from utils.files import write_atomically
from utils.runs import PAGE, STAMPS
from utils.scan_names import VOLUME_ENDINGS, scan_files

Kind = Literal["training", "cross-validation", "evaluation", "prediction"]
DEFAULT = Room()
MANY = 50
"""Scans above which a page takes so long that a person is told what is going on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Written:
    """A page that was written."""

    kind: Kind
    path: Path
    num_bytes: int
    viewer_cases: int


def write_training_report(folder: Path, room: Room = DEFAULT, output: Path | None = None) -> Written:
    """The page of a training's results folder, or of a fold of a cross-validation.

    Raises:
        UserError: there is neither a record nor a log.
    """

    def make() -> tuple[str, Views]:
        facts = read_training(folder)
        if facts.run is None and not facts.epochs:
            raise UserError(f"{folder} holds no training: neither run.json nor a log with epochs (logs.json)")
        views, structures = write_training_views(facts, room)
        return training_page(facts, views, structures), views

    return _write("training", output or folder / PAGE, make)


def write_evaluation_report(
    folder: Path, room: Room = DEFAULT, output: Path | None = None, *, scores: ScoreFiles | None = None,
    readers: Readers = FILES_ALONE,
) -> Written:  # fmt: skip
    """The page of a folder of masks that were scored; by default by `scores.csv` and `summary.json` in it.

    It shows what is known of their prediction, too.

    Raises:
        UserError: there are no scores.
    """

    def make() -> tuple[str, Views]:
        facts = read_masks(folder, scores=scores, readers=readers, scored=True)
        views, structures = write_mask_views(facts, room)
        return mask_page(facts, views, structures), views

    return _write("evaluation", output or folder / PAGE, make)


def write_prediction_report(
    folder: Path, room: Room = DEFAULT, output: Path | None = None, *, readers: Readers = FILES_ALONE
) -> Written:
    """The page of a folder of predicted masks, with their scores where they were scored.

    Raises:
        UserError: there are neither masks nor a record.
    """

    def make() -> tuple[str, Views]:
        facts = read_masks(folder, readers=readers)
        if len(facts.files) > MANY:
            print(f"reading {len(facts.files)} scans for their page; Ctrl-C leaves it out", flush=True)
        views, structures = write_mask_views(facts, room)
        return mask_page(facts, views, structures), views

    return _write("prediction", output or folder / PAGE, make)


def write_cross_validation_report(folder: Path, task: str, room: Room = DEFAULT, output: Path | None = None) -> Written:
    """The page of a task's configurations in a results folder: `<task>_report.html`.

    Raises:
        UserError: no fold is finished.
    """

    def make() -> tuple[str, Views]:
        facts = read_cross_validation(folder, task)
        views, structures = write_cross_validation_views(facts, room)
        return cross_validation_page(facts, views, structures), views

    return _write("cross-validation", output or folder / f"{task}_{PAGE}", make)


def write_report(
    folder: Path, room: Room = DEFAULT, output: Path | None = None, *, readers: Readers = FILES_ALONE
) -> Written:
    """The page of whatever a folder holds; `readers` are of scans that were predicted and are more than files.

    Raises:
        UserError: it holds nothing that a page can be made of.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    kind, place, task = find_kind(folder)
    if kind == "cross-validation":
        return write_cross_validation_report(place, task, room, output)
    if kind == "training":
        return write_training_report(place, room, output)
    write = write_evaluation_report if kind == "evaluation" else write_prediction_report
    return write(place, room, output, readers=readers)


def find_kind(folder: Path) -> tuple[Kind, Path, str]:
    """What a folder holds, the folder that its page is made of, and the task of a cross-validation.

    Raises:
        UserError: nothing that a page can be made of, or several cross-validations.
    """
    if (folder / "scores.csv").is_file():
        return "evaluation", folder, ""
    run = read_run(folder / "run.json")
    mode = None if run is None else run.option("run", "exec_mode")
    if mode == "train" or (folder / "checkpoints").is_dir():
        return "training", folder, ""
    if run is not None and "input" in run.options and "model" in run.options:
        return "prediction", folder, ""
    if (folder / "decision.json").is_file() or (fold_folders(folder) and not find_tasks(folder)):
        # A configuration's folder, or that of the decision, lies in the results folder of the cross-validation.
        return "cross-validation", folder.parent, folder.name.partition("_")[0]
    tasks = find_tasks(folder)
    if len(tasks) == 1:
        return "cross-validation", folder, tasks[0]
    if tasks:
        raise UserError(f"{folder} holds several cross-validations; name one by its folder, such as "
                        f"{folder / f'{tasks[0]}_3d_fullres'}")  # fmt: skip
    if scan_files(folder, *VOLUME_ENDINGS) or (folder / STAMPS).is_file():
        return "prediction", folder, ""
    inside = sorted(folder.glob("preds_*"))
    if len(inside) == 1:
        return find_kind(inside[0])
    raise UserError(
        f"{folder} holds nothing that a page can be made of: no training (run.json, checkpoints), no cross-validation "
        "(<task>_<configuration>/fold_0/done.json), no masks"
    )


def _write(kind: Kind, path: Path, make: Callable[[], tuple[str, Views]]) -> Written:
    with collecting():
        try:
            page, views = make()
        except UserError as error:
            raise UserError("\n".join([str(error), *notices()])) from None
        found = notices()
    content = page.encode("utf-8")
    write_atomically(path, lambda file: file.write(content))
    for text in found:
        print(f"warning: {text}", file=sys.stderr)
    return Written(kind=kind, path=path, num_bytes=len(content), viewer_cases=len(views.shown))

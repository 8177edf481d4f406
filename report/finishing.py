"""Pages that other commands write at their end, when their own work is done and cannot be spoiled any more.

It imports what makes pages only then.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from utils.config import RunConfig
from utils.errors import UserError
from utils.launch import find_ranks

if TYPE_CHECKING:
    from report.sources import Readers
    from report.writing import Written

WORTH_SAYING_S = 1.0
"""Seconds above which a command says how long its page took."""


def finish_run(run: RunConfig) -> None:
    """The pages of a run of main.py: of its training, or of the masks that it wrote. The first process writes them.

    Masks of a training's cases change what the training's page shows, which is written anew. A benchmark and an
    evaluation of a checkpoint have no page.
    """
    if not run.report or run.benchmark or find_ranks(os.environ, 1)[0] != 0:
        return
    if run.exec_mode == "train":
        finish_with(lambda: _training(run.results))
    elif run.exec_mode == "predict":
        from report.records import read_run
        from utils.runs import holds_training, record_path

        record = read_run(record_path(run))
        masks = None if record is None else record.resolve(record.outcome.get("predictions"))
        if masks is not None:
            finish_prediction(masks)
            if holds_training(run.results):
                finish_with(lambda: _training(run.results))


def finish_prediction(folder: Path, readers: Readers = MappingProxyType({})) -> None:
    """The page of a folder of masks; `readers` of the scans where they are more than files."""

    def write() -> Written:
        from report.writing import write_prediction_report

        return write_prediction_report(folder, readers=readers)

    finish_with(write)


def finish_evaluation(folder: Path, table: Path, summary: Path, readers: Readers = MappingProxyType({})) -> None:
    """The page of an evaluation: in the folder of the masks, or beside the table of scores where that is elsewhere."""

    def write() -> Written:
        from report.evaluation import ScoreFiles
        from report.writing import write_evaluation_report

        output = _evaluation_page(folder, table)
        return write_evaluation_report(folder, output=output, scores=ScoreFiles(table=table, summary=summary),
                                       readers=readers)  # fmt: skip

    finish_with(write)


def outdate_scores(folder: Path, table: Path) -> None:
    """Remove the page that shows the scores before, where the new ones are to have none; it says so."""
    page = _evaluation_page(folder, table)
    # A page beside a table elsewhere may be somebody else's by its name.
    if page.parent == folder and page.is_file():
        page.unlink()
        print(f"warning: {page} showed the scores before and is removed; nnunet report writes it anew", file=sys.stderr)


def finish_cross_validation(results: Path, task: str) -> None:
    """The page of a task's configurations."""

    def write() -> Written:
        from report.writing import write_cross_validation_report

        return write_cross_validation_report(results, task)

    finish_with(write)


def finish_with(write: Callable[[], Written]) -> Written | None:
    """Write a page at the end of another command, whose work is done: that there is no page is a warning, no error.

    Ctrl-C ends the page and not the command.
    """
    start_s = time.perf_counter()
    try:
        written = write()
    except (Exception, KeyboardInterrupt) as error:
        reason = str(error) if isinstance(error, (UserError, OSError)) else f"{type(error).__name__}: {error}"
        print(f"warning: no page was written about this run: {reason}", file=sys.stderr)
        return None
    elapsed_s = time.perf_counter() - start_s
    took = f" ({elapsed_s:.1f} s)" if elapsed_s > WORTH_SAYING_S else ""
    print(f"page about this run: {written.path}{took}", flush=True)
    return written


def _evaluation_page(folder: Path, table: Path) -> Path:
    from utils.runs import PAGE

    own = table.absolute() == (folder / "scores.csv").absolute()
    return folder / PAGE if own else table.with_suffix(".html")


def _training(folder: Path) -> Written:
    from report.writing import write_training_report

    return write_training_report(folder)

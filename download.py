"""Fetch tasks of the Medical Segmentation Decathlon, or write the built-in phantom task.

python download.py --task 04
python download.py --task 00          (the phantom: no network needed)
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_preprocessing.planning.presets import ARCHIVES, MSD_TASKS, MsdTask
from utils.archives import has_md5, unpack
from utils.args import parse
from utils.config import TaskNumber, default_root
from utils.errors import EXIT_OK, UserError, continues_with, run_cli
from utils.task_number import normalise_task
from utils.transfer import Patience, Report, fetch

PHANTOM = "00"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DownloadOptions:
    """Fetch tasks of the Medical Segmentation Decathlon, or write the built-in phantom task."""

    task: tuple[TaskNumber, ...]
    """Task numbers, 01 to 10; 00 writes the phantom, a small generated task that needs no network."""
    results: Path = dataclasses.field(default_factory=lambda: default_root("data"))
    """Folder in which TaskNN_Name is made."""
    mirror: str = ARCHIVES
    """Address of the folder that holds the archives TaskNN_Name.tar."""
    seed: int = 0
    """Seed of the phantom."""

    def __post_init__(self) -> None:
        normalise_task(self)
        unknown = [number for number in self.task if number != PHANTOM and number not in MSD_TASKS]
        if unknown or not self.task:
            known = ", ".join(task.folder for task in MSD_TASKS.values())
            raise ValueError(f"--task must be 00 (phantom) or one of {known}; got {', '.join(unknown) or 'none'}")
        if not self.mirror.startswith(("https://", "http://")):
            raise ValueError(f"--mirror must be an https:// or http:// address, got {self.mirror!r}")
        if self.seed < 0:
            raise ValueError(f"--seed must not be negative, got {self.seed}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; a task that is there already is left as it is."""
    options = parse(DownloadOptions, argv, prog="download.py")
    for number in dict.fromkeys(options.task):
        if number == PHANTOM:
            make_phantom(options.results, options.seed)
        else:
            task = dataclasses.replace(MSD_TASKS[number], archives=options.mirror.rstrip("/"))
            download_task(task, options.results)
    return EXIT_OK


def make_phantom(destination: Path, seed: int) -> Path:
    """Write Task00_Phantom into `destination` unless it is there."""
    from data_preprocessing.dataset.phantom import FOLDER, write_phantom

    target = destination / FOLDER
    if _is_there(target):
        return target
    write_phantom(destination, seed=seed)
    print(f"{target} is ready")
    return target


def download_task(task: MsdTask, destination: Path, *, patience: Patience | None = None) -> Path:
    """Fetch, verify and unpack one task into `destination`, unless it is there.

    The transfer goes to TaskNN_Name.tar.part, which is removed when the task is unpacked; a TaskNN_Name.tar that
    somebody put into the folder is used in its place and kept.

    Returns:
        `destination`/TaskNN_Name.

    Raises:
        UserError: the transfer failed, the checksum is wrong, the archive is not safe, or the disk is full.
    """
    target = destination / task.folder
    if _is_there(target):
        return target
    try:
        destination.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{destination} cannot be made: {error.strerror}") from None
    own, part = destination / f"{task.folder}.tar", destination / f"{task.folder}.tar.part"
    if own.is_file():
        if not has_md5(own, task.md5):
            raise UserError(f"{own} is not the archive of {task.folder} (MD5 {task.md5}); move it away and run again")
        unpack(own, target)
    else:
        print(f"{task.url} -> {target}")
        advice = f"the same command continues; what arrived is kept in {part}"
        with continues_with(advice), progress(task.folder) as report:
            fetch(task.url, part, report, patience)
        if not has_md5(part, task.md5):
            part.unlink()
            raise UserError(
                f"{task.url} arrived with another MD5 sum than {task.md5}; the transfer was removed, run again"
            )
        unpack(part, target)
        part.unlink()
    print(f"{target} is ready")
    return target


def _is_there(target: Path) -> bool:
    if target.exists():
        print(f"{target} is there already and is left as it is; move it away to get it anew")
    return target.exists()


@contextlib.contextmanager
def progress(name: str) -> Iterator[Report]:
    """What shows how far a transfer is: a bar on a terminal, elsewhere a line for each tenth."""
    if not sys.stdout.isatty():
        yield _lines(name)
        return
    from rich.progress import DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (*Progress.get_default_columns()[:2], DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        row = bar.add_task(name, total=None)
        yield lambda present, total: bar.update(row, completed=present, total=total or None)


def _lines(name: str) -> Report:
    last_tenth = -1

    def report(present: int, total: int) -> None:
        nonlocal last_tenth
        tenth = 10 * present // total if total else -1
        if tenth != last_tenth:
            last_tenth = tenth
            print(f"{name}: {10 * tenth} % of {total / 1e6:.1f} MB", flush=True)

    return report


if __name__ == "__main__":
    sys.exit(run_cli(main))

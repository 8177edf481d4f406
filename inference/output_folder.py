"""Which folders masks may be written into, and what killed runs have left there."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from inference.mask_folder import PROBABILITIES, listed
from inference.mask_formats import format_fault
from inference.mask_stamps import STAMPS
from inference.scans import Scan
from utils.errors import UserError, list_problems
from utils.files import real_path
from utils.json_text import parse_json
from utils.temporary import sweep


def refuse_scans_as_output(scans: Sequence[Scan], output: Path) -> None:
    """Refuse an output folder in which masks would take the place of scans, be they links or the files themselves.

    Raises:
        UserError: it is such a folder.
    """
    folder = real_path(output)
    images = [image for scan in scans for image in scan.images]
    # Of a link both count: the folder in which it lies, and that of the file.
    if any(folder in (real_path(image.parent), real_path(image).parent) for image in images):
        raise UserError(f"--output {output} is the folder of the scans; choose another one")
    inputs = {_identity(image) for image in images} - {None}
    targets = [output / f"{scan.case}{suffix}" for scan in scans for suffix in (scan.mask_ending, PROBABILITIES)]
    lost = [str(target) for target in targets if _identity(target) in inputs]
    if lost:
        raise list_problems(
            f"--output {output} holds links to the scans, which masks would replace:", lost,
            advice="Choose another folder.",
        )  # fmt: skip


def refuse_format(scans: Sequence[Scan], output_format: str | None) -> None:
    """Refuse a format that masks of these scans cannot have.

    Raises:
        UserError: it is such a format.
    """
    faults = [format_fault(scan.images[0], output_format, is_series=scan.series is not None) for scan in scans]
    named = [f"{scan.case}: {fault}" for scan, fault in zip(scans, faults) if fault]
    if named:
        raise list_problems("masks cannot be written in this format:", named, advice="Choose another --output_format.")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def refuse_other_programs(output: Path, *, save_probabilities: bool) -> None:
    """Refuse a folder in which the record of another program, such as a training, would be replaced.

    Raises:
        UserError: it is such a folder.
    """
    record, plan = output / "run.json", output / "plan.json"
    if (output / STAMPS).is_file():
        return
    lost = [record] if record.is_file() and not _is_own(record) else []
    lost += [plan] if save_probabilities and plan.is_file() and not record.is_file() else []
    if lost:
        raise UserError(
            f"--output {output} holds {', '.join(path.name for path in lost)} of something else (a training, "
            "preprocessed data), which would be replaced; choose another folder"
        )


def _is_own(record: Path) -> bool:
    try:
        options = parse_json(record.read_text(encoding="utf-8"))["options"]
        return {"input", "output", "model", "settings"} <= options.keys()
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


def remove_strays(output: Path) -> None:
    """Delete what killed runs, of earlier versions too, left in a folder that this run alone writes to.

    Checkpoints on their way are not ours.
    """
    for folder in output.glob(".ensemble-*"):
        shutil.rmtree(folder, ignore_errors=True)
    sweep(output, alone=True)


def warn_of_others(others: Mapping[str, str], output: Path) -> None:
    """Say which masks of a folder come from elsewhere than what its run.json names."""
    if others:
        print(
            f"warning: {output} also holds masks that this run has not made, nor one like it: {listed(list(others))}; "
            f"{STAMPS} and run.json say so",
            file=sys.stderr,
        )

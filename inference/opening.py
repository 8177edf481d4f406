"""A zip of scans, unpacked for as long as a run lasts."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from inference.scan_run import ScanJob
from utils.archives import unpack_zip
from utils.runs import prepare_folder
from utils.temporary import temporary_folder


@contextlib.contextmanager
def opened(job: ScanJob) -> Iterator[ScanJob]:
    """The job with its input unpacked in the output folder, if it is a zip; what was unpacked is removed at the end.

    Raises:
        UserError: the zip is damaged, not safe, or too large.
    """
    if not (job.input.is_file() and job.input.suffix.lower() == ".zip"):
        yield job
        return
    prepare_folder(job.output, "--output")
    with temporary_folder(job.output / "input") as folder:
        # Series directly in the archive are called after it.
        place = folder / job.input.stem
        unpack_zip(job.input, place)
        yield dataclasses.replace(job, unpacked=place)

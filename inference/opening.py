"""A zip of scans, unpacked for as long as a run lasts."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from inference.dicom.channels import TABLE
from inference.naming import naming_nobody
from inference.scan_run import ScanJob
from utils.archives import unpack_zip
from utils.runs import prepare_folder
from utils.temporary import temporary_folder


@contextlib.contextmanager
def opened(job: ScanJob) -> Iterator[ScanJob]:
    """The job with its input unpacked in the output folder, if it is a zip; what was unpacked is removed at the end.

    Inside the block, as before, errors name nothing of an anonymous input.

    Raises:
        UserError: the zip is damaged, not safe, or too large.
    """
    if job.anonymous:
        # A file in the folder `.` would be named without it, as any other word.
        job = dataclasses.replace(job, input=job.input.absolute())
    tables = [Path(word) for word in job.dicom_channels if word.lower().endswith(TABLE)]
    places = [job.input, job.anonymous_map, *tables]
    with contextlib.ExitStack() as stack:
        stack.enter_context(naming_nobody(job.anonymous, places))
        if job.input.is_file() and job.input.suffix.lower() == ".zip":
            prepare_folder(job.output, "--output")
            folder = stack.enter_context(temporary_folder(job.output / "input"))
            # Series directly in the archive are called after it.
            place = folder / job.input.stem
            stack.enter_context(naming_nobody(job.anonymous, [place]))
            with naming_nobody(job.anonymous, (), lists=True):
                unpack_zip(job.input, place)
            job = dataclasses.replace(job, unpacked=place)
        yield job

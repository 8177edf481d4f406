"""Scans to masks one after the other, whoever asks: a queue of limited length, and one worker for each device."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import queue
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from inference.configuration_predictor import Work
from inference.predictor import Predictor
from serving.answers import Answer, make_record, make_view, segments, write_answer_mask
from serving.limits import Limits
from serving.predicting import ScanPredictor
from serving.refusals import Refused, busy, ending, no_room
from serving.scratch import Folder, Scratch
from serving.uploads import NAME, Opening, check_upload, in_clients_words, open_upload, wanted_ending
from utils.disk import FULL
from utils.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dicom:
    """Which series of a study is which channel (see `inference.scans.find_input`), and codes of segments, a file."""

    channels: tuple[str, ...] = ()
    segment_codes: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """One scan: its files in a folder of its own, where the mask goes as well.

    `format` is what the client wants the mask in (see `mask_formats.ENDINGS`), None for that of the scan; with `view`
    it gets what its page shows.
    """

    folder: Folder
    files: tuple[Path, ...]
    format: str | None = None
    view: bool = False
    asked_s: float = dataclasses.field(default_factory=time.monotonic)
    gone: threading.Event = dataclasses.field(default_factory=threading.Event)
    """Set when nobody waits for the answer any more."""


class Worker:
    """Predicts jobs in the order in which they come.

    Args:
        predictors: one per device, of the same model.
        limits: how many may wait, and how long each may take.
        dicom: how series are read and written.

    Raises:
        UserError: there is no private place for files, or the codes cannot be used.
    """

    def __init__(self, predictors: Sequence[Predictor], limits: Limits, dicom: Dicom) -> None:
        self.predictors, self.limits, self.scratch = tuple(predictors), limits, Scratch()
        self._opening = Opening(
            num_channels=len(self.predictors[0].plan.channels), limits=limits, dicom_channels=dicom.channels
        )
        self._segments = segments(self.predictors[0], dicom.segment_codes)
        each = [ScanPredictor(predictor) for predictor in predictors]
        self.warnings = each[0].warnings
        self._idle: queue.SimpleQueue[ScanPredictor] = queue.SimpleQueue()
        for one in each:
            self._idle.put(one)
        self._pool = ThreadPoolExecutor(len(self.predictors), thread_name_prefix="predict")
        self._lock, self._taken, self._ending = threading.Lock(), 0, threading.Event()
        self._stopping = threading.Event()

    @property
    def is_ending(self) -> bool:
        """Whether no more work is taken."""
        return self._ending.is_set()

    @property
    def taken(self) -> int:
        """Requests that are worked on, wait, or send their scan."""
        return self._taken

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue, held inside the block.

        Raises:
            Refused: there is none left, or the service ends.
        """
        with self._lock:
            if self.is_ending:
                raise ending()
            if self._taken >= len(self.predictors) + self.limits.queue:
                raise busy()
            self._taken += 1
        try:
            yield
        finally:
            with self._lock:
                self._taken -= 1

    def submit(self, job: Job) -> Future[Answer]:
        """Let a job wait its turn; the future gives the answer, or raises `Refused`.

        Raises:
            Refused: the service ends.
        """
        try:
            return self._pool.submit(self._run, job)
        except RuntimeError:
            raise ending() from None

    def end(self) -> None:
        """Take no more work, and drop what waits; what is worked on goes on."""
        self._ending.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """End, and stop what is worked on at its next window."""
        self.end()
        self._stopping.set()
        self._pool.shutdown(wait=True)

    def _run(self, job: Job) -> Answer:
        predictor = self._idle.get()
        try:
            return self._predict(job, predictor)
        except Refused:
            raise
        except UserError as error:
            raise Refused(422, in_clients_words(str(error), job.files)) from None
        except Exception as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise no_room() from None
            # The service lives on; what it was is for its own log.
            traceback.print_exception(error, file=sys.stderr)
            reason = "not enough memory" if isinstance(error, MemoryError) else "an error inside; its log has more"
            raise Refused(500, f"the service could not predict this scan: {reason}") from None
        finally:
            self._idle.put(predictor)

    def _predict(self, job: Job, scan_predictor: ScanPredictor) -> Answer:
        start_s = time.monotonic()

        def watch(done: Work | None = None) -> None:
            if job.gone.is_set():
                raise Refused(499, "nobody waits for this mask any more")
            if self._stopping.is_set():
                raise ending()
            if time.monotonic() - start_s > self.limits.seconds:
                raise Refused(504, f"predicting this scan takes longer than {self.limits.seconds:g} s, the limit here")

        watch()
        predictor, folder = scan_predictor.predictor, job.folder.path
        scan = open_upload(job.files, job.folder, self._opening)
        wanted = wanted_ending(scan, job.format)
        shape = check_upload(scan, predictor, self.limits)
        # Twice, as files are written beside their places; a page's view has the scan, too.
        job.folder.need(math.prod(shape) * (2 + 6 * job.view))
        volume = scan.read()
        predicted = scan_predictor.predict(volume, NAME, folder, job.folder.need, watch)
        watch()
        mask = write_answer_mask(folder / f"mask{wanted}", predicted.mask, volume, scan, self._segments)
        view = make_view(predicted.mask, volume, scan, wanted, folder) if job.view else {}
        seconds = {"waited": start_s - job.asked_s, "predicted": time.monotonic() - start_s}
        record = make_record(predicted, volume, predictor, seconds, scan.remarks)
        return Answer(mask=mask, ending=wanted, record=record, view=view)

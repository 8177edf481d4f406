"""From a request with files to the response with their mask: received within limits, predicted in turn."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from inference.mask_formats import ENDINGS
from serving.answers import Answer
from serving.refusals import Refused, ending, no_room, too_large
from serving.scratch import Folder
from serving.uploads import START_BYTES, file_name
from serving.worker import Job, Worker
from utils.disk import FULL

AnswerKind = Literal["mask", "json", "both", "view"]
MEDIA_TYPES = {
    ".nii.gz": "application/gzip", ".png": "image/png", ".tif": "image/tiff", ".seg.dcm": "application/dicom",
    ".labelmap.dcm": "application/dicom",
}  # fmt: skip

FIELD = "scan"
MOST_FIELDS = 8
PROMPT_BYTES = 64_000_000
"""What is still read of a request that is refused: a client reads its answer only when it has sent all."""
PROMPT_S = 10.0
GROWTH_BYTES = 1 << 24
"""Room on the disk is asked for in such steps where nobody says how much comes."""
DISCONNECT_S = 1.0
MOST_HEADER_BYTES = 4096
"""Of the record in a header; answers in JSON hold all of it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wish:
    """What a client wants: `answer` is the mask's file, its record in JSON, both in JSON, or what a page shows, too.

    `format` is that of the mask (see `mask_formats.ENDINGS`); None for that of the scan.
    """

    answer: AnswerKind
    format: str | None


async def predict_upload(
    request: Request, worker: Worker, wish: Wish, timed: Callable[[dict[str, float]], None]
) -> Response:
    """Predict the scan of a request.

    Args:
        request: multipart/form-data with a field `scan` for each file.
        worker: what predicts.
        wish: what comes back.
        timed: told of the seconds that it took.

    Raises:
        Refused: there will be no mask; the exception says why.
    """
    limits = worker.limits
    body = _Body(request, limits.upload_bytes)
    try:
        if wish.format not in (None, *ENDINGS):
            raise Refused(422, f"there is no format {str(wish.format)[:50]!r}; there are {', '.join(ENDINGS)}")
        stated = request.headers.get("content-length", "0")
        if not stated.isdecimal() or int(stated) > limits.upload_bytes:
            raise too_large(f"the request has more than {limits.upload_mb:g} MB")
        with worker.place():
            async with worker.scratch.lent() as folder:
                await body.store(folder, int(stated))
                files = await _receive_files(body.request, folder.path, worker)
                job = Job(folder=folder, files=files, format=wish.format, view=wish.answer == "view")
                result = await _predict(body.request, worker, job)
    except Refused:
        await body.drain()
        raise
    except ClientDisconnect:
        raise Refused(499, "the client went away") from None
    except asyncio.CancelledError:
        # What was under way when the service was told to end, and took longer than it may.
        if not worker.is_ending:
            raise
        raise ending() from None
    except OSError as error:
        if error.errno not in FULL:
            raise
        await body.drain()
        raise no_room() from None
    record = result.record
    timed(record["seconds"])
    shape = "x".join(map(str, record["shape_xyz"]))
    print(f"predict: 200 {shape} voxels, {record['seconds']}", flush=True)
    return _response(result, wish)


def _response(result: Answer, wish: Wish) -> Response:
    if wish.answer == "json":
        return JSONResponse(result.record)
    name = f"mask{result.ending}"
    if wish.answer in ("both", "view"):
        named = {"mask": result.mask, **{f"view_{name}": content for name, content in result.view.items()}}
        coded = {key: base64.b64encode(content).decode("ascii") for key, content in named.items()}
        return JSONResponse({**result.record, "file": name, **coded})
    headers = {"X-Result": _header(result.record), "Content-Disposition": f'attachment; filename="{name}"'}
    return Response(result.mask, media_type=MEDIA_TYPES.get(result.ending, "application/octet-stream"), headers=headers)


def _header(record: dict[str, Any]) -> str:
    """The record, or what of it is never long: proxies and clients take only so much of a header."""
    text = json.dumps(record)
    if len(text) <= MOST_HEADER_BYTES:
        return text
    short = {name: record[name] for name in ("shape_xyz", "spacing_mm_sar", "seconds")}
    doubt = {name: record["doubt"][name] for name in ("score", "calibrated", "doubtful")}
    return json.dumps({**short, "doubt": doubt, "left_out": "too long for a header: ask with answer=both"})


class _Body:
    """The body of a request, which ends in `Refused` after so many bytes, whatever its header claims."""

    def __init__(self, request: Request, most_bytes: int) -> None:
        self._receive, self._most_bytes = request.receive, most_bytes
        self._received, self._is_whole = 0, False
        self._folder: Folder | None = None
        self._promised = 0
        self.request = Request(request.scope, self.receive)
        # Such a client sends nothing before it has heard that it may.
        self._asks_first = "100-continue" in request.headers.get("expect", "").lower()

    async def store(self, folder: Folder, stated_bytes: int) -> None:
        """From now on what comes is written to the disk: as it comes, and once more as files.

        Raises:
            Refused: there is no room for so much.
        """
        await folder.ask(2 * stated_bytes)
        self._folder, self._promised = folder, 2 * stated_bytes

    async def receive(self) -> Any:
        """The next message."""
        message = await self._next()
        if self._received > self._most_bytes:
            raise too_large(f"the request has more than {self._most_bytes / 1e6:g} MB")
        if self._folder is not None:
            self._folder.spooled_bytes = self._received
            if 2 * self._received > self._promised:
                # A request that does not say how long it is.
                await self._folder.ask(GROWTH_BYTES)
                self._promised += GROWTH_BYTES
        return message

    async def drain(self) -> None:
        """Read on for a while, so that the client hears why it was refused."""
        if self._asks_first and not self._received:
            return
        until = self._received + PROMPT_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PROMPT_S):
                while not self._is_whole and self._received < until:
                    await self._next()

    async def _next(self) -> Any:
        message = await self._receive()
        self._received += len(message.get("body", b""))
        self._is_whole = not message.get("more_body", False)
        return message


async def _receive_files(request: Request, folder: Path, worker: Worker) -> tuple[Path, ...]:
    """The files of a scan under names of ours, in the order in which they were sent."""
    channels = len(worker.predictors[0].plan.channels)
    try:
        async with asyncio.timeout(worker.limits.upload_seconds):
            form = await request.form(max_files=channels + 1, max_fields=MOST_FIELDS)
    except TimeoutError:
        raise Refused(408, f"the scan was not there after {worker.limits.upload_seconds:g} s") from None
    except HTTPException as error:
        raise Refused(error.status_code, f"the form cannot be read: {error.detail}") from None
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(form.close)
        uploads = [each for each in form.getlist(FIELD) if isinstance(each, UploadFile)]
        if len(uploads) not in (1, channels):
            names = ", ".join(channel.name for channel in worker.predictors[0].plan.channels)
            each = f" or {channels} files, one for each of {names}" if channels > 1 else ""
            raise Refused(
                422, f"got {len(uploads)} files in the field {FIELD!r}; send multipart/form-data with one scan{each}"
            )
        return tuple([await _save(upload.file, folder, number) for number, upload in enumerate(uploads, start=1)])


async def _save(source: BinaryIO, folder: Path, number: int) -> Path:
    def save() -> Path:
        start = source.read(START_BYTES)
        if not start:
            raise Refused(422, f"file {number} is empty")
        path = folder / file_name(number, start)
        source.seek(0)
        with path.open("xb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        return path

    return await asyncio.to_thread(save)


async def _predict(request: Request, worker: Worker, job: Job) -> Answer:
    """The answer for a job; a client that goes away takes it out of the queue, or ends it at its next window."""
    future = worker.submit(job)
    waiting = asyncio.wrap_future(future)
    try:
        while not waiting.done():
            await asyncio.wait([waiting], timeout=DISCONNECT_S)
            if not waiting.done() and await request.is_disconnected():
                raise ClientDisconnect
        if waiting.cancelled():
            raise ending()
        return waiting.result()
    finally:
        job.gone.set()
        if not future.done():
            future.cancel()
            # Its files are in use until then. What it ends with, nobody wants to know.
            while not future.done():
                await asyncio.sleep(0.05)
            waiting.cancelled() or waiting.exception()

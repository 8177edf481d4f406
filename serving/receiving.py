"""From a request with files to the response with their mask: received within limits, predicted in turn."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from serving.answers import Answer
from serving.refusals import Refused, ending, too_large
from serving.uploads import nifti_name
from serving.worker import Job, Worker

FIELD = "scan"
MOST_FIELDS = 8
PROMPT_BYTES = 64_000_000
"""What is still read of a request that is refused: a client reads its answer only when it has sent all."""
PROMPT_S = 10.0
DISCONNECT_S = 1.0


async def predict_upload(
    request: Request, worker: Worker, answer: str, timed: Callable[[dict[str, float]], None]
) -> Response:
    """Predict the scan of a request.

    Args:
        request: multipart/form-data with a field `scan` for each file.
        worker: what predicts.
        answer: `mask`, `json` or `both`.
        timed: told of the seconds that it took.

    Raises:
        Refused: there will be no mask; the exception says why.
    """
    limits, body = worker.limits, _Body(request, worker.limits.upload_bytes)
    try:
        stated = request.headers.get("content-length", "0")
        if not stated.isdecimal() or int(stated) > limits.upload_bytes:
            raise too_large(f"the request has more than {limits.upload_mb:g} MB")
        with worker.place(), tempfile.TemporaryDirectory(prefix="nnunet-serve-") as folder:
            files = await _receive_files(body.request, Path(folder), worker)
            result = await _predict(body.request, worker, Job(folder=Path(folder), files=files))
    except Refused:
        await body.drain()
        raise
    except ClientDisconnect:
        raise Refused(499, "the client went away") from None
    record = result.record
    timed(record["seconds"])
    shape = "x".join(map(str, record["shape_xyz"]))
    print(f"predict: 200 {shape} voxels, {record['seconds']}", flush=True)
    return _response(result, answer)


def _response(result: Answer, answer: str) -> Response:
    if answer == "json":
        return JSONResponse(result.record)
    if answer == "both":
        return JSONResponse({**result.record, "mask": base64.b64encode(result.mask).decode("ascii")})
    headers = {"X-Result": json.dumps(result.record), "Content-Disposition": 'attachment; filename="mask.nii.gz"'}
    return Response(result.mask, media_type="application/gzip", headers=headers)


class _Body:
    """The body of a request, which ends in `Refused` after so many bytes, whatever its header claims."""

    def __init__(self, request: Request, most_bytes: int) -> None:
        self._receive, self._most_bytes = request.receive, most_bytes
        self._received, self._is_whole = 0, False
        self.request = Request(request.scope, self.receive)

    async def receive(self) -> Any:
        """The next message."""
        message = await self._next()
        if self._received > self._most_bytes:
            raise too_large(f"the request has more than {self._most_bytes / 1e6:g} MB")
        return message

    async def drain(self) -> None:
        """Read on for a while, so that the client hears why it was refused."""
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
                422, f"got {len(uploads)} files in the field {FIELD!r}; send multipart/form-data with one NIfTI{each}"
            )
        return tuple([await _save(upload.file, folder, number) for number, upload in enumerate(uploads, start=1)])


async def _save(source: BinaryIO, folder: Path, number: int) -> Path:
    def save() -> Path:
        start = source.read(2)
        if not start:
            raise Refused(422, f"file {number} is empty")
        path = folder / nifti_name(number, start)
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

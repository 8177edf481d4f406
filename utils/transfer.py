"""Fetching a file over HTTP: a transfer that broke off is continued, as long as the file is still the same."""

from __future__ import annotations

import dataclasses
import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.room import require_room

CHUNK_BYTES = 1 << 20
Report = Callable[[int, int], None]
"""Called with (bytes present, bytes in all) while a transfer goes on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patience:
    """How often a broken transfer is taken up again before giving up, and how long a silent server is waited for."""

    attempts: int = 5
    pause_s: float = 3.0
    timeout_s: float = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Purpose:
    """What a file is fetched for.

    Attributes:
        elsewhere: the flag or variable that chooses another folder; messages about room name it.
        unpacked: its content comes to lie beside it, and needs as much room again.
        compared: a digest of the whole file is known. Only then are the bytes of an earlier try kept where the server
            does not say whether they are of the same file.
    """

    elsewhere: str = "--results"
    unpacked: bool = True
    compared: bool = True


class SameSafety(urllib.request.HTTPRedirectHandler):
    """Follows no redirect out of an encrypted connection, and none to anything but a web server."""

    def redirect_request(self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str):
        """The request of the new address.

        Raises:
            UserError: it is less safe.
        """
        before, after = (urllib.parse.urlsplit(url).scheme for url in (req.full_url, newurl))
        if after not in ("http", "https") or (before == "https" and after != before):
            raise UserError(
                f"{req.full_url}: the server sends on to {newurl}, which is not safe; ask who gave you the address"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(SameSafety)


def fetch(
    url: str, part: Path, report: Report, patience: Patience | None = None, purpose: Purpose | None = None
) -> None:
    """Download `url` into `part`, continuing after the bytes that are already there.

    Where the file has changed on the server since, and where the server cannot continue, it is sent from its start.
    Whatever arrived stays in `part` when this fails, and beside it what the server calls the state of its file, so
    that the next call continues.

    Raises:
        UserError: no such file on the server, no connection, or no room on the disk.
    """
    patience, purpose = patience or Patience(), purpose or Purpose()
    for attempt in range(patience.attempts):
        try:
            if _fetch_once(url, part, report, patience.timeout_s, purpose):
                _state_file(part).unlink(missing_ok=True)
                return
            fault = "the connection was closed early"
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise UserError(f"{url}: the server answers {error.code} {error.reason}; check the address") from None
            fault = f"the server answers {error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            fault = str(getattr(error, "reason", error)) or type(error).__name__
        if attempt + 1 < patience.attempts:
            time.sleep(patience.pause_s)
    if not part.exists() or not (purpose.compared or _read_state(part)):
        drop_part(part)
        raise UserError(f"{url}: {fault}; check the address and the connection, and run the same command again")
    raise UserError(f"{url}: {fault}; run the same command again to continue (what arrived is kept in {part})")


def drop_part(part: Path) -> None:
    """Remove what arrived of a file that nobody wants."""
    part.unlink(missing_ok=True)
    _state_file(part).unlink(missing_ok=True)


def _fetch_once(url: str, part: Path, report: Report, timeout_s: float, purpose: Purpose) -> bool:
    """One request; True if the file is complete afterwards."""
    state = _read_state(part)
    if state is None and not purpose.compared:
        drop_part(part)
    present = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={present}-", **({"If-Range": state} if state else {})} if present else {}
    try:
        # Whoever calls this has checked that it is http(s), and `SameSafety` keeps redirects so.
        request = urllib.request.Request(url, headers=headers)  # noqa: S310
        response = _OPENER.open(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        # Nothing lies behind the bytes that are present: either that is all, or they are not this file's.
        complete = error.headers.get("Content-Range", "") == f"bytes */{present}" and not _differs(error.headers, state)
        error.close()
        if not complete:
            drop_part(part)
        return complete
    with response:
        total = _total(response.headers, present if response.status == 206 else 0)
        if response.status == 206:
            span = response.headers.get("Content-Range", "")
            if not span.startswith(f"bytes {present}-") or _differs(response.headers, state):
                drop_part(part)
                raise ConnectionError("the file has changed on the server meanwhile")
        else:
            if present and total == present and _state(response.headers) == state:
                return True
            present = 0
            _write_state(part, response.headers)
        needed = (2 if purpose.unpacked else 1) * (total or 0) - present
        what = "the archive and its files" if purpose.unpacked else "the bytes of the file"
        require_room(part.parent, needed, what, purpose.elsewhere)
        with _open(part, "ab" if present else "wb") as file:
            while chunk := response.read(CHUNK_BYTES):
                _write(file, chunk, part)
                present += len(chunk)
                report(present, total or 0)
    return total is None or present == total


def _total(headers: Message, present: int) -> int | None:
    """Bytes of the whole file; None where an answer does not say.

    An answer that continues after the bytes that are present may be shorter than what was asked for.
    """
    whole, length = headers.get("Content-Range", "").rpartition("/")[2], headers.get("Content-Length", "")
    if present and whole.isdecimal():
        return int(whole)
    return present + int(length) if length.isdecimal() else None


def _state_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.state")


def _read_state(part: Path) -> str | None:
    try:
        return _state_file(part).read_text(encoding="ascii") or None
    except (OSError, ValueError):
        return None


def _write_state(part: Path, headers: Message) -> None:
    """Before the first byte arrives, so that no byte is ever taken for another state's."""
    drop_part(part)
    state = _state(headers)
    if state is not None:
        try:
            _state_file(part).write_text(state, encoding="ascii")
        except OSError as error:
            raise UserError(f"{part} cannot be written: {error.strerror}") from None


def _state(headers: Message) -> str | None:
    """What a server calls a state of a file, of a kind that it compares byte by byte; None where it has no such thing.

    A date says nothing of a file that was changed in the second of the answer.

    Source: RFC 9110, sections 8.8 and 13.1.5.
    """
    tag, changed = headers.get("ETag", ""), headers.get("Last-Modified")
    if tag.startswith('"') and tag.isascii():
        return tag
    return changed if changed and changed.isascii() and changed != headers.get("Date", changed) else None


def _differs(headers: Message, state: str | None) -> bool:
    """Whether an answer to a request for a part of the file of `state` is about another; it need not say."""
    found = _state(headers)
    return None not in (found, state) and found != state


def _open(part: Path, mode: str):
    try:
        return open(part, mode, buffering=0)
    except OSError as error:
        raise UserError(f"{part} cannot be written: {error.strerror}") from None


def _write(file, chunk: bytes, part: Path) -> None:
    # Unbuffered, so that a full disk shows here and not when the file is closed.
    rest = memoryview(chunk)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        raise UserError(
            f"{part} cannot be written: {error.strerror}; make room and run the same command again to continue"
        ) from None

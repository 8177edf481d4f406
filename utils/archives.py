"""Fetching an archive over HTTP with resume and checksum, and unpacking it without trusting its names."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import http.client
import os
import posixpath
import re
import shutil
import stat
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from utils.disk import size_text
from utils.errors import UserError, list_problems
from utils.temporary import temporary_folder

CHUNK_BYTES = 1 << 20
MOST_ZIP_BYTES = 64 << 30
"""Unpacked: more than any study, and less than what archives made to fill a disk become."""
Report = Callable[[int, int], None]
"""Called with (bytes present, bytes in all) while a transfer goes on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patience:
    """How often a broken transfer is taken up again before giving up, and how long a silent server is waited for."""

    attempts: int = 5
    pause_s: float = 3.0
    timeout_s: float = 60.0


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


def fetch(url: str, part: Path, report: Report, patience: Patience) -> None:
    """Download `url` into `part`, continuing after the bytes that are already there.

    A server that cannot continue sends the file from its start. Whatever arrived stays in `part` when this fails,
    so that the next call continues.

    Raises:
        UserError: no such file on the server, no connection, or no room on the disk.
    """
    for attempt in range(patience.attempts):
        try:
            if _fetch_once(url, part, report, patience.timeout_s):
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
    raise UserError(f"{url}: {fault}; run the same command again to continue (what arrived is kept in {part})")


def _fetch_once(url: str, part: Path, report: Report, timeout_s: float) -> bool:
    """One request; True if the file is complete afterwards."""
    present = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={present}-"} if present else {})
    try:
        response = _OPENER.open(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        # Nothing lies behind the bytes that are present: either that is all, or they are not this file's.
        complete = error.headers.get("Content-Range", "") == f"bytes */{present}"
        error.close()
        if not complete:
            part.unlink()
        return complete
    with response:
        said = response.headers.get("Content-Length", "")
        length = int(said) if said.isdecimal() else None
        continued = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {present}-")
        if not continued:
            if present and response.status == 200 and length == present:
                return True
            present = 0
        total = present + length if length is not None else 0
        # The archive, and its content beside it for a while; scans in it are compressed already.
        _require_space(part, 2 * total - present)
        with _open(part, "ab" if continued else "wb") as file:
            while chunk := response.read(CHUNK_BYTES):
                _write(file, chunk, part)
                present += len(chunk)
                report(present, total)
    return present == total or length is None


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


def _require_space(part: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(part.parent).free
    if free_bytes < needed_bytes:
        raise UserError(
            f"{part.parent} has {size_text(free_bytes)} left, but {size_text(needed_bytes)} are needed to "
            "download and unpack; make room or choose another folder with --results"
        )


def has_md5(path: Path, md5: str) -> bool:
    """Whether the file has this MD5 sum (in hexadecimal)."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == md5


def unpack(archive: Path, target: Path) -> None:
    """Unpack the folder of `target`'s name from a tar archive to `target`, wholly or not at all.

    Every member is checked before the first byte is written; the archive itself is left alone.

    Raises:
        UserError: the archive is damaged, has members that would reach outside or are no plain files, lacks the
            folder, or the disk is full.
    """
    try:
        with (
            temporary_folder(target) as temporary,
            tarfile.open(archive) as tar,
        ):
            # macOS packs a "._name" beside each file; they are no scans.
            members = [m for m in tar.getmembers() if not posixpath.basename(m.name).startswith("._")]
            faults = [fault for member in members if (fault := _fault(member))]
            if faults:
                raise list_problems(
                    f"{archive} is not safe to unpack, nothing was unpacked:", faults, advice="Do not use this file."
                )
            tar.extractall(temporary, members=members, filter="data")
            folder = temporary / target.name
            if not folder.is_dir():
                raise UserError(f"{archive} has no folder {target.name}; it is another archive")
            folder.rename(target)
    except (tarfile.TarError, EOFError, KeyError) as error:
        raise UserError(f"{archive} is damaged: {error}; remove it and run again") from None
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}; {archive} is kept") from None


def _fault(member: tarfile.TarInfo) -> str | None:
    if _escapes(member.name):
        return f"{member.name} lies outside the folder"
    if member.issym() or member.islnk():
        # A symbolic link counts from where it lies, a hard link from the top of the archive.
        base = posixpath.dirname(member.name) if member.issym() else ""
        if posixpath.isabs(member.linkname) or _escapes(posixpath.join(base, member.linkname)):
            return f"{member.name} links to {member.linkname}, outside the folder"
        return None
    return None if member.isfile() or member.isdir() else f"{member.name} is a device"


def _escapes(name: str) -> bool:
    return os.path.isabs(name) or posixpath.normpath(name).split("/")[0] == ".."


def unpack_zip(
    archive: Path, target: Path, *, most_bytes: int = MOST_ZIP_BYTES, keep: Sequence[str] | None = None
) -> None:
    """Unpack a zip of somebody else's into the new folder `target`; times of files are kept.

    With `keep` files are called 1, 2, ...: of their names only these endings (in lower case) reach the disk.

    Names, sizes and kinds of all members are checked before the first byte is written, and none becomes larger than it
    says.

    Raises:
        UserError: it is damaged, has a password, members that would reach outside or are links, or needs more than
            `most_bytes` or than is free.
    """
    try:
        with zipfile.ZipFile(archive) as found:
            members = [member for member in found.infolist() if not member.is_dir()]
            faults = [fault for member in members if (fault := _zip_fault(member))]
            if faults:
                raise list_problems(f"{archive} is not safe to unpack:", faults, advice="Do not use this file.")
            needed = sum(member.file_size for member in members)
            if needed > most_bytes:
                raise UserError(f"{archive} holds {size_text(needed)}, allowed are {size_text(most_bytes)}; unpack it")
            target.mkdir(parents=True)
            _require_space(target, needed)
            for number, member in enumerate(members, start=1):
                ending = posixpath.splitext(member.filename)[1].lower()
                path = target / (member.filename if keep is None else f"{number}{ending if ending in keep else ''}")
                path.parent.mkdir(parents=True, exist_ok=True)
                with found.open(member) as source, open(path, "xb") as file:
                    shutil.copyfileobj(source, file, CHUNK_BYTES)
                with contextlib.suppress(ValueError, OverflowError):
                    seconds = time.mktime((*member.date_time, 0, 0, -1))
                    os.utime(path, (seconds, seconds))
    except FileExistsError:
        raise UserError(f"{archive} holds two files of one name; unpack it yourself") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        # A member that begins before its archive.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise UserError(f"{archive} cannot be unpacked: {error}; copy it again, or unpack it yourself") from None


def _zip_fault(member: zipfile.ZipInfo) -> str | None:
    name = member.filename.replace("\\", "/")
    if _escapes(name) or re.match(r"[A-Za-z]:", name):
        return f"{member.filename} lies outside the folder"
    return f"{member.filename} is a link" if stat.S_ISLNK(member.external_attr >> 16) else None

"""Unpacking an archive without trusting its names."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import lzma
import os
import posixpath
import re
import shutil
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from utils.disk import size_text
from utils.errors import UserError, list_problems
from utils.room import require_room
from utils.temporary import temporary_folder

CHUNK_BYTES = 1 << 20
MOST_ZIP_BYTES = 64 << 30
"""Unpacked: more than any study, and less than what archives made to fill a disk become."""


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
            require_room(target.parent, sum(member.size for member in members), f"the files in {archive}")
            tar.extractall(temporary, members=members, filter="data")
            # Packers write their sum behind the last member, where tarfile does not look.
            while tar.fileobj is not None and tar.fileobj.read(CHUNK_BYTES):
                pass
            folder = temporary / target.name
            if not folder.is_dir():
                raise UserError(f"{archive} has no folder {target.name}; it is another archive")
            folder.rename(target)
    except (tarfile.TarError, EOFError, KeyError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
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
            members = [member for member in found.infolist() if not member.filename.endswith("/")]
            faults = [fault for member in members if (fault := _zip_fault(member))]
            if faults:
                raise list_problems(f"{archive} is not safe to unpack:", faults, advice="Do not use this file.")
            if any(member.flag_bits & 1 for member in members):
                raise UserError(f"{archive} has a password; unpack it yourself")
            needed = sum(member.file_size for member in members)
            if needed > most_bytes:
                raise UserError(f"{archive} holds {size_text(needed)}, allowed are {size_text(most_bytes)}; unpack it")
            target.mkdir(parents=True)
            require_room(target, needed, f"the files in {archive}", "--output")
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
    except (
        zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, ValueError, OSError
    ) as error:  # fmt: skip
        if not _is_damage(error):
            raise
        raise UserError(f"{archive} cannot be unpacked: {error}; copy it again, or unpack it yourself") from None


def _is_damage(error: Exception) -> bool:
    """Whether what was raised while a zip was read is its fault, and not the disk's.

    What unpacks bzip2 says so of damage without a number; a place before the archive is an invalid one.
    """
    return not isinstance(error, OSError) or error.errno in (None, errno.EINVAL)


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A member of a zip; one that unpacks to more than it says takes no more memory than that.

    Raises:
        KeyError: there is none of this name.
        zipfile.BadZipFile: it is damaged.
        RuntimeError: it has a password.
        NotImplementedError: it is packed in a way that Python has no unpacker for.
    """
    try:
        # Without a number zipfile unpacks up to 2 GB before it cuts them to the size that the member states.
        with archive.open(name) as file:
            return file.read(archive.getinfo(name).file_size)
    except (zlib.error, lzma.LZMAError, EOFError, OSError) as error:
        if not _is_damage(error):
            raise
        raise zipfile.BadZipFile(f"{name} is damaged ({str(error) or 'it ends early'})") from None


def _zip_fault(member: zipfile.ZipInfo) -> str | None:
    name = member.filename.replace("\\", "/")
    if not name:
        return "a file without a name"
    if _escapes(name) or re.match(r"[A-Za-z]:", name):
        return f"{member.filename} lies outside the folder"
    return f"{member.filename} is a link" if stat.S_ISLNK(member.external_attr >> 16) else None
